"""No private address is ever connected to, however it is written or reached."""

from __future__ import annotations

import socket
from typing import Any

import httpx2
import pytest

from app.contract.errors import SourceNotAllowedError
from app.sources.addresses import PublicBackend, PublicTransport, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.1",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.0.192",
        "192.0.0.8",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:7f00:1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::1",
        "2001:0:7f00:1::",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00:ec2::254",
        "fc00::1",
        "ff02::1",
        "ff0e::1",
        "2001:db8::1",
    ],
)
def test_private_and_reserved_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_ordinary_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "169.254.169.254",
    ],
)
def test_the_transport_refuses_every_form_of_a_private_host(host: str) -> None:
    # A form that nothing takes for an address is refused in its own way.
    with (
        httpx2.Client(transport=PublicTransport(PublicBackend())) as client,
        pytest.raises((SourceNotAllowedError, httpx2.ConnectError, httpx2.InvalidURL)),
    ):
        client.get(f"http://{host}:9/")


def _resolving_to(*addresses: str) -> Any:
    def getaddrinfo(host: str, port: int, *rest: Any, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    return getaddrinfo


def test_a_public_name_of_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _resolving_to("8.8.8.8", "127.0.0.1"))
    with pytest.raises(SourceNotAllowedError, match=r"rebind\.example\.org resolves to a private"):
        PublicBackend().connect_tcp("rebind.example.org", 443)


def test_a_name_is_resolved_once_and_that_address_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(host: str, port: int, *rest: Any, **options: Any) -> Any:
        asked.append(host)
        return _resolving_to("127.0.0.1")(host, port)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        backend = PublicBackend(trusted={("hub.example.org", port)})
        backend.connect_tcp("hub.example.org", port, timeout=5).close()
    # The connection asks once more, for the number, which cannot mean another place.
    assert [host for host in asked if host != "127.0.0.1"] == ["hub.example.org"]


def test_trust_is_for_one_port_of_a_host() -> None:
    with pytest.raises(SourceNotAllowedError):
        PublicBackend(trusted={("127.0.0.1", 8000)}).connect_tcp("127.0.0.1", 8001)


def test_unix_sockets_are_refused() -> None:
    with pytest.raises(SourceNotAllowedError):
        PublicBackend().connect_unix_socket("/var/run/docker.sock")
