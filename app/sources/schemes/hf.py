"""`hf://`: models and datasets of the Hugging Face hub, each at one commit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from app.contract.errors import (
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy
from app.sources.schemes.https import WebFolder

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_FOLDER = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96}){0,19}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,254}", re.ASCII)
# A repository with thousands of files has some hundred kilobytes.
_MOST_INFO_BYTES = 8 * 2**20


class HubFolder(WebFolder):
    """A model, or a folder in it (or, at hf://datasets/, a dataset) of the hub at one commit.

    It is that of the revision, or of the default branch.
    """

    scheme = "hf"
    form = "hf://organisation/name/folder@revision"
    is_hub = True
    _known: _ModelInfo | None = None

    def __init__(self, uri: str, policy: SourcePolicy) -> None:
        super().__init__(uri, policy)
        self.kind, self.repo, self.folder, self.revision = _parse(uri)
        self.name = (self.folder or self.repo).rpartition("/")[2]

    @property
    def resolved(self) -> str:
        """The URI with the commit as its revision."""
        inside = f"/{self.folder}" if self.folder else ""
        return f"hf://{self._prefix}{self.repo}{inside}@{self._info.sha}"

    @property
    def _prefix(self) -> str:
        return "" if self.kind == "models" else f"{self.kind}/"

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the commit has."""
        siblings = {sibling.rfilename: sibling for sibling in self._info.siblings}
        inside = f"{self.folder}/" if self.folder else ""
        return {
            name: self._file(name, siblings[inside + name])
            for name in names
            if inside + name in siblings
        }

    def files_of_dataset(self, suffix: str) -> list[str]:
        """Return the names of a dataset's files that end so; SourceNotAllowedError for a model."""
        if self.kind != "datasets":
            raise SourceNotAllowedError(
                f"{self.label}: this names a model; a dataset is hf://datasets/organisation/name"
            )
        return [one.rfilename for one in self._info.siblings if one.rfilename.endswith(suffix)]

    def _file(self, name: str, sibling: _Sibling) -> SourceFile:
        commit, path = self._info.sha, quote(sibling.rfilename)
        if sibling.size is None:
            raise SourceUnreachableError(f"{self.label}: the hub does not state {name}'s size")
        return SourceFile(
            name=name,
            size=sibling.size,
            url=f"{self.policy.hf_endpoint}/{self._prefix}{self.repo}/resolve/{commit}/{path}",
            version=commit,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
        )

    @property
    def _info(self) -> _ModelInfo:
        # No cached_property: Python 3.11 has all instances wait for each other.
        if self._known is None:
            self._known = self._ask()
        return self._known

    def _ask(self) -> _ModelInfo:
        """Return what the hub says of the repository."""
        # Over the client that checks every redirect: the hub's own library follows any.
        url = f"{self.policy.hf_endpoint}/api/{self.kind}/{self.repo}"
        if self.revision:
            url += f"/revision/{quote(self.revision, safe='')}"
        try:
            content = self.client.read_small(f"{url}?blobs=true", _MOST_INFO_BYTES, self.label)
            return _ModelInfo.model_validate_json(content)
        except SourceNotFoundError:
            where = f"{self.repo} at revision {self.revision}" if self.revision else self.repo
            raise SourceNotFoundError(
                f"{self.label}: the hub has no {self.kind[:-1]} {where}"
            ) from None
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise SourceUnreachableError(
                f"{self.label}: {self.policy.hf_endpoint} does not answer as the hub does"
                f" ({where or 'no JSON'} is not what it should be)"
            ) from None


class _Lfs(BaseModel):
    # It becomes the name of a file in the cache.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = Field(None, ge=0)
    lfs: _Lfs | None = None


class _ModelInfo(BaseModel):
    """What the hub says of a model at a revision, as far as it matters here."""

    sha: str = Field(pattern=r"^[0-9a-f]{40}$")
    siblings: tuple[_Sibling, ...] = ()


def model_of(uri: str) -> str | None:
    """Return `organisation/name` of a URI of the hub, None of any other URI."""
    if not uri.lower().startswith("hf:"):
        return None
    return _parse(uri)[1]


def dataset_of(uri: str) -> tuple[str, str | None] | None:
    """Return `organisation/name` and revision of a dataset's URI on the hub, None of a model's."""
    kind, repo, _, revision = _parse(uri)
    return (repo, revision) if kind == "datasets" else None


def _parse(uri: str) -> tuple[str, str, str, str | None]:
    """Return models or datasets, the repository, the folder in it or "", and the revision given."""
    place, at, revision = uri.partition("://")[2].rstrip("/").partition("@")
    kind, slash, name = place.partition("/")
    kind, place = ("datasets", name) if kind == "datasets" and slash else ("models", place)
    segments = place.split("/")
    repo, folder = "/".join(segments[:2]), "/".join(segments[2:])
    known = _REPO.fullmatch(repo) and ".." not in repo and "--" not in repo
    if not known or (folder and kind == "datasets") or not _is_folder(folder):
        raise SourceNotAllowedError(
            f"{uri}: write hf://organisation/name or hf://organisation/name@revision; a folder in "
            "a model stands before the @ (hf://organisation/name/folder@revision)"
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise SourceNotAllowedError(f"{uri}: after @ comes a branch, a tag or a commit")
    return kind, repo, folder, revision if at else None


def _is_folder(path: str) -> bool:
    return not path or (_FOLDER.fullmatch(path) is not None and ".." not in path)
