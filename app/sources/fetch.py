"""Fetches the files of a resolved checkpoint, and takes their digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory

from app.contract.errors import SourceChangedError, SourceError
from app.sources.adapters import OF_BASE
from app.sources.blobs import BlobCache, Progress
from app.sources.checkpoint import ResolvedCheckpoint, Signature
from app.sources.completion import borrowed, companions_of, copied_names
from app.sources.digests import checkpoint_sha256, local_sha256
from app.sources.local import in_proc, open_unchanged
from app.sources.policy import SourcePolicy
from app.sources.resolve import with_param
from app.sources.schemes import open_folder
from app.sources.schemes.folder import RemoteFolder, SourceFolder


class FetchStoppedError(Exception):
    """`should_stop` returned true; the next fetch goes on with what was downloaded."""


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on this machine. Read its files by `open` or in `opened`, not by their paths.

    `paths` are the files used, by name, links followed; `sha256` is that of the sorted list of
    (name, sha256). One that needs a base has it in `base`.
    """

    resolved: ResolvedCheckpoint
    paths: Mapping[str, Path]
    file_sha256: Mapping[str, str]
    sha256: str
    signatures: Mapping[str, Signature] = field(repr=False)
    base: LocalCheckpoint | None = None

    def open(self, name: str) -> FileIO:
        """Open a file, unbuffered; SourceChangedError if it changed since it was fetched."""
        if self.base is not None and name.startswith(OF_BASE):
            return self.base.open(name.removeprefix(OF_BASE))
        try:
            label = f"{self.resolved.uri}: {name}"
            return open_unchanged(self.paths[name], self.signatures[name], label)
        except SourceError as error:
            raise with_param(error, self.resolved.param) from None

    @contextmanager
    def opened(self, lender: LocalCheckpoint | None = None) -> Iterator[Path]:
        """Yield a folder that libraries can load, unaffected by changes at the files' own paths.

        Its JSON files hold known fields only; weights and vocabulary are links to open files, which
        only this process can follow. Files that the checkpoint lacks are the lender's. Raises
        SourceChangedError.
        """
        made = companions_of(self.resolved, lender.resolved if lender else None)
        architecture = self.resolved.architecture
        # Neither the JSON files nor a part of a tokenizer.
        dropped = architecture.max_bytes.keys() - set(copied_names(self.resolved))
        with TemporaryDirectory(prefix="afluente-") as parent, ExitStack() as stack:
            # A name in a URL may be longer than a file system allows.
            folder = Path(parent, self.resolved.name[:60])
            folder.mkdir()
            for name, content in made.items():
                (folder / name).write_bytes(content)
            links = [(self, name) for name in self.paths if name not in dropped]
            if lender is not None:
                lent = borrowed(self.resolved, lender.resolved)
                links += [(lender, name) for name in lent if name in architecture.copied]
            for owner, name in links:
                handle = stack.enter_context(owner.open(name))
                (folder / name).symlink_to(in_proc(handle.fileno()))
            yield folder

    def verify_unchanged(self) -> None:
        """Raise SourceChangedError, naming the file, if one changed since it was fetched."""
        for name, path in self.paths.items():
            try:
                unchanged = Signature.of(path.stat()) == self.signatures[name]
            except OSError:
                unchanged = False
            if not unchanged:
                raise SourceChangedError(
                    f"{self.resolved.uri}: {name} changed or vanished while it was used",
                    param=self.resolved.param,
                )


def fetch(
    resolved: ResolvedCheckpoint,
    policy: SourcePolicy,
    *,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> LocalCheckpoint:
    """Return the checkpoint's files on this machine, with their digests.

    Local files are used where they are; others are downloaded into the cache. `progress` is
    called with (bytes done, bytes in all).

    Raises:
        SourceError: a file is gone, changed since it was resolved, or cannot be downloaded.
        StorageError: the cache cannot be written.
        FetchStoppedError: `should_stop` returned true.

    """
    meter = _Meter(resolved.size_bytes, progress, should_stop)
    try:
        return _fetch(resolved, policy, meter)
    except SourceError as error:
        raise with_param(error, resolved.param) from None


def _fetch(resolved: ResolvedCheckpoint, policy: SourcePolicy, meter: Progress) -> LocalCheckpoint:
    cache = BlobCache(policy)
    paths: dict[str, Path] = {}
    digests: dict[str, str] = {}
    signatures: dict[str, Signature] = {}
    with ExitStack() as stack:
        source: SourceFolder | None = None
        for file in resolved.files:
            if file.path is not None:
                digests[file.name], signatures[file.name] = local_sha256(
                    file.path,
                    cache.digests,
                    f"{resolved.uri}: {file.name}",
                    signature=file.signature,
                    progress=meter,
                )
                paths[file.name] = file.path
                continue
            if source is None:
                source = stack.enter_context(open_folder(resolved.resolved, policy, resolved.uri))
            assert isinstance(source, RemoteFolder)
            path = cache.get(file, source, meter)
            paths[file.name], digests[file.name] = path, path.name
            signatures[file.name] = Signature.of(path.stat())
    sha256 = checkpoint_sha256(digests.items())
    return LocalCheckpoint(resolved, paths, digests, sha256, signatures)


class _Meter:
    """Counts bytes, reports them, and stops the work when asked to."""

    def __init__(
        self,
        total: int,
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._done, self._total = 0, total
        self._progress, self._should_stop = progress, should_stop

    def __call__(self, count: int) -> None:
        if self._should_stop is not None and self._should_stop():
            raise FetchStoppedError
        self._done += count
        if self._progress is not None and count:
            self._progress(self._done, self._total)
