"""Says whether checkpoints can be merged with each other, and all the reasons why not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.contract.errors import Problem
from app.contract.problems import shown
from app.contract.tensors import TensorHeader
from app.sources.architectures.architecture import Shapes, Tensors
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.layout import sample


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

    tensors: Tensors
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
    family = reference.architecture
    inputs = [reference.tensors, *(other.tensors for _, other in others)]
    tied = family.tied(reference.config, inputs)
    tensors = _without(reference.tensors, tied.keys() | family.left_out(inputs))
    messages = family.config_problems(reference.config)
    if not messages:
        expected = family.expected_shapes(reference.config)
        messages = [] if expected is None else _against_config(tensors, expected)
        messages += _against_shapes(_stored_ties(reference, tied), _tied_shapes(tensors, tied))
        messages += _uncomputable(tensors, family.copied_dtypes)
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
    expected: Tensors,
    tied: Mapping[str, str],
) -> list[str]:
    if _kind(other) != _kind(reference):
        return [
            f"config.json says {_named(other)}, that of {reference.uri} {_named(reference)}: "
            "checkpoints of two architectures cannot be merged"
        ]
    family = reference.architecture
    # Tensors of other sizes would only repeat, one by one, what the config has said.
    messages = family.config_problems(other.config) or [
        f"{file} says {field} {shown(theirs)}, that of {reference.uri} {shown(ours)}: they must be "
        "equal"
        for file, field, theirs, ours in family.differences(other, reference)
    ]
    if messages:
        return messages
    tensors = _without(other.tensors, tied.keys() | family.left_out([other.tensors, expected]))
    messages = _against_names(tensors, expected, f"{reference.uri} has")
    shapes = {name: header.shape for name, header in expected.items()}
    messages += _against_shapes(tensors, shapes)
    messages += _against_shapes(_stored_ties(other, tied), _tied_shapes(expected, tied))
    return messages + _against_dtypes(tensors, expected)


def _kind(checkpoint: ResolvedCheckpoint) -> tuple[object, object]:
    return checkpoint.architecture, checkpoint.config.get("model_type")


def _named(checkpoint: ResolvedCheckpoint) -> str:
    classes = checkpoint.config.get("architectures")
    named = classes[0] if isinstance(classes, list) and len(classes) == 1 else classes
    return f"model_type {shown(checkpoint.config.get('model_type'))} ({shown(named)})"


def _against_config(tensors: Tensors, expected: Shapes) -> list[str]:
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


def _against_shapes(tensors: Tensors, expected: Shapes) -> list[str]:
    return _differences(
        tensors,
        lambda header: header.name in expected and header.shape != expected[header.name],
        "of another shape",
        lambda header: f"{list(header.shape)} instead of {list(expected[header.name])}",
    )


def _against_dtypes(tensors: Tensors, expected: Tensors) -> list[str]:
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


def _uncomputable(tensors: Tensors, copied: Collection[str]) -> list[str]:
    found = _differences(
        tensors,
        lambda header: not header.is_float and header.dtype not in copied,
        "of a dtype that cannot be merged (F16, BF16, F32 or F64 is needed)",
        lambda header: header.dtype,
    )
    if not found and not any(header.is_float for header in tensors.values()):
        return ["no tensor is floating-point, so there is nothing to merge"]
    return found


def _differences(
    tensors: Tensors,
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


def _without(tensors: Tensors, names: Collection[str]) -> dict[str, TensorHeader]:
    return {name: header for name, header in tensors.items() if name not in names}


def _stored_ties(
    checkpoint: ResolvedCheckpoint, tied: Mapping[str, str]
) -> dict[str, TensorHeader]:
    return {name: checkpoint.tensors[name] for name in tied if name in checkpoint.tensors}


def _tied_shapes(tensors: Tensors, tied: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: tensors[target].shape for name, target in tied.items() if target in tensors}
