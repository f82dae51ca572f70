"""The API against its OpenAPI document: no input makes it fail, all responses are documented."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.config import SchemathesisConfig

from app.contract.settings import Settings
from app.main import create_app
from app.storage import keys
from tests.app.routes.conftest import serve, succeed, write_checkpoint

# Its coverage phase is left to longer runs: it tries each value of each field.
CONFIG = SchemathesisConfig.from_dict({"phases": {"coverage": {"enabled": False}}})
SCHEMA = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=CONFIG)
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
FUZZ = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Service:
    """A running service, an API key of it if it asks for one, and merges that it has."""

    url: str
    headers: dict[str, str]
    queued: str
    finished: str

    def send(self, head: bytes) -> bytes:
        """Send bytes as they are and return the answer."""
        where = urlsplit(self.url)
        with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
            connection.sendall(head)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received


@pytest.fixture(scope="module", params=["open", "keyed"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    for seed, name in enumerate(("base", "one")):
        write_checkpoint(folder / "models" / name, seed=seed)
    chosen = Settings(
        data_dir=folder / "data",
        file_roots=(folder / "models",),
        schemes=("file", "merge"),  # nothing leaves this machine
        require_api_key=request.param == "keyed",
    )
    with serve(chosen) as (url, backend):
        headers = {}
        if request.param == "keyed":
            secret = keys.create(backend.engine, "fuzz", ["admin"])[1]
            headers = {"Authorization": f"Bearer {secret}"}
        body = {"checkpoints": [f"file://{folder}/models/{n}" for n in ("base", "one")]}
        made = [
            requests.post(f"{url}/merges", json=body | {"method": "soup"}, headers=headers).json()
            for _ in range(2)
        ]
        succeed(backend.engine, backend.store, made[1]["id"])
        yield Service(url, headers, made[0]["id"], made[1]["id"])


@SCHEMA.parametrize()
@FUZZ
def test_every_operation_answers_as_it_is_described(case: Any, service: Service):
    if case.method != "DELETE" and "merge_id" in (case.path_parameters or {}):
        # What is there has more to go wrong than what is not.
        chosen = (service.queued, service.finished, case.path_parameters["merge_id"])
        case.path_parameters["merge_id"] = chosen[len(str(case.query)) % 3]
    answer = case.call(base_url=service.url, headers=service.headers)
    assert answer.status_code != 500
    case.validate_response(answer, checks=CHECKS)
    case.headers.pop("Authorization", None)
    if service.headers and not case.path.startswith(("/healthz", "/readyz", "/version")):
        refused = case.call(base_url=service.url)
        assert refused.status_code == 401
        case.validate_response(refused, checks=CHECKS)


HOSTILE = [
    "9" * 5_000, "-1", "1e999", "NaN", "\0", "\ud800", "é", "\N{PILE OF POO}" * 50, "a" * 30_000,
    "../" * 50, "%", "%zz", "\r\nX: y", "[" * 500, "{}", "' OR 1=1 --", "mrg_" + "0" * 26,
]  # fmt: skip
HEADERS = (
    "Accept", "Authorization", "Content-Length", "Content-Type", "Cookie", "Forwarded",
    "Idempotency-Key", "If-None-Match", "If-Range", "Last-Event-ID", "Origin", "Range",
    "Sec-Fetch-Site", "Transfer-Encoding", "X-Forwarded-For",
)  # fmt: skip


def _hostile_requests(service: Service) -> Iterator[str]:
    """Yield heads of requests in which one parameter is strange."""
    place = {
        "merge_id": service.finished,
        "folder": "ctranslate2_int8",
        "name": "model.safetensors",
        "evaluation_id": "x",
        "study_id": "x",
    }
    for path, operations in SCHEMA.raw_schema["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                for value in HOSTILE:
                    text = quote(value.encode("utf-8", "surrogatepass"))
                    target = path.format_map(place)
                    if parameter["in"] == "path":
                        target = path.format_map(place | {parameter["name"]: text})
                    elif parameter["in"] == "query":
                        target += f"?{parameter['name']}={text}"
                    yield f"{method.upper()} {target} HTTP/1.1\r\n"
    artifact = f"GET /merges/{service.finished}/artifacts/config.json"
    for target in (artifact, f"GET /merges/{service.finished}/events", "POST /merges"):
        for name in HEADERS:
            for value in HOSTILE:
                raw = value.encode("utf-8", "surrogatepass").decode("latin-1")
                raw = raw.replace("\r\n", " ").replace("\0", " ")
                yield f"{target} HTTP/1.1\r\n{name}: {raw}\r\n"


@pytest.mark.parametrize("service", ["open"], indirect=True)
def test_no_parameter_value_makes_the_service_fail(service: Service):
    for head in _hostile_requests(service):
        told = f"{head}Host: localhost\r\nConnection: close\r\n\r\n"
        answer = service.send(told.encode("latin-1"))
        assert answer[9:10] in {b"2", b"4"}, (head[:300], answer[:300])
        if answer[9:10] == b"4":
            body = answer.partition(b"\r\n\r\n")[2]
            assert len(body) < 10_000, head[:300]
            if b"application/problem+json" in answer[:1_000] and not head.startswith("HEAD"):
                json.loads(body)


@pytest.mark.parametrize("service", ["open"], indirect=True)
@settings(FUZZ, max_examples=60)
@given(
    st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "TRACE", "get", "A" * 50]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40),
    st.lists(st.tuples(
        st.sampled_from(["Host", "Content-Type", "Range", "Expect", "Upgrade", "Connection", "X"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30),
    ), max_size=4),
    st.binary(max_size=60),
)  # fmt: skip
def test_no_request_makes_the_service_fail(
    service: Service, method: str, target: str, headers: list[tuple[str, str]], body: bytes
):
    head = f"{method} /{target} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {len(body)}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in headers
    )
    answer = service.send(f"{head}Connection: close\r\n\r\n".encode("latin-1") + body)
    assert answer[9:12] not in {b"500", b"502"}
    assert answer.startswith(b"HTTP/1.1 ")
