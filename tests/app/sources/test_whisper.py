"""The expected tensors are those that transformers saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.sources.architectures.whisper.shapes import expected_shapes
from app.sources.compatibility import check_compatible
from app.sources.fetch import fetch
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a Whisper of unlike sizes with transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        d_model=12,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=3,
        encoder_ffn_dim=16,
        decoder_ffn_dim=20,
        num_mel_bins=8,
        vocab_size=64,
        max_source_positions=10,
        max_target_positions=7,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    folder = tmp_path / "models" / "saved"
    model.save_pretrained(folder)
    return folder


def test_the_expected_tensors_are_those_that_transformers_saves(
    saved: Path, policy: SourcePolicy
) -> None:
    found = resolve(saved.as_uri(), policy)
    assert {n: t.shape for n, t in found.tensors.items()} == expected_shapes(found.config)
    assert check_compatible(found, [("checkpoints[0].uri", found)])[1] == []


def test_a_downloaded_checkpoint_loads_from_its_folder(
    saved: Path, stand_in: Any, web_policy: SourcePolicy
) -> None:
    transformers = pytest.importorskip("transformers")
    uri = stand_in.add_folder("/a", {path.name: path.read_bytes() for path in saved.iterdir()})
    local = fetch(resolve(uri, web_policy), web_policy)
    with local.opened() as folder:
        model, loading = transformers.WhisperForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.d_model == 12
