"""Reads a checkpoint's folder: which files are used, its config, and every tensor's header."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from app.contract.errors import InvalidCheckpointError, Problem, SourceTooLargeError
from app.contract.problems import shown
from app.contract.tensors import ADAPTER_WEIGHTS, TensorHeader
from app.sources.adapters import ADAPTER_CONFIG, Adapter, read_adapter
from app.sources.architectures.architecture import CONFIG, MOST_CONFIG_BYTES, Description
from app.sources.architectures.registry import architecture_of
from app.sources.checkpoint import SourceFile
from app.sources.json_text import BadJsonError, read_object
from app.sources.pickles import ADAPTER_PICKLE, PICKLES, conversion_of, is_openai_name, renaming_of
from app.sources.safetensors import MOST_TENSORS, parse_header
from app.sources.schemes.folder import SourceFolder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Twice as large as a header of as many tensors.
_MAX_INDEX_BYTES = 8_000_000
# A merge keeps each open.
_MOST_SHARDS = 64


@dataclass
class Contents:
    """What a folder's JSON files say, its tensors in stored order, and the files used.

    `metadata` is that of the safetensors headers.
    """

    description: Description = field(default_factory=lambda: Description({}))
    tensors: dict[str, TensorHeader] = field(default_factory=dict)
    files: tuple[SourceFile, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    adapter: Adapter | None = None


def read_contents(folder: SourceFolder, max_bytes: int, *, weights_alone: bool = False) -> Contents:
    """Return what the folder holds, without reading a tensor; `weights_alone`: nothing else.

    Raises:
        InvalidCheckpointError: with all that is wrong in `problems`.
        SourceTooLargeError: the files used have more than `max_bytes` together.

    """
    found = folder.find((CONFIG, WEIGHTS, INDEX))
    if not weights_alone and not found.keys() & {WEIGHTS, INDEX}:
        adapter = folder.find((ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE))
        if adapter:
            return _read_adapter(folder, adapter, max_bytes)
    problems: list[str] = []
    contents = Contents()
    weights: dict[str, SourceFile] = {}
    weight_map: Mapping[str, str] | None = None
    used: list[SourceFile] = []
    config: dict[str, Any] = {}
    if not weights_alone:
        with _collecting(problems):
            config = _read_config(folder, found)
            used, contents.description = _read_companions(folder, found[CONFIG], config)
    problems += [f"{folder.label}: {problem}" for problem in contents.description.problems]
    with _collecting(problems):
        weights, weight_map = _weight_files(folder, found)
    if weight_map is not None:
        used.append(found[INDEX])
    contents.files = (*used, *weights.values())
    check_quota(folder.label, sum(file.size for file in contents.files), max_bytes)
    for file in weights.values():
        with _collecting(problems):
            _read_weights(folder, file, contents)
    if not problems:
        problems += _openai_layout(folder.label, config, contents.tensors, weights)
    if weight_map is not None and not problems:
        problems += _compare_with_index(folder.label, weight_map, contents.tensors)
    if problems:
        raise _invalid(problems)
    return contents


def _read_adapter(
    folder: SourceFolder, found: Mapping[str, SourceFile], max_bytes: int
) -> Contents:
    """Return what an adapter's folder holds: its own tensors, and nothing of the base."""
    if ADAPTER_CONFIG not in found:
        raise InvalidCheckpointError(
            f"{folder.label}: there is no {ADAPTER_CONFIG} beside the adapter's weights"
        )
    if ADAPTER_WEIGHTS not in found:
        pickled = (
            f", and pickled files such as {ADAPTER_PICKLE} are never read; convert it with: "
            f"{conversion_of(ADAPTER_PICKLE, has_config=False)}"
        )
        raise InvalidCheckpointError(
            f"{folder.label}: there is no {ADAPTER_WEIGHTS}"
            + (pickled if ADAPTER_PICKLE in found else "")
        )
    contents = Contents(files=(found[ADAPTER_CONFIG], found[ADAPTER_WEIGHTS]))
    check_quota(folder.label, sum(file.size for file in contents.files), max_bytes)
    problems: list[str] = []
    with _collecting(problems):
        _check_size(folder, found[ADAPTER_CONFIG], MOST_CONFIG_BYTES)
        contents.adapter, wrong = read_adapter(_read_json(folder, found[ADAPTER_CONFIG]))
        problems += [f"{folder.label}: {text}" for text in wrong]
    with _collecting(problems):
        _read_weights(folder, found[ADAPTER_WEIGHTS], contents)
    if not problems and not contents.tensors:
        problems.append(f"{folder.label}: {ADAPTER_WEIGHTS} holds no tensor")
    if problems:
        raise _invalid(problems)
    return contents


def check_quota(label: str, size: int, max_bytes: int) -> None:
    """Raise SourceTooLargeError where a source has more bytes than allowed."""
    if size > max_bytes:
        raise SourceTooLargeError(
            f"{label}: the files used have {size:,} bytes, over the {max_bytes:,} allowed for one "
            "source (AFLUENTE_MAX_SOURCE_BYTES)"
        )


@contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Collect an InvalidCheckpointError's message and go on, to report all of them at once."""
    try:
        yield
    except InvalidCheckpointError as error:
        problems += [problem.message for problem in error.as_problems()]


def _invalid(problems: list[str]) -> InvalidCheckpointError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidCheckpointError(
        problems[0] + more, problems=[Problem(message) for message in problems]
    )


