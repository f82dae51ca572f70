"""The settings and their defaults: environment variables `AFLUENTE_*`."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_SERVICE = re.compile(r"(tcp|udp|sctp)://")
_SAMPLES = Path(__file__).resolve().parents[2] / "samples"


class Settings(BaseSettings):
    """The operator's choices; a field `x` is read from `AFLUENTE_X`."""

    model_config = SettingsConfigDict(
        env_prefix="AFLUENTE_",
        # Compose and Kubernetes pass unset variables on as empty strings.
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
    )

    data_dir: Path = Field(
        Path("afluente-data"),
        description="Folder for the database, queue, cache and artifacts of `afluente up`.",
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL of the database; SQLite in the data folder if not set."
    )
    broker_url: SecretStr | None = Field(
        None,
        description="redis:// URL of the queue; if not set, `afluente up` starts its own Valkey.",
    )
    artifact_dir: Path | None = Field(
        None,
        description="Folder for scratch space and published artifacts, shared by the API and all workers; in the data folder if not set.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Folder for downloaded checkpoints and digests; in the data folder if not set.",
    )
    file_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Colon-separated folders allowed in file:// URIs, besides the samples and the data folder's `sources`.",
    )
    schemes: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="Comma-separated URI schemes that are allowed; all of them if not set."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated servers that URIs may name, as host, host:port or *.domain; none by default. The hub needs no entry.",
    )
    buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated buckets, or folders in them, that s3://, gs:// and az:// URIs may name, as s3://bucket/folder; none by default. Credentials are the environment's (docs/buckets.md).",
    )
    allow_private_addresses: bool = Field(
        False,
        description="Allow remote sources on private or loopback addresses (a mirror inside your network), also over http.",
    )
    hf_endpoint: str = Field(
        "https://huggingface.co", description="Address of the hub for hf:// URIs."
    )
    hf_token: SecretStr | None = Field(
        None, description="Token for private or gated repositories on the hub."
    )
    host: str = Field(
        "127.0.0.1",
        description="Address the API listens on; addresses other than loopback require an API key.",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="Port the API listens on; 0 picks a free one. A `tcp://...` value, which Kubernetes sets for a Service called afluente, counts as not set.",
    )
    require_api_key: bool = Field(
        False,
        description="Require an API key even on loopback. Once a key has been created, keys are always required, even after the last is revoked.",
    )
    max_checkpoints: int = Field(32, ge=1, description="Largest number of checkpoints in a merge.")
    max_source_bytes: int = Field(
        50 * 10**9, ge=1, description="Largest size of a checkpoint, in bytes."
    )
    max_body_bytes: int = Field(
        1_000_000, ge=1, description="Largest size of a request's body, in bytes."
    )
    request_seconds: float = Field(
        30.0,
        gt=0,
        description="Time limit for receiving a request's head, and again for its body.",
    )
    source_timeout_seconds: float = Field(
        30.0, gt=0, description="Time limit for a remote source's response."
    )
    source_deadline_seconds: float = Field(
        60.0,
        gt=0,
        description="Time limit for checking all remote sources of a request; after it the request is refused with 503.",
    )
    lease_seconds: float = Field(
        10.0, gt=0, description="How long a worker's lease on a job lasts without renewal."
    )
    renew_seconds: float = Field(2.0, gt=0, description="How often a worker renews its lease.")
    poll_seconds: float = Field(
        0.5, gt=0, description="How often a worker checks whether its job was cancelled."
    )
    sweep_seconds: float = Field(
        2.0, gt=0, description="How often workers look for lost and forgotten jobs."
    )
    max_crashes: int = Field(
        5, ge=1, description="Number of worker crashes after which a job fails for good."
    )
    stop_seconds: float = Field(
        20.0,
        gt=0,
        description="Time limit for a stopping worker to return its job to the queue.",
    )
    device: str = Field("auto", description="Where workers compute: auto, cpu, cuda, cuda:0, ...")
    threads: int | None = Field(
        None,
        ge=1,
        description="Number of threads that merge on a CPU; the number of cores if not set.",
    )
    gpu_eigh_seconds: float | None = Field(
        None,
        gt=0,
        description="Time of a float64 eigenproblem of size 1280 on this worker's GPU (benchmarks/gpu.py measures it); with device auto, merges take the GPU if it is estimated to be faster than the CPU.",
    )
    memory_bytes: int | None = Field(
        None,
        ge=1,
        description="Working memory of a merge; half of what is available if not set. A single tensor may exceed it.",
    )
    reductions_bytes: int = Field(
        0,
        ge=0,
        description="Disk space for norms and spectra that later merges of the same checkpoints reuse, such as a search over beta; 0 turns it off.",
    )
    statistics_bytes: int = Field(
        20 * 2**30,
        ge=0,
        description="Disk space for what was gathered on calibration sets, the newest, which later merges of the same checkpoints reuse; 0 keeps nothing after a merge.",
    )
    failed_scratch_seconds: float = Field(
        86_400.0,
        ge=0,
        description="How long the finished tensors of a failed merge are kept for a retry.",
    )
    idempotency_seconds: float = Field(
        86_400.0, gt=0, description="How long an Idempotency-Key is remembered."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_kubernetes(cls, value: object) -> object:
        """Ignore the URL that Kubernetes sets as AFLUENTE_PORT for a Service called afluente."""
        is_service = isinstance(value, str) and _SERVICE.match(value)
        return cls.model_fields["port"].default if is_service else value

    @field_validator("renew_seconds")
    @classmethod
    def _renew_in_time(cls, value: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease_seconds")
        if lease is not None and value >= lease:
            raise ValueError(f"Must be less than AFLUENTE_LEASE_SECONDS, which is {lease}.")
        return value

    @field_validator("file_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(p for p in value.split(":") if p) if isinstance(value, str) else value

    @field_validator("buckets", mode="before")
    @classmethod
    def _split_uris(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(w.strip() for w in value.split(",") if w.strip())

    @field_validator("buckets")
    @classmethod
    def _buckets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for uri in value:
            if not re.fullmatch(r"(s3|gs|az)://[a-z0-9][a-z0-9._-]+(/[^/?#]+)*/?", uri):
                raise ValueError(f"Must be like s3://bucket or gs://bucket/folder, not {uri!r}.")
            folders = map(unquote, uri.split("/")[3:])
            if any(name in {".", ".."} or "/" in name or "\\" in name for name in folders):
                raise ValueError(f"Must have no '.', '..' or encoded slash, not {uri!r}.")
        return value

    @field_validator("schemes", "allowed_hosts", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(w.strip().lower() for w in value.split(",") if w.strip())

    @cached_property
    def data(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().absolute()

    @cached_property
    def database(self) -> str | Path:
        """The database's URL, or the path of the SQLite file in the data folder."""
        return self.database_url or self.data / "afluente.db"

    @cached_property
    def broker(self) -> str | None:
        """The queue's URL; None for the embedded Valkey."""
        return self.broker_url.get_secret_value() if self.broker_url else None

    @cached_property
    def artifacts(self) -> Path:
        """The folder for scratch space and published artifacts."""
        return (self.artifact_dir or self.data / "artifacts").expanduser().absolute()

    @cached_property
    def cache(self) -> Path:
        """The folder for downloads and digests."""
        return (self.cache_dir or self.data / "cache").expanduser().absolute()

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """The folders allowed in file:// URIs: `file_roots`, the samples, the data's `sources`.

        The rest of the data folder (database, queue) is excluded.
        """
        samples = (_SAMPLES,) if _SAMPLES.is_dir() else ()
        return (
            *(root.expanduser().absolute() for root in self.file_roots),
            *samples,
            self.data / "sources",
        )
