"""Recognises host names and addresses of this machine."""

from __future__ import annotations

import ipaddress


def is_loopback_name(host: str | None) -> bool:
    """Return whether a host name or address can only mean this machine."""
    if host is None:
        return False
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
