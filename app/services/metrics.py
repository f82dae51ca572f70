"""Metrics for Prometheus: merges and studies by status, queue depth, workers, requests."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.contract.states import MergeStatus
from app.services.backend import Backend
from app.storage import fleet, merges, studies

_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_SEEN_WITHIN_SECONDS = 15.0


class Metrics:
    """The metrics of one API process; those from the database are read on each request."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "afluente_http_request_seconds",
            "Seconds from a request to the end of its response.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an answered request."""
        self._requests.labels(method, route, str(status)).observe(seconds)

    def expose(self, backend: Backend) -> bytes:
        """Return all metrics in Prometheus's text format."""
        stored = CollectorRegistry()
        stored.register(_Stored(backend))
        return generate_latest(stored) + generate_latest(self._registry)


class _Stored(Collector):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges from the database and the broker."""
        counts = merges.counts(self._backend.engine)
        by_status = GaugeMetricFamily("afluente_merges", "Merges by status.", labels=["status"])
        for status in MergeStatus:
            by_status.add_metric([status.value], counts.get(status.value, 0))
        yield by_status
        counts = studies.counts(self._backend.engine)
        by_status = GaugeMetricFamily("afluente_studies", "Studies by status.", labels=["status"])
        for status in MergeStatus:
            by_status.add_metric([status.value], counts.get(status.value, 0))
        yield by_status
        workers = len(fleet.alive(self._backend.engine, _SEEN_WITHIN_SECONDS))
        yield GaugeMetricFamily("afluente_workers", "Live workers.", value=workers)
        depth = self._backend.queue.depth() if self._backend.queue else None
        if depth is not None:
            yield GaugeMetricFamily("afluente_queue_depth", "Waiting messages.", value=depth)
