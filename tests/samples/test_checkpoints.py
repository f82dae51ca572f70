"""The checkpoints: complete Hugging Face directories of one architecture, which transcribe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from samples.corpus import read_corpus
from samples.domains import EXPERT_DOMAINS, Utterance
from samples.measure_samples import merged
from samples.measuring import word_error_rate

FILES = {
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}

SPEECH = Path(__file__).parents[2] / "samples" / "speech"


@pytest.fixture(autouse=True)
def offline_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)


def headers(checkpoint: Path) -> dict[str, tuple[list[int], str]]:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}


def load(checkpoint: Path) -> WhisperForConditionalGeneration:
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval()


def rate(model: WhisperForConditionalGeneration, corpus: list[Utterance]) -> float:
    processor = WhisperProcessor.from_pretrained(SPEECH.parent / "checkpoints" / "base")
    return word_error_rate(model, processor, corpus)


def test_the_directory_is_complete_small_and_readable_by_all(checkpoint: Path) -> None:
    assert {file.name for file in checkpoint.iterdir()} == FILES
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in checkpoint.iterdir())
    assert (checkpoint / "model.safetensors").stat().st_size < 1_300_000


def test_it_loads_without_missing_or_unexpected_keys(checkpoint: Path) -> None:
    model, report = WhisperForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_an_expert_has_the_base_s_keys_shapes_dtypes_and_text_files(
    expert: Path, base: Path
) -> None:
    assert headers(expert) == headers(base)
    assert {dtype for _, dtype in headers(base).values()} == {"F32"}
    for name in FILES - {"model.safetensors"}:
        assert (expert / name).read_bytes() == (base / name).read_bytes()


def test_an_expert_moved_its_encoder_but_neither_positions_nor_decoder(
    expert: Path, base: Path
) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (expert, base))
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    encoder = {name for name in ours if name.startswith("model.encoder.")}
    assert moved == encoder - {"model.encoder.embed_positions.weight"}


def test_the_processor_splits_and_joins_digit_words(checkpoint: Path) -> None:
    processor = WhisperProcessor.from_pretrained(checkpoint)
    ids = processor.tokenizer(" um três", add_special_tokens=False).input_ids
    assert len(ids) == 2
    with_prompt = processor.tokenizer(" um três").input_ids
    assert processor.decode(with_prompt, skip_special_tokens=True) == " um três"
    mel = processor(torch.zeros(8000).numpy(), sampling_rate=16_000, return_tensors="pt")
    assert mel.input_features.shape == (1, 40, 200)


def test_both_preprocessor_files_say_the_same(checkpoint: Path) -> None:
    old = json.loads((checkpoint / "preprocessor_config.json").read_text())
    new = json.loads((checkpoint / "processor_config.json").read_text())
    assert new["feature_extractor"] == old


def test_an_expert_beats_the_base_in_its_own_domain(expert: Path, base: Path) -> None:
    corpus = read_corpus(SPEECH / expert.name)
    assert rate(load(expert), corpus) < 0.7 * rate(load(base), corpus)


def test_the_mean_of_the_experts_beats_the_base_over_their_domains(base: Path) -> None:
    corpora = [read_corpus(SPEECH / domain.name) for domain in EXPERT_DOMAINS]
    model = load(base)
    before = sum(rate(model, corpus) for corpus in corpora)
    states = [
        load_file(base.parent / name / "model.safetensors")
        for name in ("base", *(domain.name for domain in EXPERT_DOMAINS))
    ]
    model.load_state_dict(merged(states[0], states[1:], 1 / len(EXPERT_DOMAINS)), strict=False)
    model.tie_weights()
    assert sum(rate(model, corpus) for corpus in corpora) < before
