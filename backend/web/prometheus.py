"""Counters for Prometheus, one registry per application."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.contracts.enums import RunStatus, UpdateStatus
from backend.db.models import ClientUpdate, Run


class RequestMetrics:
    """How many requests, how long they took, and the states of runs and client updates."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fedbraid_requests",
            "HTTP requests answered",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "fedbraid_request_seconds",
            "Time until the end of an answer",
            ["method", "route"],
            registry=self._registry,
        )
        self._runs = Gauge("fedbraid_runs", "Runs by state", ["status"], registry=self._registry)
        self._updates = Gauge(
            "fedbraid_client_updates",
            "Client updates by state",
            ["status"],
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request; `route` is the template, so that ids make no series."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self, session: Session) -> bytes:
        """Everything in the text format of Prometheus; states are read from the database."""
        runs = dict(session.execute(select(Run.status, func.count()).group_by(Run.status)).all())
        updates = dict(
            session.execute(
                select(ClientUpdate.status, func.count()).group_by(ClientUpdate.status)
            ).all()
        )
        for run_status in RunStatus:
            self._runs.labels(run_status.value).set(runs.get(run_status, 0))
        for update_status in UpdateStatus:
            self._updates.labels(update_status.value).set(updates.get(update_status, 0))
        return generate_latest(self._registry)
