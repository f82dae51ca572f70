"""Vocabularies that grew: experts whose embeddings have rows for tokens beyond the reference's.

The rows that the reference has are merged as any tensor. The others are carried over from the
experts that have them, and the artifact's tokenizer is that of the largest one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from app.contract.errors import Problem
from app.contract.problems import shown
from app.contract.tensors import AddedRows, TensorHeader
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.compatibility import TiedCopy
from app.sources.tokenizers import Read, read_tokenizer, states_ids

_SIZE = "vocab_size"


@dataclass(frozen=True)
class Growth:
    """How the vocabulary grew: the tokens beyond the reference's, by id, and the experts' sizes.

    `lender` is the expert whose tokenizer the artifact has, by its position.
    """

    reference_size: int
    sizes: tuple[int, ...]
    tokens: Mapping[int, str]
    lender: int

    @property
    def size(self) -> int:
        """The artifact's number of rows."""
        return self.sizes[self.lender]

    def holders(self, row: int) -> tuple[int, ...]:
        """Return the experts that have a row, by position."""
        return tuple(number for number, size in enumerate(self.sizes) if size > row)


def grown_sizes(
    reference: ResolvedCheckpoint, experts: Sequence[ResolvedCheckpoint]
) -> tuple[int, tuple[int, ...]] | None:
    """Return the number of tokens of the reference and of each expert; None if none has more."""
    sizes = [one.config.get(_SIZE) for one in (reference, *experts)]
    known = [size for size in sizes if type(size) is int]
    if not reference.architecture.token_rows or len(known) < len(sizes) or max(known) == known[0]:
        return None
    return known[0], tuple(known[1:])


def growth_of(
    sizes: tuple[int, tuple[int, ...]],
    experts: Sequence[tuple[str, str, ResolvedCheckpoint]],
    read: Read,
) -> tuple[Growth, list[Problem]]:
    """Return what was added, and why it cannot be merged (nothing: it can).

    `experts` go with the field that each comes from and its name.
    """
    first, theirs = sizes
    ids: dict[str, tuple[int, str]] = {}
    tokens: dict[int, tuple[str, str]] = {}
    problems = []
    for size, (param, name, expert) in zip(theirs, experts, strict=True):
        if size <= first:
            continue
        if not states_ids(expert):
            message = (
                f"{expert.uri}: it has {size - first:,} tokens more than the {first:,} of the "
                "reference, and no tokenizer that says which; save its tokenizer beside it"
            )
            problems.append(Problem(message, param))
            continue
        for token, number in read_tokenizer(expert, read).ids.items():
            if number < first:
                continue
            known, whose = tokens.setdefault(number, (token, name))
            place, owner = ids.setdefault(token, (number, name))
            if known != token:
                said = f"{number} is {shown(token)} here and {shown(known)} in {whose}"
            elif place != number:
                said = f"{shown(token)} is {number} here and {place} in {owner}"
            else:
                continue
            message = f"{expert.uri}: of the tokens beyond the reference's, {said}"
            problems.append(Problem(f"{message}; added tokens must have one id in all", param))
    added = {number: token for number, (token, _) in sorted(tokens.items())}
    return Growth(first, theirs, added, theirs.index(max(theirs))), problems


def cropped(
    expert: ResolvedCheckpoint, size: int
) -> tuple[ResolvedCheckpoint, dict[str, TensorHeader]]:
    """Return an expert with no more rows than the reference, and its whole tensors by name."""
    whole = {
        name: expert.tensors[name]
        for name in expert.architecture.token_rows
        if name in expert.tensors
        and expert.tensors[name].shape[:1] == (expert.config[_SIZE],)
        and expert.config[_SIZE] > size
    }
    parts = {name: _rows(header, name, 0, size) for name, header in whole.items()}
    return replace(
        expert, config={**expert.config, _SIZE: size}, tensors={**expert.tensors, **parts}
    ), whole


def added_rows(
    growth: Growth,
    reference: Mapping[str, TensorHeader],
    whole: Sequence[Mapping[str, TensorHeader]],
) -> Iterator[AddedRows]:
    """Yield the rows beyond the reference's, in order, those of the same experts together.

    `whole` are each expert's tensors from `cropped`; `reference` the tensors to merge.
    """
    edges = sorted({growth.reference_size, *growth.sizes})
    edges = edges[edges.index(growth.reference_size) :]
    for name, header in reference.items():
        if not any(name in tensors for tensors in whole):
            continue
        for start, stop in pairwise(edges):
            holders = growth.holders(start)
            entries = _rows(whole[holders[0]][name], _part(name, start, stop), start, stop)
            yield AddedRows(name, start, stop, holders, replace(entries, dtype=header.dtype))


def with_rows(
    expert: ResolvedCheckpoint,
    whole: Mapping[str, TensorHeader],
    rows: Sequence[AddedRows],
    tied: Mapping[str, str],
    number: int,
) -> tuple[ResolvedCheckpoint, list[TiedCopy]]:
    """Return a cropped expert with its added rows, each part as a tensor of its own.

    Copies of tied rows are still to be compared.
    """
    parts, copies = {}, []
    for added in rows:
        if number not in added.holders:
            continue
        parts[added.target.name] = _rows(
            whole[added.tensor], added.target.name, added.start, added.stop
        )
        for copy in (name for name, target in tied.items() if target == added.tensor):
            if copy in whole:
                name = _part(copy, added.start, added.stop)
                parts[name] = _rows(whole[copy], name, added.start, added.stop)
                copies.append(TiedCopy(number, name, added.target.name))
    return replace(expert, tensors={**expert.tensors, **parts}), copies


def with_vocabulary(reference: ResolvedCheckpoint, growth: Growth) -> ResolvedCheckpoint:
    """Return the reference with the artifact's number of tokens, and without its tokenizer."""
    dropped = reference.architecture.tokenizer_files
    return replace(
        reference,
        config={**reference.config, _SIZE: growth.size},
        documents={n: d for n, d in reference.documents.items() if n not in dropped},
        files=tuple(file for file in reference.files if file.name not in dropped),
    )


def _part(name: str, start: int, stop: int) -> str:
    return f"{name}[{start}:{stop}]"


def _rows(header: TensorHeader, name: str, start: int, stop: int) -> TensorHeader:
    """Return rows of a stored tensor under another name."""
    row = header.size_bytes // header.shape[0]
    return replace(
        header,
        name=name,
        shape=(stop - start, *header.shape[1:]),
        start=header.start + start * row,
        end=header.start + stop * row,
    )
