"""What the operator allows as a source: schemes, folders, hosts and sizes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.contract.errors import SourceNotAllowedError, SourceUnreachableError


@dataclass(frozen=True)
class SourcePolicy:
    """The limits on every source, and where downloads are kept.

    Attributes:
        cache_dir: downloads (by sha256) and digests already taken.
        file_roots: folders that `file://` may reach, symlinks followed; None allows every path
            and paths without a scheme (the command line's merge).
        schemes: the URI schemes allowed; None allows all of them.
        allowed_hosts: the servers that URIs may name: `host` (at its scheme's usual port),
            `host:port`, or `*.domain`. The hub needs no entry.
        buckets: the buckets, or folders in them, that URIs may name: (scheme, bucket, *folders).
            None allows every one that the environment's credentials can read (the command line).
        hf_endpoint: the hub that `hf://` means; trusted, so it may have a private address.
        hf_token: a secret, sent to the hub's own origin only.
        allow_private_addresses: for tests against a server on this machine; also allows http.
        max_source_bytes: the quota for one source's files together.
        merge_folder: merge id to the folder of its published artifact; raises NotFoundError or
            ConflictError where there is none.
        timeout_seconds: for a connection, and for each wait for bytes.
        retry_delays_seconds: the pauses between attempts at a server that fails.
        give_up_at: when to stop waiting for any server, on `time.monotonic`'s clock; None: never.

    """

    cache_dir: Path
    file_roots: tuple[Path, ...] | None = ()
    schemes: frozenset[str] | None = None
    allowed_hosts: frozenset[str] = frozenset()
    buckets: tuple[tuple[str, ...], ...] | None = ()
    hf_endpoint: str = "https://huggingface.co"
    hf_token: str | None = field(default=None, repr=False)
    allow_private_addresses: bool = False
    max_source_bytes: int = 64 * 2**30
    merge_folder: Callable[[str], Path] | None = None
    timeout_seconds: float = 30.0
    retry_delays_seconds: tuple[float, ...] = (0.5, 1.0, 2.0)
    give_up_at: float | None = None

    def check_host(self, host: str, port: int, usual_port: int, label: str) -> None:
        """Raise SourceNotAllowedError unless the operator allows the server.

        `usual_port` is the scheme's, which an entry without a port means.
        """
        for entry in self.allowed_hosts:
            stated = re.search(r":(\d+)$", entry)
            name = entry[: stated.start()] if stated else entry
            same = host.endswith(name[1:]) if name.startswith("*.") else host == name.strip("[]")
            if same and port == (int(stated[1]) if stated else usual_port):
                return
        raise SourceNotAllowedError(
            f"{label}: the host {host} (port {port}) is not allowed here; "
            "the operator lists hosts in AFLUENTE_ALLOWED_HOSTS"
        )

    def check_bucket(self, place: tuple[str, ...], label: str) -> None:
        """Raise SourceNotAllowedError unless the operator allows a (scheme, bucket, *folders)."""
        if self.buckets is None or any(place[: len(root)] == root for root in self.buckets):
            return
        raise SourceNotAllowedError(
            f"{label}: this bucket, or folder in it, is not allowed here; "
            "the operator lists them in AFLUENTE_BUCKETS"
        )

    def patience_seconds(self, label: str) -> float:
        """Return how long one wait may take now; SourceUnreachableError when the time is over."""
        if self.give_up_at is None:
            return self.timeout_seconds
        left = self.give_up_at - time.monotonic()
        if left <= 0:
            raise SourceUnreachableError(f"{label}: its server takes too long; try again later")
        return min(self.timeout_seconds, left)

    def may_wait(self, seconds: float) -> bool:
        """Return whether there is time for a pause and another attempt."""
        return self.give_up_at is None or time.monotonic() + seconds < self.give_up_at
