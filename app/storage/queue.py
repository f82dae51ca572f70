"""The queue: Celery on Redis or Valkey announces rows; Pub/Sub wakes event readers."""

from __future__ import annotations

import importlib
import logging
import math
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
from app.contract.tasks import EVALUATE_TASK, MERGE_TASK, QUEUE, STUDY_TASK, events_channel
from app.isolation import forget_variables
from app.storage.leases import JobKind

if TYPE_CHECKING:
    from celery import Celery

_LOG = logging.getLogger(__name__)
_CONNECT_SECONDS = 2.0
# How long calls skip a broker that did not respond.
_AWAY_SECONDS = 3.0
# Why Redis or Valkey refuses a message.
_PROBLEMS: dict[type[redis.RedisError], str] = {
    exceptions.AuthenticationError: (
        "The broker refuses the service's user or password (AFLUENTE_BROKER_URL)."
    ),
    exceptions.NoPermissionError: "The broker does not allow the service's user to write.",
    exceptions.ReadOnlyError: "The broker is a read-only replica.",
    exceptions.BusyLoadingError: "The broker is starting; try again in a few seconds.",
    exceptions.OutOfMemoryError: "The broker's memory is full.",
    exceptions.ResponseError: "The broker refuses messages; its log has the reason.",
}
_TASKS = {
    JobKind.MERGE: MERGE_TASK,
    JobKind.EVALUATION: EVALUATE_TASK,
    JobKind.STUDY: STUDY_TASK,
}
# Longer than any job, so that Celery never redelivers: the sweeper handles lost workers.
_VISIBILITY_SECONDS = 7 * 24 * 3600


@lru_cache(maxsize=8)
def celery_app(broker_url: str) -> Celery:
    """Return the Celery application for this broker: JSON only, no results, no prefetching.

    It ignores environment variables, `celeryconfig.py` and Django projects.
    """
    forget_variables()
    from celery import Celery  # slow to import
    from celery.loaders.app import AppLoader

    class Loader(AppLoader):
        """Imports without putting the working directory on the path, as Celery's loader does."""

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
    """Announces jobs to the workers and wakes event readers; all data is in the database.

    After a call has timed out, the next calls skip the broker for some seconds.
    """

    def __init__(self, broker_url: str | None) -> None:
        """Connect on first use; raises InvalidRequestError unless it is a redis:// URL.

        Without a URL there is no broker: nothing is sent, and nobody is woken.
        """
        self._url = broker_url or ""
        self._away_until = 0.0 if broker_url else math.inf
        if not broker_url:
            return
        try:
            self._redis = redis.Redis.from_url(
                broker_url,
                socket_connect_timeout=_CONNECT_SECONDS,
                socket_timeout=_CONNECT_SECONDS,
                # Reconnect once, without delay, after a restart of the server.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError:
            message = "Give a URL such as redis://:password@host:6379/0."
            raise InvalidRequestError.of([Problem(message, "AFLUENTE_BROKER_URL")]) from None

    def send(self, kind: JobKind, job_id: str) -> bool:
        """Announce a queued job; False if the broker is away (the sweeper sends it later)."""
        from kombu.exceptions import OperationalError

        name = _TASKS[kind]
        try:
            # A client is waiting, and Celery would retry for six seconds.
            if not self._responds():
                return False
            celery_app(self._url).send_task(name, args=[job_id], queue=QUEUE, retry=False)
        except (OperationalError, redis.RedisError, OSError) as error:
            self._avoid()
            _LOG.warning("the broker did not take a message for %s: %s", job_id, error)
            return False
        return True

    def wake(self, topic: str) -> None:
        """Wake the readers of a topic's events; they also poll, in case this is lost."""
        if time.monotonic() < self._away_until:
            return
        try:
            self._redis.publish(events_channel(topic), "")
        except redis.RedisError as error:
            self._avoid()
            _LOG.debug("readers of %s were not woken: %s", topic, error)

    def depth(self) -> int | None:
        """Return the number of waiting messages, or None if the broker is away."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return int(self._redis.llen(QUEUE))
        except redis.RedisError:
            self._avoid()
            return None

    def problem(self) -> str | None:
        """Return a public explanation if the broker refuses messages now, else None.

        Unlike the other calls, it always asks the broker.
        """
        try:
            self._redis.set(f"{QUEUE}.probe", "", ex=60)  # a write: a full broker answers pings
        except redis.RedisError as error:
            self._avoid()
            known = (why for kind, why in _PROBLEMS.items() if isinstance(error, kind))
            return next(known, "The broker does not respond.")
        self._away_until = 0.0
        return None

    def _responds(self) -> bool:
        return time.monotonic() >= self._away_until and bool(self._redis.ping())

    def _avoid(self) -> None:
        self._away_until = time.monotonic() + _AWAY_SECONDS

    def subscriber(self) -> redis.asyncio.Redis:
        """Return an asynchronous client for listening to event channels."""
        return redis.asyncio.Redis.from_url(self._url, socket_connect_timeout=_CONNECT_SECONDS)
