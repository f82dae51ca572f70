"""Says whether two checkpoints' tokenizers give every token the same id.

Rows of the embedding are merged by their number: where the ids differ, words of two meanings would
be averaged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from app.contract.errors import InvalidCheckpointError
from app.sources.architectures.architecture import GENERATION_CONFIG, TOKENIZER_CONFIG
from app.sources.checkpoint import ResolvedCheckpoint, SourceFile

Read = Callable[[ResolvedCheckpoint, SourceFile], bytes]
_SHOWN = 3
# What the hub called otherwise in another year: the same row means the same.
_RENAMED = {"<|iw|>": "<|he|>", "<|jv|>": "<|jw|>", "<|nocaptions|>": "<|nospeech|>"}
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_MOST_KNOWN = 1000
# What comparisons of files that have not changed since came to.
_known: dict[object, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Tokenizer:
    """The ids below the vocabulary's size by token, the token by id, and the merges in order.

    `merges` is None where no file has any.
    """

    ids: Mapping[str, int]
    tokens: Mapping[int, str]
    merges: Sequence[str] | None


def states_ids(checkpoint: ResolvedCheckpoint) -> bool:
    """Return whether it says which ids its tokens have, by a tokenizer or a part of one."""
    names = {"tokenizer.json", "vocab.json", "vocab.txt"}
    return any(file.name in names for file in checkpoint.files)


def tokenizer_problems(
    reference: ResolvedCheckpoint, others: Sequence[ResolvedCheckpoint], read: Read
) -> list[tuple[str, ...]]:
    """Return for each of the others what differs from the reference's tokenizer.

    All of them say which ids their tokens have. `read` returns a file's content. Raises
    InvalidCheckpointError, naming the file, for one that is no tokenizer.
    """
    own = _identity(reference)
    parsed: Tokenizer | None = None
    if (own, own) not in _known:
        # Whether it is one at all is asked of a merge of a single checkpoint too.
        parsed = read_tokenizer(reference, read)
        _check_spoken(reference, parsed)
        _keep((own, own), ())
    found = []
    for other in others:
        key = (own, _identity(other))
        if key not in _known:
            parsed = parsed or read_tokenizer(reference, read)
            _keep(key, tuple(_differences(parsed, read_tokenizer(other, read), reference.uri)))
        found.append(_known[key])
    return found


def read_tokenizer(checkpoint: ResolvedCheckpoint, read: Read) -> Tokenizer:
    """Return a checkpoint's tokenizer, whichever files say it."""
    size = _size(checkpoint)
    files = {file.name: file for file in checkpoint.files if file.name in _FILES}
    vocabulary: dict[str, int] = {}
    merges: Sequence[str] | None
    if "tokenizer.json" in files:
        label = f"{checkpoint.uri}: tokenizer.json"
        document = _object(read(checkpoint, files["tokenizer.json"]), label)
        model, added = document.get("model"), document.get("added_tokens")
        if not isinstance(model, dict):
            raise InvalidCheckpointError(f"{label} has no model, so it is no tokenizer")
        # A Unigram model lists pairs of token and score, in the order of the ids.
        stated = model.get("vocab")
        if isinstance(stated, list) and stated and all(map(_is_scored, stated)):
            stated = {pair[0]: number for number, pair in enumerate(stated)}
        vocabulary |= _vocabulary(stated, f"{label}: model.vocab")
        entries = added if isinstance(added, list) else []
        if not all(isinstance(e, dict) and isinstance(e.get("content"), str) for e in entries):
            raise InvalidCheckpointError(f"{label}: added_tokens is not a list of tokens")
        vocabulary |= _vocabulary(
            {entry["content"]: entry.get("id") for entry in entries}, f"{label}: added_tokens"
        )
        merges = _merges(model["merges"], f"{label}: model.merges") if "merges" in model else None
        if "vocab.json" in files:
            _refuse_contradiction(checkpoint, vocabulary, read(checkpoint, files["vocab.json"]))
    elif "vocab.txt" in files:
        lines = _lines(read(checkpoint, files["vocab.txt"]), f"{checkpoint.uri}: vocab.txt")
        vocabulary |= {token: number for number, token in enumerate(lines)}
        merges = None
    else:
        label = f"{checkpoint.uri}: vocab.json"
        vocabulary |= _vocabulary(_object(read(checkpoint, files["vocab.json"]), label), label)
        merges = None
        if "merges.txt" in files:
            label = f"{checkpoint.uri}: merges.txt"
            lines = _lines(read(checkpoint, files["merges.txt"]), label)
            merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    for token, number in _added(checkpoint).items():
        vocabulary.setdefault(token, number)
    ids = {_RENAMED.get(token, token): n for token, n in vocabulary.items() if n < size}
    return Tokenizer(ids, {number: token for token, number in ids.items()}, merges)


def _refuse_contradiction(
    checkpoint: ResolvedCheckpoint, vocabulary: Mapping[str, int], content: bytes
) -> None:
    """Raise InvalidCheckpointError where vocab.json gives tokens other ids than tokenizer.json.

    Which of the two is read depends on the library.
    """
    label = f"{checkpoint.uri}: vocab.json"
    for token, number in _vocabulary(_object(content, label), label).items():
        if vocabulary.get(token, number) != number:
            raise InvalidCheckpointError(
                f"{label} says {number} for {ascii(token)[:60]}, tokenizer.json "
                f"{vocabulary[token]}; the files belong to two models"
            )


