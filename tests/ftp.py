"""`ftp://`: folders on FTP servers. A worked example of a file in app/sources/schemes/."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from ftplib import FTP, FTP_PORT, error_perm, error_temp
from urllib.parse import quote

from app.contract.errors import SourceChangedError
from app.sources.addresses import addresses_of
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy
from app.sources.schemes.folder import PassingFaultError, RemoteFolder
from app.sources.uris import split_uri

_CHUNK_BYTES = 1 << 16


class FtpFolder(RemoteFolder):
    """A folder on an FTP server, read without an account."""

    scheme = "ftp"
    form = "ftp://host/folder"

    def __init__(self, uri: str, policy: SourcePolicy) -> None:
        super().__init__(uri, policy)
        self._parts = split_uri(uri, names_server=True)
        self.name = self._parts.name or self._parts.host

    @property
    def resolved(self) -> str:
        """The URI in its normal form: FTP has no revisions."""
        return self._parts.url

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the server has."""
        found = {}
        with self._session(self.label) as ftp:
            for name in names:
                with suppress(error_perm):
                    found[name] = self._look_at(ftp, name)
        return found

    def read(self, file: SourceFile, start: int, stop: int) -> Generator[bytes, None, None]:
        """Yield a file's bytes from `start` to `stop`, or to its end."""
        label = self.label_of(file.name)
        with self._session(label) as ftp:
            if self._look_at(ftp, file.name) != file:
                raise SourceChangedError(f"{label}: the file on the server changed; submit again")
            with ftp.transfercmd(f"RETR {self._path(file.name)}", start or None) as data:
                while start < stop and (chunk := data.recv(min(_CHUNK_BYTES, stop - start))):
                    start += len(chunk)
                    yield chunk

    @contextmanager
    def _session(self, label: str) -> Iterator[FTP]:
        host, port = self._parts.host, self._parts.port or FTP_PORT
        self.policy.check_host(host, port, FTP_PORT, label)
        try:
            private = self.policy.allow_private_addresses
            address = addresses_of(host, port, allow_private=private)[0]
            with closing(FTP(timeout=self.policy.patience_seconds(label))) as ftp:
                ftp.connect(address, port)
                ftp.login()
                ftp.voidcmd("TYPE I")
                yield ftp
        except (OSError, EOFError, error_perm, error_temp) as error:
            raise PassingFaultError(f"{label}: {host} cannot be read ({error})") from None

    def _look_at(self, ftp: FTP, name: str) -> SourceFile:
        size = ftp.size(self._path(name)) or 0
        changed_at = ftp.voidcmd(f"MDTM {self._path(name)}")
        return SourceFile(name, size, url=f"{self._parts.url}/{quote(name)}", version=changed_at)

    def _path(self, name: str) -> str:
        return "/".join(("", *self._parts.segments, name))
