"""A reference's tokenizer must know what its generation_config.json says to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.contract.errors import InvalidCheckpointError
from app.sources.checkpoint import ResolvedCheckpoint, SourceFile
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from app.sources.tokenizers import tokenizer_problems


def read(checkpoint: ResolvedCheckpoint, file: SourceFile) -> bytes:
    return Path(checkpoint.uri.removeprefix("file://"), file.name).read_bytes()


@pytest.mark.parametrize("added", [{}, {"<|pt|>": 4}])
def test_a_vocabulary_without_the_tokens_that_are_said_is_refused(
    make_checkpoint: Callable[..., Path], policy: SourcePolicy, added: dict[str, int]
) -> None:
    folder = make_checkpoint()
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.json").write_text(json.dumps({"a": 0}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    said = {"is_multilingual": True, "lang_to_id": {"<|pt|>": 3}}
    (folder / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(InvalidCheckpointError, match=r"says 3 for <\|pt\|>, the tokenizer"):
        tokenizer_problems(resolve(f"file://{folder}", policy), [], read)

    (folder / "added_tokens.json").write_text(json.dumps({"<|pt|>": 3}))
    assert tokenizer_problems(resolve(f"file://{folder}", policy), [], read) == []
