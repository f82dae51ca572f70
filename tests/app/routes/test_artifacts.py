from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import time
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.services import archive
from app.services.backend import Backend
from app.storage import merges
from tests.app.routes.conftest import FILES
from tests.app.routes.test_create_merge import refusal

NAME = "model.safetensors"
CONTENT = FILES[NAME]
SIZE = len(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(finished: str) -> str:
    return f"/merges/{finished}/artifacts/{NAME}"


def test_the_list_has_every_file_with_its_digest(client: TestClient, finished: str):
    data = client.get(f"/merges/{finished}/artifacts").json()["data"]
    assert {entry["name"]: entry["bytes"] for entry in data} == {
        name: len(content) for name, content in FILES.items()
    }
    for entry in data:
        content = client.get(entry["url"]).content
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert client.get(f"/merges/{finished}").json()["artifacts"] == data


def test_there_are_no_artifacts_before_the_end(client: TestClient, merge_id: str):
    assert client.get(f"/merges/{merge_id}/artifacts").json() == {"data": []}
    for path in (f"artifacts/{NAME}", "artifacts.tar"):
        document = refusal(client.get(f"/merges/{merge_id}/{path}"), 404, "not_found")
        assert "is queued" in document["detail"]


def test_a_download_has_its_headers(client: TestClient, url: str):
    answer = client.get(url)
    assert answer.content == CONTENT
    assert answer.headers["etag"] == f'"{DIGEST}"'
    digest = base64.b64encode(bytes.fromhex(DIGEST)).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["accept-ranges"] == "bytes"
    head = client.head(url)
    assert head.content == b""
    assert dict(head.headers) == dict(answer.headers)


@pytest.mark.parametrize(
    ("given", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=5-{SIZE * 9}", 5, SIZE),
        (f"bytes=-{SIZE * 9}", 0, SIZE),
        ("Bytes= 3-4 ", 3, 5),
    ],
)
def test_a_range_is_those_bytes(client: TestClient, url: str, given: str, start: int, stop: int):
    answer = client.get(url, headers={"Range": given})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(stop - start)
    assert answer.headers["etag"] == f'"{DIGEST}"'


def test_several_ranges_come_in_parts(client: TestClient, url: str):
    answer = client.get(url, headers={"Range": "bytes=0-3, 1000-1004, -2, 999999999-"})
    assert answer.status_code == 206
    header = b"Content-Type: " + answer.headers["content-type"].encode() + b"\r\n\r\n"
    parts: Any = BytesParser().parsebytes(header + answer.content).get_payload()
    found = [(part["Content-Range"], part.get_payload(decode=True)) for part in parts]
    assert found == [
        (f"bytes 0-3/{SIZE}", CONTENT[0:4]),
        (f"bytes 1000-1004/{SIZE}", CONTENT[1000:1005]),
        (f"bytes {SIZE - 2}-{SIZE - 1}/{SIZE}", CONTENT[-2:]),
    ]
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("path", ["artifacts/model.safetensors", "artifacts.tar"])
@pytest.mark.parametrize("given", ["bytes=999999999-", "bytes=-0", "bytes=999999999-999999999"])
def test_a_range_outside_is_refused_with_the_size(
    client: TestClient, finished: str, path: str, given: str
):
    url = f"/merges/{finished}/{path}"
    answer = client.get(url, headers={"Range": given})
    refusal(answer, 416, "range_not_satisfiable")
    size = client.head(url).headers["content-length"]
    assert answer.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "given",
    ["bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "items=0-1", "bytes=0-1,x",
     "bytes=" + ",".join(["0-0"] * 200), "bytes=--1", "bytes=1-2-3", "bytes=" + "9" * 99 + "-"],
)  # fmt: skip
def test_a_range_that_makes_no_sense_is_ignored(client: TestClient, url: str, given: str):
    answer = client.get(url, headers={"Range": given})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_download_resumes_only_if_it_is_the_same_file(client: TestClient, url: str):
    def status(if_range: str) -> int:
        headers = {"Range": "bytes=999-", "If-Range": if_range}
        return int(client.get(url, headers=headers).status_code)

    assert status(f'"{DIGEST}"') == 206
    assert status('"other"') == 200
    assert status(f'W/"{DIGEST}"') == 200
    headers = {"Range": "bytes=999999999-", "If-Range": '"other"'}
    assert client.get(url, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["artifacts/model.safetensors", "artifacts.tar"])