def _check_spoken(checkpoint: ResolvedCheckpoint, tokenizer: Tokenizer) -> None:
    """Raise InvalidCheckpointError where a language's or task's token is not the tokenizer's."""
    for token, number in checkpoint.architecture.stated_ids(checkpoint).items():
        known = tokenizer.ids.get(_RENAMED.get(token, token))
        if known != number:
            raise InvalidCheckpointError(
                f"{checkpoint.uri}: {GENERATION_CONFIG} says {number} for {token}, the tokenizer "
                f"{'nothing' if known is None else known}; its files (vocab.json without "
                "added_tokens.json, say) are not whole, or belong to another model"
            )


def _differences(own: Tokenizer, other: Tokenizer, uri: str) -> list[str]:
    """Return what the other tokenizer says otherwise; a token that only one has is no difference.

    (Those saved before 2023 lack the timestamps, which have the same ids in all.)
    """
    problems = []
    moved = [t for t, number in other.ids.items() if own.ids.get(t, number) != number]
    listed = [f"{ascii(t)[:60]} {other.ids[t]} and {own.ids[t]}" for t in moved[:_SHOWN]]
    if not moved:
        moved = [t for t, n in other.ids.items() if own.tokens.get(n, t) != t and t not in own.ids]
        listed = [
            f"id {other.ids[t]} is {ascii(t)[:60]} and {ascii(own.tokens[other.ids[t]])[:60]}"
            for t in moved[:_SHOWN]
        ]
    if moved:
        more = f" and {len(moved) - _SHOWN:,} more" if len(moved) > _SHOWN else ""
        problems.append(
            f"its tokenizer has other ids than that of {uri}: {', '.join(listed)}{more}; rows of "
            "unlike tokens cannot be merged"
        )
    if own.merges is not None and other.merges is not None and own.merges != other.merges:
        at = next(
            (k for k, (a, b) in enumerate(zip(own.merges, other.merges, strict=False)) if a != b),
            min(len(own.merges), len(other.merges)),
        )
        problems.append(
            f"its tokenizer has other merges than that of {uri}, from number {at:,} on "
            f"({len(other.merges):,} and {len(own.merges):,}): the same text would become other "
            "tokens"
        )
    return problems


def _identity(checkpoint: ResolvedCheckpoint) -> object:
    """Return what stays the same while the tokenizer's files do."""
    files = tuple(file for file in checkpoint.files if file.name in _FILES)
    added = json.dumps(_added(checkpoint))
    pinned = all(file.is_pinned for file in files)
    # What may change unseen is only known while it is looked at.
    spoken = json.dumps(checkpoint.architecture.stated_ids(checkpoint))
    return (files, added, spoken, _size(checkpoint), None if pinned else object())


def _size(checkpoint: ResolvedCheckpoint) -> float:
    """Return how many rows of the vocabulary are looked at: all that config.json states."""
    size = checkpoint.config.get("vocab_size")
    return size if type(size) is int else inf


def _keep(key: object, found: tuple[str, ...]) -> None:
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[key] = found


def _added(checkpoint: ResolvedCheckpoint) -> dict[str, int]:
    """Return the tokens that stand outside the vocabulary's own files."""
    documents = checkpoint.documents
    decoder = documents.get(TOKENIZER_CONFIG, {}).get("added_tokens_decoder") or {}
    label = f"{checkpoint.uri}: {TOKENIZER_CONFIG}: added_tokens_decoder"
    try:
        named = {token["content"]: int(number) for number, token in decoder.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidCheckpointError(f"{label} is not a table of ids and tokens") from None
    label = f"{checkpoint.uri}: added_tokens.json"
    return _vocabulary(dict(documents.get("added_tokens.json", {})), label) | named


def _is_scored(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)


def _object(content: bytes, label: str) -> dict[str, Any]:
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidCheckpointError(f"{label} is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidCheckpointError(f"{label} is not a JSON object")
    return document


def _vocabulary(found: object, label: str) -> dict[str, int]:
    if isinstance(found, dict) and found and all(isinstance(v, dict) for v in found.values()):
        # A wav2vec2 of many languages (MMS) has a table for each.
        found = {
            f"{code}/{token}": n for code, table in found.items() for token, n in table.items()
        }
    if not isinstance(found, dict) or not all(
        isinstance(token, str) and type(number) is int and 0 <= number < 2**31
        for token, number in found.items()
    ):
        raise InvalidCheckpointError(f"{label} is not a table of tokens and their ids")
    return found


def _merges(found: object, label: str) -> list[str]:
    """Return the merges as lines; newer files have each as a pair."""
    lines: list[str] = []
    for entry in found if isinstance(found, list) else [None]:
        if isinstance(entry, str):
            lines.append(entry)
        elif isinstance(entry, list) and [type(part) for part in entry] == [str, str]:
            lines.append(" ".join(entry))
        else:
            raise InvalidCheckpointError(f"{label} is not a list of merges")
    return lines


def _lines(content: bytes, label: str) -> list[str]:
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise InvalidCheckpointError(f"{label} is not UTF-8") from None
    return [line.rstrip("\r") for line in lines]
