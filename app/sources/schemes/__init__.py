"""The URI schemes of sources. A new one is a module here and a line in SCHEMES."""

from __future__ import annotations

import re

from app.contract.errors import SourceNotAllowedError
from app.contract.problems import did_you_mean
from app.sources.policy import SourcePolicy
from app.sources.schemes.bucket import AzureFolder, GoogleFolder, S3Folder
from app.sources.schemes.file import FileFolder
from app.sources.schemes.folder import RemoteFolder, SourceFolder
from app.sources.schemes.hf import HubFolder
from app.sources.schemes.https import HttpsFolder
from app.sources.schemes.merge import MergeFolder

SCHEMES: dict[str, type[SourceFolder]] = {
    "file": FileFolder,
    "hf": HubFolder,
    "http": HttpsFolder,
    "https": HttpsFolder,
    "merge": MergeFolder,
    "s3": S3Folder,
    "gs": GoogleFolder,
    "az": AzureFolder,
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?", re.ASCII)


def open_folder(uri: str, policy: SourcePolicy, label: str | None = None) -> SourceFolder:
    """Return the folder at a URI, nothing of it read yet; use it as a context manager.

    A text without a scheme is a path on this machine, where the policy allows every path. `label`
    names the folder in errors instead of the URI.

    Raises:
        SourceNotAllowedError: the scheme is unknown or switched off, or the URI is malformed or
            could mean two places.

    """
    if not uri or not uri.isprintable() or "\\" in uri:
        raise SourceNotAllowedError(
            f"{ascii(uri)[:200]}: a URI is not empty and has no backslashes or control characters"
        )
    scheme = scheme_of(uri)
    if scheme is None and policy.file_roots is not None:
        raise SourceNotAllowedError(f"{uri}: this is not a URI; write {forms(policy)}")
    kind = FileFolder if scheme is None else SCHEMES.get(scheme)
    if kind is None:
        hint = did_you_mean(scheme or "", [known.scheme for known in _allowed(policy)])
        raise SourceNotAllowedError(
            f"{uri}: unknown URI scheme {scheme!r}; write {forms(policy)}.{hint}"
        )
    if kind not in _allowed(policy):
        raise SourceNotAllowedError(
            f"{uri}: {kind.scheme}:// is switched off here; AFLUENTE_SCHEMES allows {forms(policy)}"
        )
    folder = kind(uri, policy)
    folder.label = label or uri
    return folder


def scheme_of(uri: str) -> str | None:
    """Return a URI's scheme in lower case, or None for a plain path."""
    match = _SCHEME.match(uri)
    if match is None:
        return None
    scheme = match[1].lower()
    return scheme if match[2] or scheme in SCHEMES else None


def is_remote(uri: str) -> bool:
    """Return whether the source is on another machine."""
    return issubclass(SCHEMES.get(scheme_of(uri) or "", FileFolder), RemoteFolder)


def published_at(resolved: str) -> str | None:
    """Return a resolved URI that means the same on every machine, or None for a local one."""
    return resolved if is_remote(resolved) else None


def forms(policy: SourcePolicy | None = None) -> str:
    """Return how the URIs of every scheme, or of every allowed one, are written."""
    return " or ".join(kind.form for kind in _allowed(policy)) or "none"


def _allowed(policy: SourcePolicy | None) -> list[type[SourceFolder]]:
    allowed = None if policy is None else policy.schemes
    kinds = dict.fromkeys(SCHEMES.values())
    return [kind for kind in kinds if allowed is None or kind.scheme in allowed]
