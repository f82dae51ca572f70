"""What is known of a checkpoint before its tensors are read: config, headers, files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.contract.tensors import TensorHeader
from app.sources.adapters import Adapter
from app.sources.architectures.architecture import Architecture
from app.sources.architectures.registry import architecture_of


@dataclass(frozen=True)
class Signature:
    """A local file's stat fields: while they are the same, its bytes are taken to be, too."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        """Return the signature of a stat result."""
        times = status.st_mtime_ns, status.st_ctime_ns
        return cls(status.st_size, *times, status.st_ino, status.st_dev)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: a `path` (links followed) and its signature, or a `url`.

    `sha256` and `version` pin a remote file, where its server states one: a version (a strong ETag,
    a commit) changes whenever the bytes do.
    """

    name: str
    size: int
    path: Path | None = None
    signature: Signature | None = None
    url: str | None = None
    version: str | None = None
    sha256: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Return whether other bytes would be noticed."""
        return any((self.signature, self.version, self.sha256))


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """A checkpoint pinned and described, none of its tensors read.

    `resolved` is the URI with its revision pinned (or its links followed); `name` suggests one
    from the URI's last segment; `tensors` are in stored order (by file, then by offset);
    `metadata` is that of the safetensors headers. `config` and `documents`, the other JSON files by
    name, hold the fields that its architecture keeps. `languages` are the codes of the languages
    that it can be told, None if it is told none. `adapter` is None for a checkpoint in full; one
    with it has no config, and tensors of its own names, until it is `applied` to its base, as has a
    `difference` (a checkpoint that holds an expert minus its base). `prefix` is what the files have
    before the names in `tensors`.
    """

    uri: str
    resolved: str
    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]
    files: tuple[SourceFile, ...]
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    languages: frozenset[str] | None = None
    param: str | None = None
    adapter: Adapter | None = None
    difference: bool = False
    prefix: str = ""

    @property
    def needs_base(self) -> bool:
        """Whether it is a change of a base, and not a checkpoint in full."""
        return self.adapter is not None or self.difference

    @property
    def architecture(self) -> Architecture:
        """The family of models that its config.json is of."""
        return architecture_of(self.config)

    def summary(self) -> dict[str, str | None]:
        """Return what a merge of such checkpoints says of its architecture."""
        return self.architecture.summary(self.config)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all the files used."""
        return sum(file.size for file in self.files)

    def file(self, name: str) -> SourceFile | None:
        """Return the file of that name, or None."""
        return next((file for file in self.files if file.name == name), None)
