"""Decoding in half precision, tested on a CPU: close to float32, and cached separately."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
import torch

from app.contract.errors import EvaluationFailedError
from app.contract.evaluation import DecodingOptions, DecodingRecord, Dtype, Utterance
from worker.evaluation.cache import InMemoryTranscriptCache, transcript_key
from worker.evaluation.jobs import DecodingSetup
from worker.evaluation.runner import default_dtype, evaluate
from worker.evaluation.whisper.checkpoint import TRANSFORMERS, read_facts
from worker.evaluation.whisper.decoding import SpeechDecoder
from worker.evaluation.whisper.transcriber import Transcriber

SAMPLES = Path(__file__).parents[3] / "samples"
BASE = SAMPLES / "checkpoints/base"
HALVES = ["float16", "bfloat16"]
# How far logits of up to 12 may be off: 11 and 8 bits of mantissa through all layers.
NEAR = {"float16": 0.05, "bfloat16": 1.0}
UTTERANCES = 24


@pytest.fixture(scope="module")
def digits() -> list[np.ndarray]:
    names = sorted((SAMPLES / "speech/street").rglob("*.flac"))[:UTTERANCES]
    return [soundfile.read(name, dtype="float32")[0] for name in names]


def decoder(dtype: Dtype, num_beams: int = 1) -> SpeechDecoder:
    return SpeechDecoder(BASE, "cpu", dtype, DecodingOptions(num_beams=num_beams))


def own(decoder: SpeechDecoder) -> Transcriber:
    return Transcriber(decoder.model, decoder.generation.to_dict())


def features(decoder: SpeechDecoder, speech: list[np.ndarray]) -> torch.Tensor:
    found = decoder._features(speech, max_length=decoder.window_samples, padding="max_length")
    inputs: torch.Tensor = found.input_features
    return inputs


@torch.inference_mode()
def logits(decoder: SpeechDecoder, speech: list[np.ndarray]) -> torch.Tensor:
    transcriber = own(decoder)
    cache = transcriber._encode(features(decoder, speech))
    prompts = transcriber._prompts(cache, None, None)
    return transcriber.decoder.read(cache, prompts)


@pytest.mark.parametrize("dtype", HALVES)
def test_our_decoders_logits_are_close_to_float32(digits: list[np.ndarray], dtype: Dtype) -> None:
    exact, near = logits(decoder("float32"), digits[:8]), logits(decoder(dtype), digits[:8])
    assert near.dtype == torch.float32
    assert near.isfinite().all()
    assert (near - exact).abs().max() < NEAR[dtype]
    assert not torch.equal(near, exact)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_our_decoders_texts_are_close_to_float32(
    digits: list[np.ndarray], dtype: Dtype, num_beams: int
) -> None:
    with torch.inference_mode():
        exact, half = (
            own(one).transcribe(features(one, digits), None, None)[0]
            for one in (decoder("float32", num_beams), decoder(dtype, num_beams))
        )
    equal = sum(one == other for one, other in zip(exact, half, strict=True))
    assert equal >= UTTERANCES - 2


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_half_precision_texts_are_close_to_float32(
    digits: list[np.ndarray], dtype: Dtype, num_beams: int
) -> None:
    half = decoder(dtype, num_beams)
    assert half.backend == TRANSFORMERS
    exact = decoder("float32", num_beams).decode(digits)
    heard = half.decode(digits)
    equal = sum(one == other for one, other in zip(exact, heard, strict=True))
    assert equal >= UTTERANCES - 2


def test_the_device_decides_the_precision() -> None:
    assert [default_dtype(device) for device in ("cpu", "cuda", "cuda:1")] == [
        "float32",
        "float16",
        "float16",
    ]
    options = DecodingOptions()
    assert read_facts(BASE).backend(options, "float16", "cuda") == TRANSFORMERS


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_for_a_gpu(english: Path, make_manifest, dtype: Dtype) -> None:
    options = DecodingOptions(dtype=dtype)
    with pytest.raises(EvaluationFailedError, match=f"{dtype} needs a GPU"):
        evaluate(
            english, "key", make_manifest(0.5), options, InMemoryTranscriptCache(), device="cpu"
        )


def test_results_and_cached_transcripts_are_of_one_precision_and_device() -> None:
    def record(dtype: Dtype, device_type: str) -> DecodingRecord:
        setup = DecodingSetup(
            checkpoint_key="key", facts=read_facts(BASE), options=DecodingOptions(), dtype=dtype,
            device_type=device_type, backend=TRANSFORMERS,
        )  # fmt: skip
        return setup.record("pt")

    utterance = Utterance(index=0, audio="a.wav", reference="um")
    records = [record(dtype, device) for dtype in get_args(Dtype) for device in ("cpu", "cuda")]
    assert [one.dtype for one in records[::2]] == list(get_args(Dtype))
    keys = {transcript_key("checkpoint", "audio", utterance, one) for one in records}
    assert len(keys) == len(records)
