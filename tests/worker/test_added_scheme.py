"""A URI scheme is one file and one line: ftp, added here, is merged from like the others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest

from app.contract.errors import SourceNotAllowedError
from app.contract.settings import Settings
from app.services.preparation import source_policy
from app.sources.fetch import fetch
from app.sources.resolve import resolve
from app.sources.schemes import SCHEMES, forms
from tests.ftp import FtpFolder
from tests.tiny_whisper import make_base, noisy, variant
from worker.merging.local import merge_recipe

WEIGHTS = "model.safetensors"


class FtpServer(ThreadingTCPServer):
    """An FTP server of the files below `root`, for passive, binary, anonymous reading."""

    daemon_threads = True
    root: Path
    commands: list[str]
    cuts: list[int]


class _Session(StreamRequestHandler):
    server: FtpServer

    def handle(self) -> None:
        offset = 0
        self._say("220 ready")
        for line in self.rfile:
            verb, _, argument = line.decode().strip().partition(" ")
            path = self.server.root / argument.lstrip("/")
            self.server.commands.append(f"{verb} {argument}")
            match verb:
                case "SIZE" | "MDTM" | "RETR" if not path.is_file():
                    self._say("550 no such file")
                case "SIZE":
                    self._say(f"213 {path.stat().st_size}")
                case "MDTM":
                    self._say(f"213 {path.stat().st_mtime_ns}")
                case "PASV":
                    listener = socket.create_server(("127.0.0.1", 0))
                    port = listener.getsockname()[1]
                    self._say(f"227 (127,0,0,1,{port // 256},{port % 256})")
                case "REST":
                    offset = int(argument)
                    self._say("350 from there")
                case "RETR":
                    self._say("150 here it comes")
                    with listener, listener.accept()[0] as data:
                        sent = path.read_bytes()[offset:]
                        data.sendall(sent[: self.server.cuts.pop(0)] if self.server.cuts else sent)
                    self._say("226 done")
                case _:
                    self._say("230 as you like")

    def _say(self, answer: str) -> None:
        self.wfile.write(f"{answer}\r\n".encode())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base")
    for seed, name in enumerate(("phone", "radio room")):
        variant(base, folder / name, noisy(seed))
    return folder


@pytest.fixture
def server(models: Path) -> Iterator[FtpServer]:
    with FtpServer(("127.0.0.1", 0), _Session) as server:
        server.root, server.commands, server.cuts = models, [], []
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(server: FtpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Add the scheme, and allow the server."""
    monkeypatch.setitem(SCHEMES, "ftp", FtpFolder)
    return Settings(
        data_dir=tmp_path / "data",
        device="cpu",
        allowed_hosts=(f"127.0.0.1:{server.server_address[1]}",),
        allow_private_addresses=True,
    )


def address(server: FtpServer) -> str:
    return f"ftp://127.0.0.1:{server.server_address[1]}"


def test_checkpoints_of_a_scheme_that_was_added_are_merged(
    server: FtpServer, settings: Settings, models: Path, tmp_path: Path
) -> None:
    merged = []
    for name, root in {"remote": address(server), "local": models.as_uri()}.items():
        experts = [f"{root}/phone", f"{root}/radio%20room"]
        recipe = {"base": f"{root}/base", "checkpoints": experts, "method": "task_arithmetic"}
        merged.append(merge_recipe(recipe, tmp_path / name, settings).folder)
    remote, local = merged
    assert (remote / WEIGHTS).read_bytes() == (local / WEIGHTS).read_bytes()
    recorded = json.loads((remote / "recipe.json").read_bytes())["checkpoints"]
    assert recorded[1]["resolved"] == f"{address(server)}/radio%20room"
    assert recorded[1]["name"] == "radio-room"


def test_its_downloads_go_on_where_they_broke_off(server: FtpServer, settings: Settings) -> None:
    policy = replace(source_policy(settings, None), retry_delays_seconds=(0.0, 0.0))
    found = resolve(f"{address(server)}/base", policy)
    whole = [file.size for file in found.files if file.name != WEIGHTS]
    server.cuts = [*whole, 1000, 700]
    server.commands.clear()
    local = fetch(found, policy)
    with local.open(WEIGHTS) as stream:
        assert stream.read() == (server.root / "base" / WEIGHTS).read_bytes()
    assert [told for told in server.commands if told.startswith("REST")] == [
        "REST 1000",
        "REST 1700",
    ]


def test_it_is_held_to_the_operators_limits(server: FtpServer, settings: Settings) -> None:
    uri = f"{address(server)}/base"
    policy = source_policy(settings, None)
    for strict, said in (
        (replace(policy, allowed_hosts=frozenset()), "AFLUENTE_ALLOWED_HOSTS"),
        (replace(policy, allow_private_addresses=False), "private"),
        (replace(policy, schemes=frozenset({"hf"})), "switched off"),
    ):
        with pytest.raises(SourceNotAllowedError, match=said):
            resolve(uri, strict)
    assert server.commands == []


def test_errors_list_it(settings: Settings) -> None:
    policy = source_policy(settings, None)
    assert FtpFolder.form in forms(policy)
    with pytest.raises(SourceNotAllowedError, match="ftp://host/folder"):
        resolve("gopher://host/base", policy)
