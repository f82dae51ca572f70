"""Small Whisper checkpoints written by hand, and a server standing in for the hub and the web."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from app.contract.tensors import ITEM_SIZES
from app.sources.architectures.whisper.shapes import expected_shapes
from app.sources.policy import SourcePolicy

CONFIG: dict[str, Any] = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 4,
    "vocab_size": 20,
    "max_source_positions": 10,
    "max_target_positions": 6,
}
VOCABULARY = {f"w{number}": number for number in range(CONFIG["vocab_size"])}
TOKENIZER = json.dumps({"model": {"vocab": VOCABULARY, "merges": []}}).encode()
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def write_safetensors(tensors: Tensors, seed: int = 0) -> bytes:
    """Return a safetensors file of random bytes."""
    entries, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = position + prod(shape) * ITEM_SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(position)


def whisper_tensors(dtype: str = "F32", **changes: int) -> Tensors:
    return {name: (dtype, shape) for name, shape in expected_shapes(CONFIG | changes).items()}


def checkpoint_files(
    tensors: Tensors | None = None, config: dict[str, Any] | None = None, seed: int = 0
) -> dict[str, bytes]:
    """Return the files of a small checkpoint, by name."""
    told = CONFIG | (config or {})
    return {
        "config.json": json.dumps(told).encode(),
        "preprocessor_config.json": json.dumps({"feature_size": told["num_mel_bins"]}).encode(),
        "tokenizer.json": TOKENIZER,
        "model.safetensors": write_safetensors(
            whisper_tensors() if tensors is None else tensors, seed
        ),
    }


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield `host:port` of a server that accepts connections and never says anything."""
    held: list[socket.socket] = []

    def accept(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                held.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint under `models/` and return its folder."""

    def make(name: str = "base", files: dict[str, bytes] | None = None, **options: Any) -> Path:
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        contents = checkpoint_files(**options) if files is None else files
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        return folder

    return make


@pytest.fixture
def policy(tmp_path: Path) -> SourcePolicy:
    """Allow `models/` only."""
    (tmp_path / "models").mkdir(exist_ok=True)
    return SourcePolicy(
        cache_dir=tmp_path / "cache",
        file_roots=(tmp_path / "models",),
        retry_delays_seconds=(0.0, 0.0),
        timeout_seconds=5.0,
    )


@dataclass
class StandIn:
    """A web server whose faults are set by the test."""

    files: dict[str, bytes] = field(default_factory=dict)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    token: str | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    host: str = ""

    def add_folder(self, path: str, files: dict[str, bytes]) -> str:
        self.files.update({f"{path}/{name}": content for name, content in files.items()})
        return f"{self.url}{path}"

    def add_model(
        self, repo: str, files: dict[str, bytes], revision: str = "main", kind: str = "models"
    ) -> None:
        """Serve a model or dataset as the hub does: large files by redirect to another place."""
        at = repo if kind == "models" else f"{kind}/{repo}"
        siblings = []
        for name, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            path = f"/{at}/resolve/{COMMIT}/{name}"
            if name.endswith((".safetensors", ".parquet")):
                lfs = {"sha256": sha256, "size": len(content), "pointerSize": 130}
                sibling["lfs"] = lfs
                self.redirects[path] = f"{self.url}/cdn/{sha256}?signature=secret"
                self.files[f"/cdn/{sha256}"] = content
            else:
                self.files[path] = content
            siblings.append(sibling)
        document: dict[str, Any] = {
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "siblings": siblings,
        }
        document |= {"private": False, "tags": [], "downloads": 0, "likes": 0}
        self.documents[f"/api/{kind}/{repo}"] = document
        for name in (revision, COMMIT):
            self.documents[f"/api/{kind}/{repo}/revision/{name}"] = document

    def paths(self, suffix: str = "") -> list[str]:
        return [path for path, _ in self.requests if path.endswith(suffix)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site, path = self.stand_in, unquote(self.path.partition("?")[0])
        site.requests.append((path, {name.lower(): v for name, v in self.headers.items()}))
        if site.statuses.get(path):
            self._answer(site.statuses[path].pop(0), b"")
        elif site.token and self.headers.get("Authorization") != f"Bearer {site.token}":
            self._answer(401, b"")
        elif path in site.redirects:
            self._answer(302, b"", {"Location": site.redirects[path]})
        elif path in site.documents:
            document = json.dumps(site.documents[path]).encode()
            self._answer(200, document, {"Content-Type": "application/json"})
        elif path in site.files:
            self._file(path, site.files[path])
        else:
            self._answer(404, b"")

    def _file(self, path: str, content: bytes) -> None:
        site = self.stand_in
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": etag} if site.etags else {}
        status, body = 200, content
        asked = self.headers.get("Range")
        if site.ranges and asked and self.headers.get("If-Range", etag) == etag:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1)
            if start >= len(content):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            status, body = 206, content[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        cuts = site.cuts.get(path, [])
        self._answer(status, body, headers, cuts.pop(0) if cuts else None)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body[:cut])
        except OSError:
            self.close_connection = True
        if cut is not None:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    # Connections come eight at a time; a full queue would cost each a second.
    request_queue_size = 64


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """Serve on this machine until the test ends."""
    site = StandIn()
    handler = type("Handler", (_Handler,), {"stand_in": site})
    server = _Server(("127.0.0.1", 0), handler)
    site.host = f"127.0.0.1:{server.server_port}"
    site.url = f"http://{site.host}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def web_policy(policy: SourcePolicy, stand_in: StandIn) -> SourcePolicy:
    """Allow the stand-in as an https host and as the hub."""
    return SourcePolicy(
        cache_dir=policy.cache_dir,
        file_roots=policy.file_roots,
        allowed_hosts=frozenset({stand_in.host}),
        hf_endpoint=stand_in.url,
        allow_private_addresses=True,
        retry_delays_seconds=(0.0, 0.0),
        timeout_seconds=5.0,
    )
