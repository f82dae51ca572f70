"""Connects to public addresses only: a name is resolved once, checked, and that address used."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Collection, Iterable
from functools import cache

import httpcore2
import httpx2

from app.contract.errors import SourceNotAllowedError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)
# Where a network translates for hosts without IPv4: the address means the IPv4 one it ends in.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")


def is_public(address: str) -> bool:
    """Return whether a numeric address, in any notation, is public."""
    return all(_is_public(form) for form in _forms(ipaddress.ip_address(address.split("%")[0])))


def addresses_of(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the checked addresses of a host; connect to one of them instead of to its name.

    Raises:
        SourceNotAllowedError: one is private, and that is not allowed.
        OSError: the name cannot be resolved.

    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise OSError(f"the name {host} cannot be resolved") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    # A private address among public ones is refused too: rebinding attacks look like that.
    if not allow_private and not all(is_public(address) for address in addresses):
        raise SourceNotAllowedError(
            f"{host} resolves to a private, loopback or otherwise reserved address; "
            "sources must be on public addresses"
        )
    return addresses


def _forms(address: _Address) -> list[_Address]:
    """Return every address that a packet to this one could end at."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner = ipaddress.IPv4Address(address.packed[12:])
    if address.ipv4_mapped is not None or address in _NAT64:
        return [inner]
    tunnelled = [address.sixtofour, *(address.teredo or ())]
    if address in _IPV4_COMPATIBLE:
        tunnelled.append(inner)
    return [address, *(end for end in tunnelled if end is not None)]


def _is_public(address: _Address) -> bool:
    local = address.is_multicast or address.is_reserved or address.is_unspecified
    site = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    # 192.0.0.0/24 is reserved for protocols; one cloud's metadata service is there.
    return address.is_global and not local and not site and address.packed[:3] != b"\xc0\x00\x00"


class PublicBackend(httpcore2.NetworkBackend):
    """A network backend that refuses private addresses, except for the trusted (host, port)s."""

    def __init__(self, trusted: Collection[tuple[str, int]] = (), allow_private: bool = False):
        self._trusted = frozenset(trusted)
        self._allow_private = allow_private
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to an address of the host; TLS still checks the host's name afterwards."""
        error: Exception = httpcore2.ConnectError(f"{host} has no address")
        trusted = self._allow_private or (host, port) in self._trusted
        try:
            addresses = addresses_of(host, port, allow_private=trusted)
        except OSError as failure:
            raise httpcore2.ConnectError(str(failure)) from None
        for address in addresses:
            try:
                return self._sockets.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as failure:
                error = failure
        raise error

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore2.NetworkStream:
        """Refuse: no source lives behind a Unix socket."""
        raise SourceNotAllowedError(f"{path}: a source is never behind a Unix socket")


@cache
def tls_context() -> ssl.SSLContext:
    """Return the process's TLS settings; reading the authorities takes longer than a request."""
    return httpx2.create_ssl_context()


class PublicTransport(httpx2.HTTPTransport):
    """httpx2's transport over a PublicBackend; proxies from the environment are not used."""

    def __init__(self, backend: PublicBackend) -> None:
        super().__init__(verify=tls_context())
        self._pool.close()
        self._pool = httpcore2.ConnectionPool(
            ssl_context=tls_context(),
            max_connections=16,
            max_keepalive_connections=8,
            keepalive_expiry=5.0,
            network_backend=backend,
        )
