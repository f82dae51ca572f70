"""Checkpoints in buckets, read from a real S3 server (rclone's)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from app.contract.errors import (
    InvalidCheckpointError,
    SourceChangedError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from app.contract.settings import Settings
from app.services.preparation import source_policy
from app.sources.fetch import fetch
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from app.sources.schemes import open_folder
from app.sources.schemes.folder import RemoteFolder
from tests.app.sources.conftest import checkpoint_files

KEY, SECRET = "reader", "a secret that no error shows"
WEIGHTS = "model.safetensors"


@dataclass
class Server:
    """rclone serving the folders below `root` as buckets."""

    process: subprocess.Popen[bytes]
    root: Path

    def put(self, path: str, files: dict[str, bytes]) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("buckets")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr"]
    command += [f"127.0.0.1:{port}", "--vfs-cache-mode", "off", "--dir-cache-time", "0s"]
    command += ["--auth-key", f"{KEY},{SECRET}", str(root)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"RCLONE_CONFIG": "/dev/null"},
    )
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield Server(process, root)
    patch.undo()
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


@pytest.fixture
def allowed(server: Server, tmp_path: Path) -> SourcePolicy:
    settings = Settings(data_dir=tmp_path / "data", buckets=("s3://speech/models", "s3://other"))
    server.put("speech/models/base", checkpoint_files())
    return replace(source_policy(settings, None), retry_delays_seconds=(0.0, 0.1))


def test_a_checkpoint_in_a_bucket_is_the_folders(
    allowed: SourcePolicy,
    server: Server,
    make_checkpoint: Callable[..., Path],
    policy: SourcePolicy,
) -> None:
    found = resolve("S3://speech//models/base/", allowed)
    same = resolve(make_checkpoint().as_uri(), policy)
    assert found.resolved == "s3://speech/models/base"
    assert found.tensors == same.tensors
    local = fetch(found, allowed)
    with local.open(WEIGHTS) as stream:
        assert stream.read() == (server.root / "speech/models/base" / WEIGHTS).read_bytes()


def test_every_character_of_a_key_is_read_as_it_is(allowed: SourcePolicy, server: Server) -> None:
    server.put("speech/models/ein Modell +1 ü", checkpoint_files())
    found = resolve("s3://speech/models/ein%20Modell%20+1%20%C3%BC", allowed)
    assert found.resolved == "s3://speech/models/ein%20Modell%20%2B1%20%C3%BC"
    fetch(found, allowed)


def test_a_manifest_may_be_an_object(allowed: SourcePolicy, server: Server) -> None:
    server.put("speech/models", {"test.jsonl": b'{"audio_filepath": "a.wav"}\n'})
    with open_folder("s3://speech/models/test.jsonl", allowed) as folder:
        file = folder.as_file()
        assert folder.read_prefix(file, 100) == b'{"audio_filepath": "a.wav"}\n'


@pytest.mark.parametrize(
    "uri", ["s3://speech/private/base", "s3://speech/modelsX", "s3://speech", "gs://other/base"]
)
def test_only_what_the_operator_lists_is_reached(allowed: SourcePolicy, uri: str) -> None:
    with pytest.raises(SourceNotAllowedError, match="AFLUENTE_BUCKETS"):
        resolve(uri, allowed)
    with pytest.raises(SourceNotAllowedError, match="AFLUENTE_BUCKETS"):
        resolve("s3://other/base", replace(allowed, buckets=()))


@pytest.mark.parametrize(
    "uri",
    ["s3://speech/models/../private", "s3://speech:9000/models", "s3://key:pass@speech/models",
     "s3:///models", "s3://Sp%65ech/models", "s3://speech/models?versionId=1"],
)  # fmt: skip
def test_a_uri_that_could_mean_two_places_is_refused(allowed: SourcePolicy, uri: str) -> None:
    with pytest.raises(SourceNotAllowedError):
        resolve(uri, allowed)


def test_a_download_goes_on_where_it_broke_off(allowed: SourcePolicy, server: Server) -> None:
    content = bytes(range(256)) * 12_000
    server.put("speech/models", {"long.bin": content})
    with open_folder("s3://speech/models/long.bin", allowed) as folder:
        assert isinstance(folder, RemoteFolder)
        file = folder.as_file()
        for start, stop in ((0, 10), (5, 5), (1, len(content)), (2_500_001, len(content) + 9)):
            assert b"".join(folder.read(file, start, stop)) == content[start:stop]


def test_what_is_not_there_is_said(allowed: SourcePolicy) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"s3://speech/models/none: .* no config.json"):
        resolve("s3://speech/models/none", allowed)
    with (
        pytest.raises(SourceNotFoundError, match="no such object"),
        open_folder("s3://speech/models/none.jsonl", allowed) as folder,
    ):
        folder.as_file()
    with pytest.raises(SourceNotFoundError, match="other"):
        resolve("s3://other/base", allowed)


def test_credentials_that_are_refused_are_the_operators_to_mend(
    allowed: SourcePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another secret")
    with pytest.raises(SourceNotAllowedError, match="credentials") as refused:
        resolve("s3://speech/models/base", allowed)
    assert SECRET not in str(refused.value)


def test_an_object_that_changes_between_two_readings_is_noticed(
    allowed: SourcePolicy, server: Server
) -> None:
    server.put("speech/models/changing", checkpoint_files())
    found = resolve("s3://speech/models/changing", allowed)
    server.put("speech/models/changing", checkpoint_files(seed=1))
    with pytest.raises(SourceChangedError, match="submit again"):
        fetch(found, allowed)
    shutil.rmtree(server.root / "speech/models/changing")


def test_a_server_that_hangs_is_given_up_and_goes_on_later(
    allowed: SourcePolicy, server: Server
) -> None:
    impatient = replace(allowed, timeout_seconds=0.5)
    found = resolve("s3://speech/models/base", impatient)
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(SourceUnreachableError, match="bucket speech"):
            fetch(found, impatient)
    finally:
        server.process.send_signal(signal.SIGCONT)
    with fetch(found, allowed).open(WEIGHTS) as stream:
        assert stream.read() == (server.root / "speech/models/base" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    "uri", ["speech/models", "s3://speech/../other", "s3://speech/a%2Fb", "s3://speech/%2e%2e/b"]
)
def test_a_setting_that_no_uri_could_match_is_refused_at_the_start(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFLUENTE_BUCKETS", " s3://speech/models, gs://shared/, ")
    assert Settings().buckets == ("s3://speech/models", "gs://shared/")
    monkeypatch.setenv("AFLUENTE_BUCKETS", uri)
    with pytest.raises(ValueError, match="Must"):
        Settings()
