"""`merge://`: results of earlier merges, read from the artifact store."""

from __future__ import annotations

import re
from pathlib import Path

from app.contract.errors import (
    ConflictError,
    NotFoundError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from app.contract.identifiers import merge_uri
from app.sources.policy import SourcePolicy
from app.sources.schemes.file import LocalFolder

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class MergeFolder(LocalFolder):
    """The published folder of a merge."""

    # No `roots`: those are for paths that callers name, and the store is the service's own.
    scheme = "merge"
    form = "merge://id"

    def __init__(self, uri: str, policy: SourcePolicy) -> None:
        super().__init__(uri, policy)
        self.name = uri.partition("://")[2].rstrip("/")
        if not _ID.fullmatch(self.name):
            raise SourceNotAllowedError(f"{uri}: write merge:// and the merge's id")

    @property
    def path(self) -> Path:
        """The folder in the artifact store; SourceNotFoundError without a finished merge."""
        if self.policy.merge_folder is None:
            raise SourceNotFoundError(f"{self.label}: there are no earlier merges here")
        try:
            return self.policy.merge_folder(self.name)
        except (NotFoundError, ConflictError) as error:
            raise SourceNotFoundError(f"{self.label}: {error.message}") from None

    @property
    def resolved(self) -> str:
        """The URI, which never means another result."""
        return merge_uri(self.name)
