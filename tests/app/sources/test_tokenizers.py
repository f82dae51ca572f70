"""Tokenizers are compared by what they say, token by token, in whichever files they say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.contract.errors import AfluenteError, IncompatibleCheckpointError, InvalidCheckpointError
from app.contract.recipe import parse_request
from app.services.preparation import Prepared, prepare
from app.sources.policy import SourcePolicy
from tests.app.sources.conftest import VOCABULARY, checkpoint_files

Make = Callable[..., Path]
MERGES = ["w1 w2", "w3 w4"]
WORDS = {token: number for token, number in VOCABULARY.items() if number < 16}
ADDED = {token: number for token, number in VOCABULARY.items() if number >= 16}


def one_file(
    vocabulary: dict[str, int] = WORDS,
    added: dict[str, int] = ADDED,
    merges: list[Any] = MERGES,
) -> dict[str, bytes]:
    entries = [{"content": token, "id": number} for token, number in added.items()]
    model = {"vocab": vocabulary, "merges": merges}
    return {"tokenizer.json": json.dumps({"model": model, "added_tokens": entries}).encode()}


def three_files(
    vocabulary: dict[str, int] = WORDS,
    added: dict[str, int] = ADDED,
    merges: list[str] = MERGES,
) -> dict[str, bytes]:
    return {
        "vocab.json": json.dumps(vocabulary).encode(),
        "added_tokens.json": json.dumps(added).encode(),
        "merges.txt": "\r\n".join(["#version: 0.2", *merges, ""]).encode(),
    }


def in_tokenizer_config() -> dict[str, bytes]:
    decoder = {str(number): {"content": token} for token, number in ADDED.items()}
    config = json.dumps({"added_tokens_decoder": decoder}).encode()
    return three_files(added={}) | {"tokenizer_config.json": config}


def swapped(vocabulary: dict[str, int], first: str, second: str) -> dict[str, int]:
    return vocabulary | {first: vocabulary[second], second: vocabulary[first]}


@pytest.fixture
def prepared(make_checkpoint: Make, policy: SourcePolicy) -> Callable[..., Prepared]:
    """Prepare a merge of checkpoints with these files as tokenizers, the first being the base."""
    attempts = count()

    def make(*tokenizers: dict[str, bytes], base: bool = True) -> Prepared:
        bare, attempt = checkpoint_files(), next(attempts)
        del bare["tokenizer.json"]
        uris = [
            make_checkpoint(f"{attempt}/model-{number}", files=bare | files).as_uri()
            for number, files in enumerate(tokenizers)
        ]
        named = {"base": uris.pop(0)} if base and len(uris) > 1 else {}
        recipe = parse_request({**named, "checkpoints": uris, "method": "soup"}).recipe
        return prepare(recipe, policy)

    return make


def test_files_of_every_form_that_say_the_same_are_equal(prepared: Any) -> None:
    pairs = one_file(merges=[merge.split() for merge in MERGES])
    forms = [one_file(), pairs, three_files(), in_tokenizer_config(), one_file() | three_files()]
    assert prepared(*forms).warnings == ()


@pytest.mark.parametrize("form", [one_file, three_files])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocabulary": swapped(WORDS, "w3", "w4")}, "'w3' 4 and 3, 'w4' 3 and 4"),
        ({"added": swapped(ADDED, "w17", "w18")}, "'w17' 18 and 17, 'w18' 17 and 18"),
        ({"vocabulary": {**{t: n for t, n in WORDS.items() if n != 5}, "x": 5}}, "id 5 is 'x'"),
        ({"merges": MERGES[::-1]}, "other merges than that of .*, from number 0"),
        ({"merges": MERGES[:1]}, "other merges"),
    ],
)
def test_tokens_with_other_ids_are_refused_by_name(
    prepared: Any, form: Any, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(IncompatibleCheckpointError, match=said) as refusal:
        prepared(one_file(), form(**change))
    assert refusal.value.as_problems()[0].param == "checkpoints[0].uri"
    with pytest.raises(IncompatibleCheckpointError):
        prepared(one_file(), form(), form(**change), base=False)


def test_a_vocabulary_without_merges_counts_as_well(prepared: Any) -> None:
    def alone(vocabulary: dict[str, int]) -> dict[str, bytes]:
        return {"vocab.json": json.dumps(vocabulary).encode()}

    (warning,) = prepared(one_file(), one_file(), alone(WORDS)).warnings
    assert warning["code"] == "companions_from_base"
    with pytest.raises(IncompatibleCheckpointError, match="'w3' 4 and 3"):
        prepared(one_file(), alone(swapped(WORDS, "w3", "w4")))


def test_tokens_that_only_one_tokenizer_has_are_no_difference(prepared: Any) -> None:
    assert prepared(one_file(), one_file(added={}), one_file(added={})).warnings == ()


def test_two_vocabularies_in_one_folder_must_agree(prepared: Any) -> None:
    other = three_files(vocabulary=swapped(WORDS, "w3", "w4"))
    with pytest.raises(InvalidCheckpointError, match=r"vocab\.json says 4 for 'w3', tokenizer"):
        prepared(one_file() | other)


@pytest.mark.parametrize("base", [True, False])
def test_a_reference_without_tokenizer_is_refused_naming_the_files(
    prepared: Any, base: bool
) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"no tokenizer \(tokenizer.json, or"):
        prepared({}, one_file(), base=base)
    with pytest.raises(InvalidCheckpointError, match="no tokenizer"):
        prepared({"vocab.json": b"{}"}, one_file(), base=base)


def test_what_an_expert_lacks_it_takes_from_the_reference_said_in_a_warning(
    prepared: Any,
) -> None:
    (warning,) = prepared(three_files(), one_file(), {"merges.txt": b""}).warnings
    assert warning["code"] == "companions_from_base"
    assert "model-2 lacks files; those of the base are used" in warning["message"]
    assert all(name in warning["message"] for name in three_files())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"model": 1}',
        b'{"model": {"vocab": []}}',
        b'{"model": {"vocab": {"a": 1.5}, "merges": []}}',
        b'{"model": {"vocab": {"a": -1}, "merges": []}}',
        b'{"model": {"vocab": {"a": true}, "merges": []}}',
        b'{"model": {"vocab": {"a": 1' + b"0" * 5000 + b'}, "merges": []}}',
        b'{"model": {"vocab": {}, "merges": {}}}',
        b'{"model": {"vocab": {}, "merges": [["a"]]}}',
        b'{"model": {"vocab": {}, "merges": []}, "added_tokens": [1]}',
        b'{"model": {"vocab": {}, "merges": []}, "added_tokens": [{"content": null}]}',
        b'{"model": {"vocab": {}, "merges": []}, "added_tokens": [{"content": [], "id": 1}]}',
    ],
)
def test_what_is_no_tokenizer_is_refused_by_file(prepared: Any, content: bytes) -> None:
    for files in (({"tokenizer.json": content},), (one_file(), {"tokenizer.json": content})):
        with pytest.raises(AfluenteError, match=r"tokenizer\.json") as refusal:
            prepared(*files)
        assert refusal.value.code == "invalid_checkpoint"
