"""`/merges/{id}/artifacts`: the list, single files, and all of them as a tar."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from app.routes.dependencies import BackendDep
from app.routes.openapi import problems
from app.routes.pools import FILES
from app.routes.ranges import repr_digest
from app.routes.sending import download_responses, send_download
from app.services import archive, artifacts
from app.services.downloads import Download
from app.services.resources import ArtifactPage

router = APIRouter(prefix="/merges/{merge_id}", tags=["artifacts"])
_FILE = download_responses(
    "application/octet-stream", "application/json", "text/plain", several="multipart/byteranges"
)
_TAR = download_responses("application/x-tar")
_OPTIONS: dict[str, Any] = {"response_model": None, "response_class": StreamingResponse}


@router.get("/artifacts", responses=problems(404))
def list_artifacts(backend: BackendDep, merge_id: str) -> ArtifactPage:
    """List the merged checkpoint's files; empty until the merge has succeeded."""
    return artifacts.list_all(backend, merge_id)


@router.get("/artifacts/{name}", responses=_FILE, **_OPTIONS)
@FILES
def get_artifact(request: Request, backend: BackendDep, merge_id: str, name: str) -> Response:
    """Download a file. `Range` resumes a download; the strong `ETag` is the file's sha256."""
    return _send_artifact(request, artifacts.open_artifact(backend, merge_id, name))


@router.head("/artifacts/{name}", responses=_FILE, **_OPTIONS)
@FILES
def head_artifact(request: Request, backend: BackendDep, merge_id: str, name: str) -> Response:
    """Return the headers of a download."""
    return _send_artifact(request, artifacts.open_artifact(backend, merge_id, name))


@router.get("/artifacts/{folder}/{name}", responses=_FILE, **_OPTIONS)
@FILES
def get_artifact_in_folder(
    request: Request, backend: BackendDep, merge_id: str, folder: str, name: str
) -> Response:
    """Download a file of another format, such as `ctranslate2_int8/model.bin`, as any file."""
    return _send_artifact(request, artifacts.open_artifact(backend, merge_id, f"{folder}/{name}"))


@router.head("/artifacts/{folder}/{name}", responses=_FILE, **_OPTIONS)
@FILES
def head_artifact_in_folder(
    request: Request, backend: BackendDep, merge_id: str, folder: str, name: str
) -> Response:
    """Return the headers of a download."""
    return _send_artifact(request, artifacts.open_artifact(backend, merge_id, f"{folder}/{name}"))


@router.get("/artifacts.tar", responses=_TAR, **_OPTIONS)
@FILES
def get_archive(request: Request, backend: BackendDep, merge_id: str) -> Response:
    """Download the whole checkpoint folder as a tar, always with the same bytes."""
    return _send_archive(request, archive.open_archive(backend, merge_id))


@router.head("/artifacts.tar", responses=_TAR, **_OPTIONS)
@FILES
def head_archive(request: Request, backend: BackendDep, merge_id: str) -> Response:
    """Return the headers of a download."""
    return _send_archive(request, archive.open_archive(backend, merge_id))


def _send_artifact(request: Request, download: Download) -> Response:
    headers = {
        # Files only: the digest of a tar would need all of its bytes.
        "Repr-Digest": repr_digest(download.version),
        "Content-Disposition": _attachment(download.name.rpartition("/")[2]),
    }
    return send_download(request, download, headers, several=True)


def _send_archive(request: Request, download: Download) -> Response:
    headers = {"Content-Disposition": _attachment(download.name)}
    return send_download(request, download, headers, several=False)


def _attachment(name: str) -> str:
    quoted = quote(name)
    given = f'filename="{name}"' if quoted == name else f"filename*=utf-8''{quoted}"
    return f"attachment; {given}"
