"""Says whether checkpoints can be merged with each other, and all the reasons why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.contract.errors import Problem
from app.contract.tensors import TensorHeader
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.configs import CONFIG, PREPROCESSOR
from app.sources.layout import sample
from app.sources.whisper import (
    EMBEDDING,
    OUTPUT,
    SIZE_KEYS,
    config_problems,
    expected_shapes,
    is_output_tied,
)

_GELU = "gelu"
# What features are made by.
_HEARING = ("feature_size", "hop_length", "n_fft", "chunk_length", "padding_value")
_Tensors = Mapping[str, TensorHeader]
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TiedCopy:
    """A tied tensor that a checkpoint stores all the same: equal to `target`, or refused.

    `checkpoint` is None for the reference, else the position among the others.
    """

    checkpoint: int | None
    name: str
    target: str


@dataclass(frozen=True)
class CheckedTensors:
    """The tensors to merge: the reference's headers in its stored order, tied ones once.

    Every checkpoint has each of them in the same shape, floating-point in all or of one dtype in
    all. `tied` maps each tied name to the one it is stored under; `tied_copies` are still to be
    compared byte for byte by whoever reads tensors.
    """

    tensors: _Tensors
    tied: Mapping[str, str]
    tied_copies: tuple[TiedCopy, ...]


def check_compatible(
    reference: ResolvedCheckpoint,
    others: Sequence[tuple[str, ResolvedCheckpoint]],
    *,
    reference_param: str | None = None,
) -> tuple[CheckedTensors, list[Problem]]:
    """Return the tensors to merge, and every problem there is (none: they fit).

    `others` go with the field that each comes from (`checkpoints[1].uri`). The reference must be
    what its own config says; the others must be as the reference.
    """
    param = reference_param if reference_param is not None else reference.param
    messages = config_problems(reference.config)
    tied = {OUTPUT: EMBEDDING} if is_output_tied(reference.config) else {}
    tensors = _without(reference.tensors, tied)
    if not messages:
        messages = _against_config(tensors, expected_shapes(reference.config))
        messages += _against_shapes(_stored_ties(reference, tied), _tied_shapes(tensors, tied))
        messages += _uncomputable(tensors)
    problems = [Problem(f"{reference.uri}: {message}", param) for message in messages]
    for label, other in others:
        messages = _against_reference(other, reference, tensors, tied)
        problems += [Problem(f"{other.uri}: {message}", label) for message in messages]
    copies = [TiedCopy(None, name, tied[name]) for name in _stored_ties(reference, tied)]
    for position, (_, other) in enumerate(others):
        copies += [TiedCopy(position, name, tied[name]) for name in _stored_ties(other, tied)]
    return CheckedTensors(tensors, tied, tuple(copies)), problems


def _against_reference(
    other: ResolvedCheckpoint,
    reference: ResolvedCheckpoint,
    expected: _Tensors,
    tied: Mapping[str, str],
) -> list[str]:
    messages = config_problems(other.config)
    if messages:
        return messages
    messages = [
        f"config.json says {key} {other.config[key]}, that of {reference.uri} "
        f"{reference.config.get(key)}: the sizes must be equal"
        for key in SIZE_KEYS
        if other.config[key] != reference.config.get(key)
    ]
    messages += _against_meaning(other, reference)
    if is_output_tied(other.config) != is_output_tied(reference.config):
        messages.append(
            f"config.json ties the output projection to the embedding, that of {reference.uri} "
            "does not, or the other way round"
        )
    # Tensors of other sizes would only repeat, one by one, what the config has said.
    if messages:
        return messages
    tensors = _without(other.tensors, tied)
    messages = _against_names(tensors, expected, f"{reference.uri} has")
    shapes = {name: header.shape for name, header in expected.items()}
    messages += _against_shapes(tensors, shapes)
    messages += _against_shapes(_stored_ties(other, tied), _tied_shapes(expected, tied))
    return messages + _against_dtypes(tensors, expected)


def _against_meaning(other: ResolvedCheckpoint, reference: ResolvedCheckpoint) -> list[str]:
    """Return what makes equal numbers mean something else: the activation, and the features."""
    compared = [
        (CONFIG, "activation_function", other.config, reference.config),
        *(
            (PREPROCESSOR, name, other.documents[PREPROCESSOR], reference.documents[PREPROCESSOR])
            for name in _HEARING
            if PREPROCESSOR in other.documents and PREPROCESSOR in reference.documents
        ),
    ]
    return [
        f"{file} says {name} {theirs.get(name, _GELU)}, that of {reference.uri} "
        f"{ours.get(name, _GELU)}: they must be equal"
        for file, name, theirs, ours in compared
        if theirs.get(name, _GELU) != ours.get(name, _GELU)
    ]


def _against_config(tensors: _Tensors, expected: _Shapes) -> list[str]:
    source = "config.json asks for"
    return _against_names(tensors, expected, source) + _against_shapes(tensors, expected)


def _against_names(tensors: Iterable[str], expected: Iterable[str], whose: str) -> list[str]:
    present, wanted = dict.fromkeys(tensors), dict.fromkeys(expected)
    missing = [name for name in wanted if name not in present]
    extra = [name for name in present if name not in wanted]
    messages = []
    if missing:
        messages.append(f"{_count(missing)} missing of those that {whose}: {sample(missing)}")
    if extra:
        messages.append(f"{_count(extra)} stored beyond those that {whose}: {sample(extra)}")
    return messages


def _against_shapes(tensors: _Tensors, expected: _Shapes) -> list[str]:
    return _differences(
        tensors,
        lambda header: header.name in expected and header.shape != expected[header.name],
        "of another shape",
        lambda header: f"{list(header.shape)} instead of {list(expected[header.name])}",
    )


def _against_dtypes(tensors: _Tensors, expected: _Tensors) -> list[str]:
    def differs(header: TensorHeader) -> bool:
        wanted = expected.get(header.name)
        if wanted is None or header.dtype == wanted.dtype:
            return False
        return not (header.is_float and wanted.is_float)

    return _differences(
        tensors,
        differs,
        "of another dtype",
        lambda header: f"{header.dtype} instead of {expected[header.name].dtype}",
    )


def _uncomputable(tensors: _Tensors) -> list[str]:
    return _differences(
        tensors,
        lambda header: not header.is_float,
        "of a dtype that cannot be merged (F16, BF16, F32 or F64 is needed)",
        lambda header: header.dtype,
    )


def _differences(
    tensors: _Tensors,
    differs: Callable[[TensorHeader], bool],
    what: str,
    detail: Callable[[TensorHeader], str],
) -> list[str]:
    found = [header for header in tensors.values() if differs(header)]
    if not found:
        return []
    listed = sample([f"{header.name} ({detail(header)})" for header in found])
    return [f"{_count(found)} {what}: {listed}"]


def _count(items: Sequence[object]) -> str:
    return "1 tensor is" if len(items) == 1 else f"{len(items):,} tensors are"


def _without(tensors: _Tensors, tied: Mapping[str, str]) -> dict[str, TensorHeader]:
    return {name: header for name, header in tensors.items() if name not in tied}


def _stored_ties(
    checkpoint: ResolvedCheckpoint, tied: Mapping[str, str]
) -> dict[str, TensorHeader]:
    return {name: checkpoint.tensors[name] for name in tied if name in checkpoint.tensors}


def _tied_shapes(tensors: _Tensors, tied: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: tensors[target].shape for name, target in tied.items() if target in tensors}
