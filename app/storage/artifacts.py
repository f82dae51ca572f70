"""The artifact store: scratch space of attempts, and the folders that are published.

{root}/scratch/{merge}/{fence}/       one attempt writes here, and nowhere else
{root}/published/{merge}.{fence}/     complete folders, made by one rename
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.contract.errors import StorageError

_SCRATCH, _PUBLISHED = "scratch", "published"
_SETTING = "AFLUENTE_ARTIFACT_DIR"
# What a disk must have left to be of use: rows, journals and messages still go on it.
_LEAST_FREE_BYTES = 10_000_000
_PROBE_BYTES = 1_000_000


@dataclass(frozen=True)
class ArtifactStore:
    """A directory shared by the API and all workers."""

    root: Path

    def attempt_folder(self, merge_id: str, fence: int) -> Path:
        """Return the folder that the attempt with this fence writes under."""
        return self.root / _SCRATCH / merge_id / str(fence)

    def earlier_attempts(self, merge_id: str, fence: int | None = None) -> list[Path]:
        """Return the folders of the merge's other attempts, newest first."""
        folder = self.root / _SCRATCH / merge_id
        if not folder.is_dir():
            return []
        numbers = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
        return [folder / str(n) for n in sorted(numbers, reverse=True) if n != fence]

    def remove_attempts_before(self, merge_id: str, fence: int) -> None:
        """Delete the folders of the merge's attempts before this one, which takes nothing more."""
        for folder in self.earlier_attempts(merge_id, fence):
            if int(folder.name) < fence:
                shutil.rmtree(folder, ignore_errors=True)

    def remove_attempt(self, merge_id: str, fence: int) -> None:
        """Delete the folder of the attempt with this fence, and no other's."""
        shutil.rmtree(self.attempt_folder(merge_id, fence), ignore_errors=True)

    def publish(self, merge_id: str, fence: int, finished: Path) -> str:
        """Move a finished folder to where it can be published, and return its name.

        It is visible only once the merge's row names it. Until its scratch space is removed the
        files are in both places (where the file system has hard links): if the row is never
        written, a later attempt takes them over.
        """
        name = f"{merge_id}.{fence}"
        target = self.root / _PUBLISHED / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for path in sorted(finished.rglob("*")):
                if path.is_file():
                    path.chmod(0o644)
                    _sync(path)
            finished.chmod(0o755)
            _sync(finished)
            if target.exists():
                shutil.rmtree(target)
            finished.rename(target)
            _sync(target.parent)
            _link(target, finished)
        except OSError as error:
            raise storage_error(error, target) from error
        return name

    def published_folder(self, name: str) -> Path:
        """Return the folder of a name that `publish` gave."""
        return self.root / _PUBLISHED / name

    def remove_scratch(self, merge_id: str) -> None:
        """Delete the scratch space of a merge."""
        shutil.rmtree(self.root / _SCRATCH / merge_id, ignore_errors=True)

    def remove_published(self, name: str) -> None:
        """Delete a published folder: it vanishes from its place before its files go."""
        folder = self.published_folder(name)
        grave = folder.with_name(f".removed-{name}")
        try:
            folder.rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    def inventory(self) -> list[Path]:
        """Return every scratch and published folder there is."""
        return self._entries(_SCRATCH) + self._entries(_PUBLISHED)

    def discard(
        self, inventory: Iterable[Path], over: Collection[str], published: Collection[str]
    ) -> list[Path]:
        """Delete those of `inventory` whose merge is `over` and that no row names as published.

        A folder of a live merge stays, because its attempt may be about to publish it. So does
        one of a merge that the database does not know: it may be the wrong database.
        """
        removed = []
        for folder in inventory:
            if merge_of(folder) not in over or folder.name in published:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        return removed

    def _entries(self, kind: str) -> list[Path]:
        folder = self.root / kind
        return sorted(folder.iterdir()) if folder.is_dir() else []


def merge_of(folder: Path) -> str:
    """Return the identifier of the merge that a scratch or published folder belongs to."""
    return folder.name.removeprefix(".removed-").split(".")[0]


def check_disk(folder: Path, setting: str = _SETTING) -> None:
    """Raise StorageError unless a file can be written in the folder, with some space left after it.

    The folder is made if it is missing; `setting` is the variable that names it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".probe-") as file:
            # Quotas and limits show only in what is written.
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            status = os.fstatvfs(file.fileno())
        if status.f_bavail * status.f_frsize < _LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise storage_error(error, folder, setting) from error


def is_full(error: BaseException | None) -> bool:
    """Return whether a disk or a quota is full, by what the system said of it."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def storage_error(error: OSError, path: Path, setting: str = _SETTING) -> StorageError:
    """Return the error that tells the operator what the artifact store lacks."""
    if is_full(error):
        return StorageError(
            f"The disk of {path} is full; free space, or point {setting} elsewhere, and retry the "
            "merge."
        )
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}; check the folder that {setting} "
        "names, and retry the merge."
    )


def _link(folder: Path, other: Path) -> None:
    """Give a folder's files a second name under `other`, if that can be."""
    with suppress(OSError):
        for path in sorted(folder.rglob("*")):
            place = other / path.relative_to(folder)
            if path.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.hardlink_to(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
