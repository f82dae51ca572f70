"""Checkpoints of the hub and of web folders, over real connections to a stand-in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.contract.errors import (
    InvalidCheckpointError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnreachableError,
)
from app.sources.fetch import fetch
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from app.sources.web import WebClient
from tests.app.sources.conftest import silent_server

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Make = Callable[..., Path]


@pytest.fixture
def files(make_checkpoint: Make) -> dict[str, bytes]:
    """Return a checkpoint's files by name."""
    return {path.name: path.read_bytes() for path in make_checkpoint("source").iterdir()}


def test_a_web_folder_is_read_by_ranges(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    uri = stand_in.add_folder("/ft/phone", files)
    found = resolve(f"{uri}/", web_policy)
    assert (found.name, found.resolved) == ("phone", uri)
    assert {file.name: file.size for file in found.files} == {n: len(c) for n, c in files.items()}
    assert all(file.version for file in found.files)
    assert all("range" in headers for _, headers in stand_in.requests)


def test_a_web_server_without_ranges_does(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.ranges = False
    assert resolve(stand_in.add_folder("/a", files), web_policy).tensors


def test_a_web_folder_that_is_not_there_is_refused(stand_in: Any, web_policy: SourcePolicy) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"no config\.json") as refusal:
        resolve(f"{stand_in.url}/nothing", web_policy, param="base")
    assert refusal.value.param == "base"


def test_an_empty_web_file_is_refused(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    uri = stand_in.add_folder("/a", files | {"model.safetensors": b""})
    with pytest.raises(InvalidCheckpointError, match=r"model\.safetensors: the file is empty"):
        resolve(uri, web_policy)


def test_a_web_server_that_forbids_is_told_from_one_that_lacks(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    uri = stand_in.add_folder("/a", files)
    stand_in.statuses = {"/a/vocab.json": [403]}
    assert resolve(uri, web_policy).tensors
    stand_in.statuses = {"/a/config.json": [403]}
    with pytest.raises(SourceNotAllowedError, match="403"):
        resolve(uri, web_policy)


def test_passing_faults_are_tried_again(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    uri = stand_in.add_folder("/a", files)
    stand_in.statuses = {"/a/config.json": [503, 429]}
    assert resolve(uri, web_policy).tensors


def test_lasting_faults_are_told(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    uri = stand_in.add_folder("/a", files)
    stand_in.statuses = {"/a/config.json": [500] * 9}
    with pytest.raises(SourceUnreachableError, match="answered 500") as refusal:
        resolve(uri, web_policy)
    assert refusal.value.retryable


def test_a_server_that_is_down_is_unreachable(web_policy: SourcePolicy) -> None:
    policy = replace(web_policy, allowed_hosts=frozenset({"127.0.0.1:9"}))
    with pytest.raises(SourceUnreachableError, match="cannot be reached"):
        resolve("http://127.0.0.1:9/a", policy)


def test_a_host_that_is_not_listed_is_refused(stand_in: Any, web_policy: SourcePolicy) -> None:
    with pytest.raises(SourceNotAllowedError, match="AFLUENTE_ALLOWED_HOSTS"):
        resolve("https://example.org/a", web_policy)
    other_port = replace(web_policy, allowed_hosts=frozenset({"127.0.0.1"}))
    with pytest.raises(SourceNotAllowedError, match="AFLUENTE_ALLOWED_HOSTS"):
        resolve(f"{stand_in.url}/a", other_port)
    assert stand_in.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"])
def test_a_private_address_is_refused_even_if_the_host_is_listed(
    policy: SourcePolicy, host: str
) -> None:
    listed = replace(policy, allowed_hosts=frozenset({host.strip("[]")}))
    with pytest.raises((SourceNotAllowedError, SourceUnreachableError)):
        resolve(f"https://{host}/a", listed)


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://127.0.0.1:1/x",
        "http://2130706433/x",
        "http://[::ffff:169.254.169.254]/x",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "https://elsewhere.example.org/x",
    ],
)
def test_a_redirect_is_held_to_the_same_rules(
    stand_in: Any, web_policy: SourcePolicy, target: str
) -> None:
    stand_in.redirects["/a/config.json"] = target
    with pytest.raises(SourceNotAllowedError):
        resolve(f"{stand_in.url}/a", web_policy)


def test_a_redirect_of_the_hub_to_a_private_address_is_refused(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    strict = replace(web_policy, allow_private_addresses=False)
    for target in ("https://169.254.169.254/x", "https://2130706433/x", "https://[::1]/x"):
        stand_in.redirects[f"/org/m/resolve/{COMMIT}/model.safetensors"] = target
        with pytest.raises(SourceNotAllowedError, match="private"):
            resolve("hf://org/m", strict)
    stand_in.redirects[f"/org/m/resolve/{COMMIT}/model.safetensors"] = "http://8.8.8.8/x"
    with pytest.raises(SourceNotAllowedError, match="not https"):
        resolve("hf://org/m", strict)


def test_redirects_without_end_are_refused(stand_in: Any, web_policy: SourcePolicy) -> None:
    stand_in.redirects["/a/config.json"] = "/a/config.json"
    with pytest.raises(SourceUnreachableError, match="redirects"):
        resolve(f"{stand_in.url}/a", web_policy)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_model_of_the_hub_is_pinned_to_its_commit(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes], revision: str
) -> None:
    stand_in.add_model("org/phone", files | {"README.md": b"#"})
    found = resolve(f"hf://org/phone{revision}", web_policy)
    assert (found.name, found.resolved) == ("phone", f"hf://org/phone@{COMMIT}")
    assert {file.name for file in found.files} == set(files)
    assert found.tensors
    weights = found.file("model.safetensors")
    assert weights is not None
    assert weights.sha256


def test_a_folder_in_a_model_of_the_hub_is_a_checkpoint(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    inside = {f"runs/best/{name}": content for name, content in files.items()}
    stand_in.add_model("org/phone", inside | {"config.json": b"{}"})
    found = resolve("hf://org/phone/runs/best@main", web_policy)
    assert (found.name, found.resolved) == ("best", f"hf://org/phone/runs/best@{COMMIT}")
    again = resolve(found.resolved, web_policy)
    assert {file.name for file in again.files} == set(files)
    assert found.tensors == again.tensors
    assert fetch(found, web_policy).paths.keys() == set(files)


def test_a_model_or_revision_that_is_not_there_is_named(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    with pytest.raises(SourceNotFoundError, match="org/m at revision v2"):
        resolve("hf://org/m@v2", web_policy)
    with pytest.raises(SourceNotFoundError, match="no model org/n"):
        resolve("hf://org/n", web_policy)


def test_the_token_opens_a_private_model_and_goes_nowhere_else(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    stand_in.token = "hf_secret"
    with pytest.raises(SourceNotAllowedError, match="set AFLUENTE_HF_TOKEN"):
        resolve("hf://org/m", web_policy)
    with pytest.raises(SourceNotAllowedError, match="may not read it") as refusal:
        resolve("hf://org/m", replace(web_policy, hf_token="hf_wrong"))
    assert "hf_wrong" not in str(refusal.value)
    assert resolve("hf://org/m", replace(web_policy, hf_token="hf_secret")).tensors


def test_the_token_is_not_sent_along_a_redirect(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    path = f"/org/m/resolve/{COMMIT}/model.safetensors"
    # The same server by another name is another origin.
    stand_in.redirects[path] = stand_in.redirects[path].replace("127.0.0.1", "localhost")
    assert resolve("hf://org/m", replace(web_policy, hf_token="hf_secret")).tensors
    for where, headers in stand_in.requests:
        assert ("authorization" in headers) == (not where.startswith("/cdn/"))


def test_the_token_is_not_shown() -> None:
    policy = SourcePolicy(cache_dir=Path("c"), hf_token="hf_secret")
    assert "hf_secret" not in repr(policy)


def test_the_signature_of_a_redirect_is_not_shown(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    [weights] = [path for path in stand_in.files if path.startswith("/cdn/")]
    stand_in.statuses[weights] = [500] * 9
    with pytest.raises(SourceUnreachableError) as refusal:
        resolve("hf://org/m", web_policy)
    assert "secret" not in refusal.value.message


def test_a_remote_source_over_the_quota_is_refused(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    small = replace(web_policy, max_source_bytes=1000)
    with pytest.raises(SourceTooLargeError):
        resolve(stand_in.add_folder("/a", files), small)
    stand_in.add_model("org/m", files)
    with pytest.raises(SourceTooLargeError):
        resolve("hf://org/m", small)


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "main"},
        {"sha": None},
        {"siblings": 7},
        {"siblings": [{"rfilename": "config.json", "size": -1}]},
        {"siblings": [{"rfilename": "config.json", "size": 10**30}]},
        # A digest names a file of the cache.
        {"siblings": [{"rfilename": "config.json", "size": 1, "lfs": {"sha256": "../../a.db"}}]},
        {"siblings": [{"rfilename": "config.json", "size": 1, "lfs": {"sha256": "0" * 63}}]},
        {"padding": "x" * 9_000_000},
    ],
)
def test_what_the_hub_would_never_say_is_not_believed(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes], change: dict[str, Any]
) -> None:
    stand_in.add_model("org/m", files)
    stand_in.documents["/api/models/org/m"] |= change
    with pytest.raises((SourceUnreachableError, InvalidCheckpointError, SourceTooLargeError)):
        resolve("hf://org/m", web_policy)


def test_something_that_is_not_the_hub_is_told(stand_in: Any, web_policy: SourcePolicy) -> None:
    stand_in.files["/api/models/org/m"] = b"<html>"
    with pytest.raises(SourceUnreachableError, match="does not answer as the hub"):
        resolve("hf://org/m", web_policy)


@pytest.mark.parametrize(
    "target",
    [
        "https://169.254.169.254/latest/meta-data",
        "http://169.254.169.254/latest/meta-data",
        "https://127.0.0.1:1/api/models/org/m",
        "https://[::ffff:10.0.0.1]/x",
        "http://8.8.8.8/x",
        "file:///etc/passwd",
        "https://user:password@8.8.8.8/x",
    ],
)
@pytest.mark.parametrize("path", ["/api/models/org/m", f"/org/m/resolve/{COMMIT}/config.json"])
def test_no_answer_of_the_hub_leads_to_another_address_unchecked(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes], path: str, target: str
) -> None:
    stand_in.add_model("org/m", files)
    stand_in.redirects[path] = target
    strict = replace(web_policy, allow_private_addresses=False, hf_token="hf_secret")
    with pytest.raises(SourceNotAllowedError) as refusal:
        resolve("hf://org/m", strict)
    assert "hf_secret" not in refusal.value.message


def test_a_model_that_was_renamed_is_followed(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/new", files)
    stand_in.redirects["/api/models/org/old"] = "/api/models/org/new"
    for name in files:
        stand_in.redirects[f"/org/old/resolve/{COMMIT}/{name}"] = (
            f"/org/new/resolve/{COMMIT}/{name}"
        )
    assert resolve("hf://org/old", web_policy).resolved == f"hf://org/old@{COMMIT}"


def test_settings_of_the_hubs_library_change_nothing(
    stand_in: Any,
    web_policy: SourcePolicy,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in.add_model("org/m", files)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert resolve("hf://org/m", web_policy).tensors
    assert not any("authorization" in headers for _, headers in stand_in.requests)


def test_a_deadline_ends_all_waiting(web_policy: SourcePolicy) -> None:
    with silent_server() as address:
        soon = replace(
            web_policy,
            hf_endpoint=f"http://{address}",
            retry_delays_seconds=(0.1, 5.0, 60.0),
            give_up_at=time.monotonic() + 0.5,
        )
        begun = time.monotonic()
        with pytest.raises(SourceUnreachableError):
            resolve("hf://org/m", soon)
        with pytest.raises(SourceUnreachableError, match="takes too long"):
            resolve("hf://org/m", replace(soon, give_up_at=begun))
        assert time.monotonic() - begun < 4


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_server_that_keeps_one_waiting_is_left(policy: SourcePolicy, drip: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    done = threading.Event()

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(head)
            while not done.wait(0.02):
                with suppress(OSError):
                    connection.sendall(drip)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        impatient = replace(
            policy,
            allowed_hosts=frozenset({host}),
            allow_private_addresses=True,
            timeout_seconds=0.2,
            retry_delays_seconds=(),
        )
        start = time.monotonic()
        with (
            closing(WebClient(impatient, hub=False)) as client,
            pytest.raises(SourceUnreachableError),
        ):
            client.look_at(f"http://{host}/a", "a", 1000, "a")
        assert time.monotonic() - start < 5
        done.set()
        thread.join()
