"""The artifact store: scratch space of attempts, and published folders.

{root}/scratch/{merge}/{fence}/       the only folder that an attempt writes to
{root}/published/{merge}.{fence}/     complete folders, created by one rename
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
# A disk must have this much left, for rows, journals and messages.
_LEAST_FREE_BYTES = 10_000_000
_PROBE_BYTES = 1_000_000


@dataclass(frozen=True)
class ArtifactStore:
    """A directory shared by the API and all workers."""

    root: Path

    def attempt_folder(self, merge_id: str, fence: int) -> Path:
        """Return the scratch folder of the attempt with this fence."""
        return self.root / _SCRATCH / merge_id / str(fence)

    def earlier_attempts(self, merge_id: str, fence: int | None = None) -> list[Path]:
        """Return the folders of the merge's other attempts, newest first."""
        folder = self.root / _SCRATCH / merge_id
        if not folder.is_dir():
            return []
        numbers = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
        return [folder / str(n) for n in sorted(numbers, reverse=True) if n != fence]

    def remove_attempts_before(self, merge_id: str, fence: int) -> None:
        """Delete the folders of the merge's earlier attempts, which are no longer needed."""
        for folder in self.earlier_attempts(merge_id, fence):
            if int(folder.name) < fence:
                shutil.rmtree(folder, ignore_errors=True)

    def remove_attempt(self, merge_id: str, fence: int) -> None:
        """Delete the folder of the attempt with this fence, and no other's."""
        shutil.rmtree(self.attempt_folder(merge_id, fence), ignore_errors=True)

    def publish(self, merge_id: str, fence: int, finished: Path) -> str:
        """Move a finished folder to the published ones, and return its new name.

        The API serves it only after the merge's row names it. The scratch folder keeps hard links
        to the files (where the file system has them), so that a later attempt can adopt them if
        the row is never written.
        """
        name = f"{merge_id}.{fence}"
        target = self.root / _PUBLISHED / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for path in sorted(finished.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
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
        """Return the folder for a name that `publish` returned."""
        return self.root / _PUBLISHED / name

    def remove_scratch(self, merge_id: str) -> None:
        """Delete the scratch space of a merge."""
        shutil.rmtree(self.root / _SCRATCH / merge_id, ignore_errors=True)

    def remove_published(self, name: str) -> None:
        """Delete a published folder; it is renamed first, so that nobody sees it half deleted."""
        folder = self.published_folder(name)
        removed = folder.with_name(f".removed-{name}")
        try:
            folder.rename(removed)
        except FileNotFoundError:
            return
        shutil.rmtree(removed, ignore_errors=True)

    def inventory(self) -> list[Path]:
        """Return all scratch and published folders."""
        return self._entries(_SCRATCH) + self._entries(_PUBLISHED)

    def discard(
        self, inventory: Iterable[Path], over: Collection[str], published: Collection[str]
    ) -> list[Path]:
        """Delete the folders in `inventory` whose merge is in `over`, unless in `published`.

        Folders of live merges are kept, since an attempt may be about to publish them. Folders of
        unknown merges are kept too: this may be the wrong database. Returns the deleted folders.
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
    """Raise StorageError unless a file can be written to the folder and space is left after it.

    Creates the folder if it is missing; `setting` is the variable that names it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".probe-") as file:
            # Only writing reveals quotas and limits.
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            status = os.fstatvfs(file.fileno())
        if status.f_bavail * status.f_frsize < _LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise storage_error(error, folder, setting) from error


def is_full(error: BaseException | None) -> bool:
    """Return whether the error means that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def storage_error(error: OSError, path: Path, setting: str = _SETTING) -> StorageError:
    """Return the error for the operator, with the path and the setting to change."""
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
    """Hard-link a folder's files into `other`, if the file system supports it."""
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