def _read_config(folder: SourceFolder, found: Mapping[str, SourceFile]) -> dict[str, Any]:
    if CONFIG not in found:
        hint = ""
        if found.keys() & {WEIGHTS, INDEX}:
            hint = '. If it holds differences from the base, say so: "form": "difference"'
        raise InvalidCheckpointError(
            f"{folder.label}: there is no config.json; a checkpoint is a Hugging Face model folder"
            + hint
        )
    _check_size(folder, found[CONFIG], MOST_CONFIG_BYTES)
    return _read_json(folder, found[CONFIG])


def _read_companions(
    folder: SourceFolder, config_file: SourceFile, config: dict[str, Any]
) -> tuple[list[SourceFile], Description]:
    """Return the files that the config's architecture uses besides weights, and what they say."""
    architecture = architecture_of(config)
    files = folder.find(name for name in architecture.max_bytes if name != CONFIG)
    problems: list[str] = []
    documents = {CONFIG: config}
    for name, file in files.items():
        with _collecting(problems):
            _check_size(folder, file, architecture.max_bytes[name])
            if name in architecture.documents:
                documents[name] = _read_json(folder, file)
    if problems:
        raise _invalid(problems)
    return [config_file, *files.values()], architecture.read(documents)


def _check_size(folder: SourceFolder, file: SourceFile, most_bytes: int) -> None:
    if file.size > most_bytes:
        raise InvalidCheckpointError(
            f"{folder.label}: {file.name} has {file.size:,} bytes, over {most_bytes:,}"
        )


def _read_json(folder: SourceFolder, file: SourceFile) -> dict[str, Any]:
    label = f"{folder.label}: {file.name}"
    try:
        return read_object(folder.read_prefix(file, file.size))
    except BadJsonError as error:
        raise InvalidCheckpointError(f"{label} {error}") from None


def _weight_files(
    folder: SourceFolder, found: Mapping[str, SourceFile]
) -> tuple[dict[str, SourceFile], Mapping[str, str] | None]:
    """Return the safetensors files in order, and the map of the index if they are shards."""
    # As in transformers, a whole file takes precedence over shards.
    if WEIGHTS in found:
        return {WEIGHTS: found[WEIGHTS]}, None
    if INDEX in found:
        weight_map = _read_index(folder, found[INDEX])
        names = sorted(set(weight_map.values()))
        if len(names) > _MOST_SHARDS:
            raise InvalidCheckpointError(
                f"{folder.label}: {INDEX} names {len(names):,} shards, over {_MOST_SHARDS}"
            )
        shards = folder.find(names)
        missing = [name for name in names if name not in shards]
        if missing:
            raise InvalidCheckpointError(
                f"{folder.label}: {INDEX} names shards that are not there: {sample(missing)}"
            )
        return {name: shards[name] for name in names}, weight_map
    pickles = folder.find(PICKLES)
    if pickles:
        name = next(iter(pickles))
        raise InvalidCheckpointError(
            f"{folder.label}: the weights are in {name} only, and pickled files are never read; "
            f"convert it in its folder with: {conversion_of(name, has_config=CONFIG in found)}"
        )
    raise InvalidCheckpointError(f"{folder.label}: there is neither {WEIGHTS} nor {INDEX}")


def _read_index(folder: SourceFolder, file: SourceFile) -> dict[str, str]:
    label = f"{folder.label}: {file.name}"
    _check_size(folder, file, _MAX_INDEX_BYTES)
    weight_map = _read_json(folder, file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidCheckpointError(f"{label} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise InvalidCheckpointError(
                f"{label} names the shard {shown(shard)}; a shard is a .safetensors file "
                "beside the index"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and not name.startswith(".")
        and not any(mark in name for mark in "/\\%?#:")
    )


def _read_weights(folder: SourceFolder, file: SourceFile, contents: Contents) -> None:
    def read_prefix(length: int) -> bytes:
        return folder.read_prefix(file, length)

    label = f"{folder.label}: {file.name}"
    header = parse_header(read_prefix, file.size, label, file=file.name)
    twice = [name for name in header.tensors if name in contents.tensors]
    if twice:
        raise InvalidCheckpointError(f"{label} holds tensors of another shard: {sample(twice)}")
    if len(contents.tensors) + len(header.tensors) > MOST_TENSORS:
        raise InvalidCheckpointError(f"{label}: over {MOST_TENSORS:,} tensors with other shards'")
    contents.tensors.update(header.tensors)
    contents.metadata.update(header.metadata)


def _openai_layout(
    label: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorHeader],
    weights: Mapping[str, SourceFile],
) -> list[str]:
    found = [name for name in tensors if is_openai_name(name)]
    if config.get("model_type") != "whisper" or not found:
        return []
    return [
        f"{label}: {found[0]} is a name of OpenAI's layout, not of transformers'; rename all "
        f"tensors in their folder with: {renaming_of(weights)}"
    ]


def _compare_with_index(
    label: str, weight_map: Mapping[str, str], tensors: Mapping[str, TensorHeader]
) -> list[str]:
    absent = [n for n, shard in weight_map.items() if n not in tensors or tensors[n].file != shard]
    unlisted = [name for name in tensors if name not in weight_map]
    problems = []
    if absent:
        problems.append(f"{label}: tensors not in the shard that {INDEX} names: {sample(absent)}")
    if unlisted:
        problems.append(f"{label}: tensors that {INDEX} does not list: {sample(unlisted)}")
    return problems


def sample(names: Iterable[str], shown: int = 3) -> str:
    """Return the first few names and how many more there are."""
    listed = list(names)
    text = ", ".join(name if len(name) <= 120 else f"{name[:117]}..." for name in listed[:shown])
    return f"{text} and {len(listed) - shown} more" if len(listed) > shown else text
