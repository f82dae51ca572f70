"""Acoustic conditions: a telephone line, a hall, a street, a quiet room.

Each function takes speech (float32 at 16 kHz), a generator and the largest length of the result in
seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr

from samples.speaking import SAMPLE_RATE

Condition = Callable[[np.ndarray, np.random.Generator, float], np.ndarray]

LEAD_SECONDS = 0.08


def _pad(
    speech: np.ndarray, rng: np.random.Generator, tail_seconds: float, most_seconds: float
) -> np.ndarray:
    lead = int(rng.uniform(0.5, 1.5) * LEAD_SECONDS * SAMPLE_RATE)
    tail = int(tail_seconds * SAMPLE_RATE)
    most = int(most_seconds * SAMPLE_RATE)
    return np.pad(speech, (lead, tail))[:most].astype(np.float64)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def _add_noise(samples: np.ndarray, noise: np.ndarray, snr_decibels: float) -> np.ndarray:
    scale = _level(samples) / _level(noise) * 10 ** (-snr_decibels / 20)
    return samples + scale * noise


def _shape_spectrum(
    samples: np.ndarray, rate: int, gain: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    spectrum = np.fft.rfft(samples) * gain(np.fft.rfftfreq(len(samples), 1 / rate))
    return np.asarray(np.fft.irfft(spectrum, len(samples)))


def _normalize(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    peak = rng.uniform(0.1, 0.35)
    return np.asarray(samples * peak / np.abs(samples).max(), dtype=np.float32)


def quiet_room(speech: np.ndarray, rng: np.random.Generator, most_seconds: float) -> np.ndarray:
    """Return the speech through a random microphone (a tilt of up to ±3 dB per octave).

    White noise is 20 to 50 dB below it.
    """
    samples = _pad(speech, rng, 0.08, most_seconds)
    tilt = rng.uniform(-0.5, 0.5)
    samples = _shape_spectrum(samples, SAMPLE_RATE, lambda f: (np.maximum(f, 60) / 1000) ** tilt)
    noise = rng.standard_normal(len(samples))
    return _normalize(_add_noise(samples, noise, rng.uniform(20, 50)), rng)


def _companded(samples: np.ndarray) -> np.ndarray:
    """Return samples in [-1, 1] after 8-bit A-law (G.711, Europe's telephone code)."""
    a = 87.6
    size = np.clip(np.abs(samples), 1e-9, 1)
    law = np.where(size < 1 / a, a * size, 1 + np.log(np.maximum(a * size, 1))) / (1 + np.log(a))
    coded = np.round(law * 127) / 127 * (1 + np.log(a))
    size = np.where(coded < 1, coded / a, np.exp(coded - 1) / a)
    return np.asarray(np.sign(samples) * size)


def _telephone_band(frequencies: np.ndarray) -> np.ndarray:
    """Return the gain of a telephone line: fourth-order slopes below 300 and above 3,400 Hz."""
    low = np.sqrt(1 + (300 / np.maximum(frequencies, 1)) ** 8)
    high = np.sqrt(1 + (frequencies / 3400) ** 8)
    return np.asarray(1 / (low * high))


def telephone(speech: np.ndarray, rng: np.random.Generator, most_seconds: float) -> np.ndarray:
    """Return the speech over a telephone line, as recorded at the receiver.

    8 kHz, 300 to 3,400 Hz, line noise at 35 to 40 dB, A-law, room noise at 18 to 28 dB.
    """
    samples = soxr.resample(_pad(speech, rng, 0.08, most_seconds), SAMPLE_RATE, 8000)
    band = _shape_spectrum(samples, 8000, _telephone_band)
    band = _add_noise(band, rng.standard_normal(len(band)), rng.uniform(35, 40))
    line = soxr.resample(_companded(0.7 * band / np.abs(band).max()), 8000, SAMPLE_RATE)
    room = rng.standard_normal(len(line))
    return _normalize(_add_noise(line, room, rng.uniform(18, 28)), rng)


def hall(speech: np.ndarray, rng: np.random.Generator, most_seconds: float) -> np.ndarray:
    """Return the speech far from the microphone in a hall (60 dB of decay in 0.4 to 0.8 s)."""
    decay_seconds = rng.uniform(0.4, 0.8)
    times = np.arange(int(decay_seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay_seconds)
    echo *= 10 ** (rng.uniform(-4, 0) / 20) / np.sqrt(np.sum(echo**2))
    echo[0] += 1.0
    samples = _pad(speech, rng, 0.3, most_seconds)
    size = 2 ** int(np.ceil(np.log2(len(samples) + len(echo))))
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(echo, size), size)
    wet = wet[: len(samples)]
    noise = rng.standard_normal(len(wet))
    return _normalize(_add_noise(wet, noise, rng.uniform(30, 45)), rng)


def street(speech: np.ndarray, rng: np.random.Generator, most_seconds: float) -> np.ndarray:
    """Return the speech with traffic noise (falling 6 dB per octave) at 6 to 12 dB."""
    samples = _pad(speech, rng, 0.08, most_seconds)
    white = rng.standard_normal(len(samples))
    rumble = _shape_spectrum(white, SAMPLE_RATE, lambda f: 1 / np.maximum(f, 60))
    return _normalize(_add_noise(samples, rumble, rng.uniform(6, 12)), rng)
