"""What a URI scheme provides: a class whose instances are the folders that its URIs name."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import ClassVar, TypeVar

from app.contract.errors import SourceNotAllowedError, SourceUnreachableError
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy

_WAITS_FOR_A_PREFIX = 2

_T = TypeVar("_T")


class PassingFaultError(SourceUnreachableError):
    """A fault worth another attempt, after `retry_after_seconds` if the server says so."""

    retry_after_seconds: float = 0.0


class SourceFolder(ABC):
    """The folder (or the single file) that a URI names.

    The constructor parses the URI, raises SourceNotAllowedError for one that could mean two
    places, and touches neither disk nor network.

    Attributes:
        scheme: the scheme's name, as in AFLUENTE_SCHEMES.
        form: how its URIs are written, for errors and the API's description.
        name: the URI's last segment, which results may call the source.
        label: names the source in errors.

    """

    scheme: ClassVar[str]
    form: ClassVar[str]
    name: str

    def __init__(self, uri: str, policy: SourcePolicy) -> None:
        self.label = uri
        self.policy = policy

    def __enter__(self) -> SourceFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close what reading has opened."""

    @property
    @abstractmethod
    def resolved(self) -> str:
        """The URI of what is there now: links followed, a branch pinned to its commit."""

    @abstractmethod
    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that there are."""

    @abstractmethod
    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""

    def as_file(self) -> SourceFile:
        """Return the file that the URI itself names, for a manifest; SourceError without one."""
        raise SourceNotAllowedError(
            f"{self.label}: {self.scheme}:// names a checkpoint; a manifest needs a URI of its file"
        )

    def label_of(self, name: str) -> str:
        """Return what errors call a file of the folder."""
        return self.label if name == self.name else f"{self.label}: {name}"


class RemoteFolder(SourceFolder):
    """A folder on another machine; its files are downloaded into the cache."""

    @abstractmethod
    def read(self, file: SourceFile, start: int, stop: int) -> Generator[bytes, None, None]:
        """Yield a file's bytes from `start` to `stop`, or to its end.

        Raises:
            PassingFaultError: it may go better at another attempt.
            SourceChangedError: the file is not the one that was found.
            SourceError: it cannot be read.

        """

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""
        return self.read_range(file, 0, length)

    def read_range(self, file: SourceFile, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, or fewer where the file ends."""
        label = self.label_of(file.name)

        def read() -> bytes:
            with closing(self.read(file, start, stop)) as chunks:
                return first_bytes(chunks, stop - start, self.policy, label)

        return retrying(self.policy, read)


def first_bytes(chunks: Iterable[bytes], length: int, policy: SourcePolicy, label: str) -> bytes:
    """Return the first `length` bytes of the chunks; SourceUnreachableError if they drip in."""
    # The connection's timeout is for one wait; a server that drips must not hold a request.
    deadline = time.monotonic() + _WAITS_FOR_A_PREFIX * policy.patience_seconds(label)
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) >= length:
            break
        if time.monotonic() > deadline:
            raise SourceUnreachableError(f"{label}: the server sends too slowly")
    return bytes(data[:length])


def retrying(policy: SourcePolicy, operation: Callable[[], _T]) -> _T:
    """Return the operation's result, trying again after each PassingFaultError."""
    for delay in policy.retry_delays_seconds:
        try:
            return operation()
        except PassingFaultError as fault:
            pause = max(delay, fault.retry_after_seconds)
            if not policy.may_wait(pause):
                raise
            time.sleep(pause)
    return operation()