def test_an_unmodified_file_is_not_sent_again(client: TestClient, finished: str, path: str):
    url = f"/merges/{finished}/{path}"
    etag = client.head(url).headers["etag"]
    for given in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = client.get(url, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    "name", ["secret", "../secret", "..%2fsecret", "%2e%2e%2fsecret", "%2e%2e", "%00", "a/b", "%2e"]
)
def test_only_listed_names_are_served(
    client: TestClient, backend: Backend, finished: str, name: str
):
    (backend.store.root / "published" / "secret").write_text("no")
    row = merges.get(backend.engine, finished)
    assert row is not None
    (backend.store.published_folder(row["artifact_folder"]) / "secret").write_text("no")
    answer = client.get(f"/merges/{finished}/artifacts/{name}")
    assert answer.status_code in {404, 405}
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_file_that_was_tampered_with_is_not_served(
    client: TestClient, backend: Backend, finished: str
):
    row = merges.get(backend.engine, finished)
    assert row is not None
    folder = backend.store.published_folder(row["artifact_folder"])
    (folder / NAME).write_bytes(b"short")
    document = refusal(
        client.get(f"/merges/{finished}/artifacts/{NAME}"), 503, "storage_unavailable"
    )
    assert str(folder) not in document["detail"]


def test_a_file_of_other_bytes_is_not_served_under_the_old_digest(
    client: TestClient, backend: Backend, finished: str
):
    """The size says nothing: the digest of what is there is compared."""
    row = merges.get(backend.engine, finished)
    assert row is not None
    path = backend.store.published_folder(row["artifact_folder"]) / NAME
    urls = [f"/merges/{finished}/artifacts/{NAME}", f"/merges/{finished}/artifacts.tar"]
    for url in urls:
        assert client.get(url).status_code == 200
    time.sleep(0.02)
    path.write_bytes(CONTENT[::-1])
    for url in urls:
        for method in ("GET", "HEAD"):
            assert client.request(method, url).status_code == 503
        document = refusal(client.get(url), 503, "storage_unavailable")
        assert NAME in document["detail"]
    # Touched or restored from a copy, it is what it was.
    path.unlink()
    path.write_bytes(CONTENT)
    for url in urls:
        assert client.get(url).status_code == 200


def test_a_download_survives_the_deletion_of_its_merge(
    client: TestClient, backend: Backend, finished: str
):
    whole = client.get(f"/merges/{finished}/artifacts.tar").content
    download = archive.open_archive(backend, finished)
    first = download.read(0, 1000)
    assert client.delete(f"/merges/{finished}").status_code == 204
    assert first + download.read(1000, download.size) == whole
    download.close()
    refusal(client.get(f"/merges/{finished}/artifacts.tar"), 404, "not_found")


def test_every_response_closes_its_files(client: TestClient, finished: str):
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    url = f"/merges/{finished}/artifacts/{NAME}"
    etag = client.head(url).headers["etag"]
    before = open_files()
    for path in (url, f"/merges/{finished}/artifacts.tar"):
        for headers in ({}, {"If-None-Match": etag}, {"If-None-Match": "*"},
                        {"Range": "bytes=0-1"}, {"Range": "bytes=0-1,4-5"},
                        {"Range": "bytes=99999999-"}):  # fmt: skip
            client.get(path, headers=headers)
            client.head(path, headers=headers)
    assert open_files() <= before


def test_the_tar_is_the_same_every_time(client: TestClient, finished: str):
    url = f"/merges/{finished}/artifacts.tar"
    answer = client.get(url)
    assert answer.content == client.get(url).content
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{finished}/{name}" for name in FILES]
        for member in members:
            assert (member.mtime, member.mode, member.uid, member.uname) == (0, 0o644, 0, "")
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == FILES[member.name.split("/")[1]]
    head = client.head(url)
    assert dict(head.headers) == dict(answer.headers)


def test_the_tar_resumes_at_any_byte(client: TestClient, finished: str):
    url = f"/merges/{finished}/artifacts.tar"
    whole = client.get(url).content
    for start, stop in ((0, 1), (511, 514), (700, 300_000), (len(whole) - 10, len(whole))):
        answer = client.get(url, headers={"Range": f"bytes={start}-{stop - 1}"})
        assert (answer.status_code, answer.content) == (206, whole[start:stop])
    answer = client.get(url, headers={"Range": "bytes=0-1,4-5"})
    assert (answer.status_code, answer.content) == (200, whole)


def test_an_unreachable_store_is_retryable(client: TestClient, backend: Backend, finished: str):
    published = backend.store.root / "published"
    published.rename(published.with_name("elsewhere"))
    for path in (f"artifacts/{NAME}", "artifacts.tar"):
        answer = client.get(f"/merges/{finished}/{path}")
        document = refusal(answer, 503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert str(published) not in document["detail"]
