"""Text to speech with the `espeak-ng` program, with the same bytes on every run."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Delivery:
    """An espeak-ng voice (`pt+f2`), words per minute, pitch (0 to 99)."""

    voice: str
    words_per_minute: int
    pitch: int


def require_espeak() -> str:
    """Return the first line of `espeak-ng --version`; SystemExit if it is not installed."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not on the PATH: apt-get install espeak-ng (tried: 1.51)")
    done = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].split("  Data")[0]


def speak(text: str, delivery: Delivery) -> np.ndarray:
    """Return spoken `text`, float32 of shape (samples,) at 16 kHz, without silence at the ends."""
    command = ["espeak-ng", "--stdout", "-v", delivery.voice]
    command += ["-s", str(delivery.words_per_minute), "-p", str(delivery.pitch), text]
    done = subprocess.run(command, capture_output=True, check=True)
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    samples = np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), dtype=np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]
