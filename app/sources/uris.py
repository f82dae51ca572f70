"""Takes a source's URI apart, refusing whatever could mean another place than it seems to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from app.contract.errors import SourceNotAllowedError
from app.contract.problems import did_you_mean
from app.sources.policy import ALL_SCHEMES, SourcePolicy

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):", re.ASCII)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]*", re.ASCII)
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?", re.ASCII)
_MERGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# What file systems allow; the hub's names are shorter.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class FilePlace:
    """A path on this machine, not yet held against the allowed folders."""

    path: Path
    name: str


@dataclass(frozen=True)
class HubPlace:
    """A model of the hub, at a revision (None: its default branch)."""

    repo: str
    revision: str | None
    name: str


@dataclass(frozen=True)
class WebPlace:
    """A folder or a file on an https server, without a slash at its end."""

    url: str
    name: str


@dataclass(frozen=True)
class MergePlace:
    """The result of an earlier merge."""

    merge_id: str
    name: str


Place = FilePlace | HubPlace | WebPlace | MergePlace


def parse_uri(uri: str, policy: SourcePolicy) -> Place:
    """Return the place that a URI means.

    Raises:
        SourceNotAllowedError: the scheme is unknown or switched off, or the URI is written in a
            way that hides where it leads.

    """
    if not uri or not uri.isprintable() or "\\" in uri:
        raise SourceNotAllowedError(
            f"{ascii(uri)[:200]}: a URI is not empty and has no backslashes or control characters"
        )
    match = _SCHEME.match(uri)
    if match is None:
        return _plain_path(uri, policy)
    scheme = (match[1] or match[2]).lower()
    if scheme == "http" and policy.allow_private_addresses and "https" in policy.schemes:
        return _web(uri)
    if scheme not in policy.schemes:
        raise SourceNotAllowedError(_scheme_message(uri, scheme, policy))
    rest = uri[match.end() :]
    if scheme == "file":
        return _file(uri)
    if scheme == "hf":
        return _hub(uri, rest)
    if scheme == "merge":
        return _merge(uri, rest)
    return _web(uri)


def file_uri(path: Path) -> str:
    """Return the `file://` URI of an absolute path."""
    return f"file://{quote(os.fspath(path))}"


def _scheme_message(uri: str, scheme: str, policy: SourcePolicy) -> str:
    allowed = ", ".join(sorted(policy.schemes)) or "none"
    if scheme in ALL_SCHEMES:
        return f"{uri}: {scheme}:// is switched off here (AFLUENTE_SCHEMES allows: {allowed})"
    if scheme == "http":
        return f"{uri}: http is not allowed, use https (allowed schemes: {allowed})"
    hint = did_you_mean(scheme, policy.schemes)
    return f"{uri}: unknown URI scheme {scheme!r} (allowed: {allowed}).{hint}"


def _plain_path(uri: str, policy: SourcePolicy) -> FilePlace:
    if policy.file_roots is not None:
        raise SourceNotAllowedError(
            f"{uri}: this is no URI; write file:///… for a folder on the server or "
            "hf://organisation/name for a model of the hub"
        )
    # Leaves `~nobody` as it is, where Path would raise.
    path = Path(os.path.expanduser(uri))  # noqa: PTH111
    return FilePlace(path, path.absolute().name or "checkpoint")


def _file(uri: str) -> FilePlace:
    parts = _split(uri)
    if parts.netloc not in ("", "localhost"):
        raise SourceNotAllowedError(
            f"{uri}: a file URI names no host; write file:///{parts.netloc}{parts.path}"
        )
    segments = _decoded_segments(uri, parts.path)
    if not parts.path.startswith("/"):
        raise SourceNotAllowedError(f"{uri}: a file URI needs an absolute path: file:///…")
    return FilePlace(Path("/", *segments), segments[-1] if segments else "checkpoint")


def _hub(uri: str, rest: str) -> HubPlace:
    repo, at, revision = rest.rstrip("/").partition("@")
    if len(rest) > _LONGEST_NAME:
        raise SourceNotAllowedError(f"{uri}: a model of the hub has no such long name")
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise SourceNotAllowedError(
            f"{uri}: write hf://organisation/name or hf://organisation/name@revision"
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise SourceNotAllowedError(f"{uri}: after @ comes a branch, a tag or a commit")
    return HubPlace(repo, revision if at else None, repo.rpartition("/")[2])


def _merge(uri: str, rest: str) -> MergePlace:
    merge_id = rest.rstrip("/")
    if not _MERGE.fullmatch(merge_id):
        raise SourceNotAllowedError(f"{uri}: write merge:// and the merge's id")
    return MergePlace(merge_id, merge_id)


def _web(uri: str) -> WebPlace:
    parts = _split(uri)
    if parts.username is not None or parts.password is not None:
        # Without the URI: it would carry the password into records and logs.
        raise SourceNotAllowedError("an https URI must not carry a user name or a password")
    if not _HOST.fullmatch(parts.netloc):
        raise SourceNotAllowedError(
            f"{uri}: an https URI needs a host in plain ASCII, with a port or not"
        )
    segments = _decoded_segments(uri, parts.path)
    path = "".join(f"/{quote(segment)}" for segment in segments)
    name = segments[-1] if segments else parts.hostname or "checkpoint"
    return WebPlace(f"{parts.scheme}://{parts.netloc.lower()}{path}", name)


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise SourceNotAllowedError(f"{uri}: this is not a URI") from None
    if parts.query or parts.fragment or "?" in uri or "#" in uri:
        # A query is where signatures and tokens live; it would be shown in records.
        shown = re.split(r"[?#]", uri)[0]
        raise SourceNotAllowedError(
            f"{shown}: a URI has no query and no fragment here (write %3F and %23 in file names)"
        )
    return parts


def _decoded_segments(uri: str, path: str) -> list[str]:
    """Decode once, and refuse what a second reader could take for another path."""
    segments = [_decode(uri, segment) for segment in path.split("/") if segment]
    for segment in segments:
        if segment in (".", "..") or "/" in segment or "\\" in segment:
            raise SourceNotAllowedError(
                f"{uri}: a path has no '.' or '..' segments and no encoded slashes"
            )
        if len(segment.encode()) > _LONGEST_NAME:
            raise SourceNotAllowedError(
                f"{uri}: a name in a path has {_LONGEST_NAME} bytes at most"
            )
        if not segment.isprintable() or _ESCAPE.search(segment):
            raise SourceNotAllowedError(
                f"{uri}: a path is percent-encoded once at most and has no control characters"
            )
    return segments


def _decode(uri: str, segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise SourceNotAllowedError(f"{uri}: the percent-encoded bytes are not UTF-8") from None
