"""The queue: Celery on Redis or Valkey carries hints about rows; Pub/Sub wakes event readers."""

from __future__ import annotations

import importlib
import logging
import time
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.contract.errors import InvalidRequestError, Problem
from app.contract.tasks import EVALUATE_TASK, MERGE_TASK, QUEUE, events_channel
from app.isolation import forget_variables
from app.storage.leases import JobKind

if TYPE_CHECKING:
    from celery import Celery

_LOG = logging.getLogger(__name__)
_CONNECT_SECONDS = 2.0
# How long a broker that did not answer is left alone.
_AWAY_SECONDS = 3.0
# Why Redis or Valkey refuses a message.
_PROBLEMS: dict[type[redis.RedisError], str] = {
    exceptions.AuthenticationError: (
        "The broker refuses the service's user or password (AFLUENTE_BROKER_URL)."
    ),
    exceptions.NoPermissionError: "The broker does not let the service's user write.",
    exceptions.ReadOnlyError: "The broker takes no changes: it is a replica.",
    exceptions.BusyLoadingError: "The broker is starting; try again in a few seconds.",
    exceptions.OutOfMemoryError: "The broker's memory is full.",
    exceptions.ResponseError: "The broker takes no message; its log says why.",
}
# Above the longest job: a message is redelivered only when its worker is long gone, and the
# sweeper has acted on the row hours before.
_VISIBILITY_SECONDS = 7 * 24 * 3600


@lru_cache(maxsize=8)
def celery_app(broker_url: str) -> Celery:
    """Return the Celery application on this broker: JSON only, no results, no prefetching.

    Nothing else configures it: no variable, no `celeryconfig.py`, no Django project.
    """
    forget_variables()
    from celery import Celery  # slow to import, and an API may never send anything
    from celery.loaders.app import AppLoader

    class Loader(AppLoader):
        """Imports as Python does: Celery's own puts the working directory first meanwhile."""

        def import_from_cwd(
            self, module: str, imp: Any = None, package: str | None = None
        ) -> ModuleType:
            return importlib.import_module(module, package)

    application = Celery("afluente", broker=broker_url, loader=Loader, fixups=[])
    application.conf.update(
        accept_content=["json"],
        task_serializer="json",
        broker_read_url=broker_url,
        broker_write_url=broker_url,
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        task_acks_on_failure_or_timeout=True,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=1,
        worker_concurrency=1,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": _VISIBILITY_SECONDS,
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_timeout": 10.0,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "polling_interval": 0.2,
        },
    )
    return application


class Queue:
    """Sends hints to the workers and wakes the readers of events; never the only copy.

    A broker that is away costs one call its patience; for the next seconds nobody asks it.
    """

    def __init__(self, broker_url: str) -> None:
        """Connect when first needed; raises InvalidRequestError for what is no redis:// URL."""
        self._url = broker_url
        self._away_until = 0.0
        try:
            self._redis = redis.Redis.from_url(
                broker_url,
                socket_connect_timeout=_CONNECT_SECONDS,
                socket_timeout=_CONNECT_SECONDS,
                # A connection that an earlier server left behind is made anew, once and at once.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError:
            message = "Give a URL as redis://:password@host:6379/0."
            raise InvalidRequestError.of([Problem(message, "AFLUENTE_BROKER_URL")]) from None

    def send(self, kind: JobKind, job_id: str) -> bool:
        """Tell the workers of a queued job; False if the broker is away (the sweeper will)."""
        from kombu.exceptions import OperationalError

        name = MERGE_TASK if kind is JobKind.MERGE else EVALUATE_TASK
        try:
            # Celery would try again for six seconds, and a client waits for its answer.
            if not self._is_there():
                return False
            celery_app(self._url).send_task(name, args=[job_id], queue=QUEUE, retry=False)
        except (OperationalError, redis.RedisError, OSError) as error:
            self._avoid()
            _LOG.warning("the broker did not take a message for %s: %s", job_id, error)
            return False
        return True

    def wake(self, merge_id: str) -> None:
        """Wake the readers of a merge's events; they look by themselves if this is lost."""
        if time.monotonic() < self._away_until:
            return
        try:
            self._redis.publish(events_channel(merge_id), "")
        except redis.RedisError as error:
            self._avoid()
            _LOG.debug("nobody was woken for %s: %s", merge_id, error)

    def depth(self) -> int | None:
        """Return the number of messages that wait, or None if the broker is away."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return int(self._redis.llen(QUEUE))
        except redis.RedisError:
            self._avoid()
            return None

    def problem(self) -> str | None:
        """Return why the broker would not take a message now, for anyone to read; None if it would.

        This always asks.
        """
        try:
            self._redis.set(f"{QUEUE}.probe", "", ex=60)  # one that is full answers, but not this
        except redis.RedisError as error:
            self._avoid()
            known = (why for kind, why in _PROBLEMS.items() if isinstance(error, kind))
            return next(known, "The broker does not answer.")
        self._away_until = 0.0
        return None

    def _is_there(self) -> bool:
        return time.monotonic() >= self._away_until and bool(self._redis.ping())

    def _avoid(self) -> None:
        self._away_until = time.monotonic() + _AWAY_SECONDS

    def subscriber(self) -> redis.asyncio.Redis:
        """Return an asynchronous client for listening to event channels."""
        return redis.asyncio.Redis.from_url(self._url, socket_connect_timeout=_CONNECT_SECONDS)
