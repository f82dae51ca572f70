"""`file://`: folders on this machine, read in place."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

from app.contract.errors import SourceNotAllowedError, SourceNotFoundError
from app.sources.checkpoint import Signature, SourceFile
from app.sources.local import Roots, allowed_path, open_regular, path_of, read_unchanged
from app.sources.pickles import conversion_of
from app.sources.policy import SourcePolicy
from app.sources.schemes.folder import SourceFolder
from app.sources.uris import file_uri, split_uri


class LocalFolder(SourceFolder):
    """A folder on this machine, under one of `roots` (None: anywhere)."""

    roots: Roots = None
    _real_path: Path | None = None

    @property
    @abstractmethod
    def path(self) -> Path:
        """The folder's path, whose links may lead elsewhere."""

    @property
    def real_path(self) -> Path:
        """The path, all links followed when first asked for; SourceError where it is no folder."""
        if self._real_path is None:
            self._real_path = _readable_folder(self.path, self.roots, self.label)
        return self._real_path

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the folder has."""
        folder = self.real_path
        return {name: self._file(name) for name in names if os.path.lexists(folder / name)}

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""
        assert file.path is not None
        assert file.signature is not None
        return read_unchanged(file.path, file.signature, length, self.label_of(file.name))

    def _file(self, name: str) -> SourceFile:
        with open_regular(self.real_path / name, self.roots, self.label_of(name)) as handle:
            status = os.fstat(handle.fileno())
            path = path_of(handle.fileno())
        return SourceFile(name=name, size=status.st_size, path=path, signature=Signature.of(status))


class FileFolder(LocalFolder):
    """The folder or file at a path that the caller names."""

    scheme = "file"
    form = "file:///folder"

    def __init__(self, uri: str, policy: SourcePolicy) -> None:
        super().__init__(uri, policy)
        self._path = _path_in(uri)
        self.name = self._path.absolute().name or "checkpoint"
        self.roots = policy.file_roots

    @property
    def path(self) -> Path:
        """The path in the URI."""
        return self._path

    @property
    def resolved(self) -> str:
        """The URI of the folder, all links followed."""
        return file_uri(self.real_path)

    def as_file(self) -> SourceFile:
        """Return the file, or the folder of a manifest; a link keeps its name and its place."""
        real = allowed_path(self.path, self.roots, self.label)
        size = 0
        if not os.path.isdir(real):  # noqa: PTH112 - false, where Path would raise
            with open_regular(self.path, self.roots, self.label) as handle:
                size = os.fstat(handle.fileno()).st_size
        return SourceFile(self.name, size, path=self.path.absolute())


def _readable_folder(path: Path, roots: Roots, label: str) -> Path:
    real = allowed_path(path, roots, label)
    if not os.path.isdir(real):  # noqa: PTH112 - false, where Path would raise
        if os.path.lexists(real):
            name = os.path.basename(real)  # noqa: PTH119 - as above
            pickled = ""
            if name.endswith((".pt", ".bin")):
                command = conversion_of(name, has_config=False)
                pickled = f". Pickled files are never read; convert it first with: {command}"
            raise SourceNotFoundError(
                f"{label}: this is a file; name the folder that holds config.json and the weights"
                + pickled
            )
        raise SourceNotFoundError(f"{label}: there is no such folder")
    if not os.access(real, os.R_OK | os.X_OK):
        raise SourceNotFoundError(f"{label}: the folder cannot be read (Permission denied)")
    return real


def _path_in(uri: str) -> Path:
    """Return the path in a file URI, or a plain path as it is."""
    if not uri.lower().startswith("file:"):
        # Leaves `~nobody` as it is, where Path would raise.
        return Path(os.path.expanduser(uri))  # noqa: PTH111
    parts = split_uri(uri, names_server=False)
    if parts.host not in ("", "localhost") or parts.port is not None:
        raise SourceNotAllowedError(
            f"{uri}: a file URI names no host; write file:///{parts.host}{parts.path}"
        )
    if not parts.path.startswith("/"):
        raise SourceNotAllowedError(f"{uri}: a file URI needs an absolute path: file:///…")
    return Path("/", *parts.segments)
