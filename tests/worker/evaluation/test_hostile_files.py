"""Any content of a checkpoint's files is decoded or refused, never an internal error."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.contract.errors import InvalidCheckpointError
from app.contract.evaluation import DecodingOptions
from worker.evaluation.whisper.checkpoint import read_facts
from worker.evaluation.whisper.decoding import SpeechDecoder

CHECKPOINT = Path(__file__).parents[3] / "samples/checkpoints/telephone"
FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
VALUES: list[Any] = [
    None, True, -1, 0, 10**9, 10**30, 1.5, float("nan"), "x", "", [], {}, [1], ["x"],
    {"a": 1}, [[1]],
]  # fmt: skip
RAW = [
    b"", b"[]", b"{", b"null", b"{}", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}',
    b'{"a": 1' + b"0" * 5000 + b"}", b'{"<|endoftext|>": "a"}', b'{"bos_token": [1]}',
]  # fmt: skip


def paths(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return every field, those of small objects within too."""
    found: list[tuple[str, ...]] = []
    for name, value in document.items():
        found.append((name,))
        if isinstance(value, dict) and len(value) < 40:
            found += [(name, *inner) for inner in paths(value)]
    return found


FIELDS = [
    (name, path) for name in FILES for path in paths(json.loads((CHECKPOINT / name).read_text()))
]


def refusal(name: str, content: bytes) -> InvalidCheckpointError | None:
    """Return why a checkpoint with this file is refused; None if it can be decoded with."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "hostile"
        folder.mkdir()
        for path in CHECKPOINT.iterdir():
            if path.name != name:
                (folder / path.name).symlink_to(path)
        (folder / name).write_bytes(content)
        try:
            one = SpeechDecoder(folder, "cpu", "float32", DecodingOptions(num_beams=1))
            one.decode([np.zeros(8000, np.float32)])
        except InvalidCheckpointError as error:
            return error
        return None


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(field=st.sampled_from(FIELDS), value=st.sampled_from(VALUES))
def test_an_invalid_field_is_an_invalid_checkpoint(
    field: tuple[str, tuple[str, ...]], value: object
) -> None:
    name, path = field
    document = json.loads((CHECKPOINT / name).read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    check(refusal(name, json.dumps(document).encode()))


@pytest.mark.parametrize("content", RAW, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("name", [*FILES, "special_tokens_map.json", "added_tokens.json"])
def test_an_invalid_file_is_an_invalid_checkpoint(name: str, content: bytes) -> None:
    check(refusal(name, content))


def check(error: InvalidCheckpointError | None) -> None:
    assert error is None or "hostile" in error.message
    assert error is None or not error.retryable


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("config.json", {"activation_function": "x"}, "activation_function 'x'"),
        ("config.json", {"vocab_size": "x"}, "vocab_size"),
        ("generation_config.json", {"decoder_start_token_id": 5}, "<|startoftranscript|>"),
        ("generation_config.json", {"eos_token_id": 5}, "<|endoftext|>"),
        ("processor_config.json", {"feature_extractor": {"sampling_rate": 0}}, "the feature"),
        (
            "processor_config.json",
            {"feature_extractor": {"feature_size": 40, "hop_length": 0}},
            "hop_length 0",
        ),
        (
            "processor_config.json",
            {"feature_extractor": {"feature_size": 40, "sampling_rate": 8000}},
            "sampling_rate 8000; the model needs 16000",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(name: str, changes: dict[str, Any], said: str) -> None:
    document = json.loads((CHECKPOINT / name).read_text()) | changes
    error = refusal(name, json.dumps(document).encode())
    assert error is not None
    assert said in error.message


def test_tokens_that_only_the_tokenizer_config_lists_are_known(
    multilingual: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(multilingual, tmp_path / "slow")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    listed = {
        str(entry["id"]): {"content": entry["content"]} for entry in tokenizer["added_tokens"]
    }
    decoder = {"added_tokens_decoder": {**listed, "x": 3, "5": {"content": 4}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(decoder))
    assert set(read_facts(folder).languages) == {"en", "pt"}
