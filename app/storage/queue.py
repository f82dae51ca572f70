"""The queue: Celery on Redis or Valkey carries hints about rows; Pub/Sub wakes event readers."""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio

from app.contract.tasks import EVALUATE_TASK, MERGE_TASK, QUEUE, events_channel
from app.isolation import forget_variables
from app.storage.leases import JobKind

if TYPE_CHECKING:
    from celery import Celery

_LOG = logging.getLogger(__name__)
_CONNECT_SECONDS = 2.0
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
    """Sends hints to the workers and wakes the readers of events; never the only copy."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
        self._redis = redis.Redis.from_url(
            broker_url,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_CONNECT_SECONDS,
        )

    def send(self, kind: JobKind, job_id: str) -> bool:
        """Tell the workers of a queued job; False if the broker is away (the sweeper will)."""
        from kombu.exceptions import OperationalError

        name = MERGE_TASK if kind is JobKind.MERGE else EVALUATE_TASK
        try:
            # Celery would try again for six seconds, and a client waits for its answer.
            self._redis.ping()
            celery_app(self._url).send_task(name, args=[job_id], queue=QUEUE, retry=False)
        except (OperationalError, redis.RedisError, OSError) as error:
            _LOG.warning("the broker did not take a message for %s: %s", job_id, error)
            return False
        return True

    def wake(self, merge_id: str) -> None:
        """Wake the readers of a merge's events; they look by themselves if this is lost."""
        try:
            self._redis.publish(events_channel(merge_id), "")
        except redis.RedisError as error:
            _LOG.debug("nobody was woken for %s: %s", merge_id, error)

    def depth(self) -> int | None:
        """Return the number of messages that wait, or None if the broker is away."""
        try:
            return int(self._redis.llen(QUEUE))
        except redis.RedisError:
            return None

    def subscriber(self) -> redis.asyncio.Redis:
        """Return an asynchronous client for listening to event channels."""
        return redis.asyncio.Redis.from_url(self._url, socket_connect_timeout=_CONNECT_SECONDS)
