"""Runs: control, live state, history and results."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from backend.api_client.transport import Transport
from backend.contracts.refusals import Refusal
from backend.contracts.runs import Adapter, Event, LiveRun, MetricPoint, Run, RunClone
from backend.contracts.signatures import SignedUpdate

LARGE_PAGES = {"limit": 1000}  # a run measures thousands of small values


class Runs:
    """`/runs`: one execution of one strategy with one seed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, run_id: UUID) -> Run:
        """One run."""
        return self._transport.get(f"/runs/{run_id}", Run)

    def start(self, run_id: UUID) -> Run:
        """Queue a run that was created."""
        return self._transport.post(f"/runs/{run_id}/start", Run)

    def cancel(self, run_id: UUID) -> Run:
        """End a run early; what clients already reached is kept."""
        return self._transport.post(f"/runs/{run_id}/cancel", Run)

    def pause(self, run_id: UUID) -> Run:
        """Begin nothing new until it is resumed; what is under way finishes."""
        return self._transport.post(f"/runs/{run_id}/pause", Run)

    def resume(self, run_id: UUID) -> Run:
        """Go on with a paused run, or with a failed one in the round in which it failed."""
        return self._transport.post(f"/runs/{run_id}/resume", Run)

    def clone(self, run_id: UUID, seed: int | None = None) -> Run:
        """A new run with the same settings, and another seed if one is given."""
        return self._transport.post(f"/runs/{run_id}/clone", Run, RunClone(seed=seed))

    def refusals(self, run_id: UUID) -> list[Refusal]:
        """The clients that do not take part in a run."""
        return self._transport.get(f"/runs/{run_id}/refusals", list[Refusal])

    def signatures(self, run_id: UUID) -> list[SignedUpdate]:
        """What is needed to verify a run's signed updates."""
        return self._transport.get(f"/runs/{run_id}/signatures", list[SignedUpdate])

    def live(self, run_id: UUID, after: int = 0) -> LiveRun:
        """The state of a run, and what happened since a cursor.

        Args:
            run_id: which run.
            after: the `cursor` of the previous answer; 0 gives everything.
        """
        return self._transport.get(f"/runs/{run_id}/live", LiveRun, {"after": after})

    def metrics(self, run_id: UUID) -> Iterator[MetricPoint]:
        """All measured values of a run."""
        return self._transport.walk(f"/runs/{run_id}/metrics", MetricPoint, LARGE_PAGES)

    def events(self, run_id: UUID) -> Iterator[Event]:
        """All events of a run."""
        return self._transport.walk(f"/runs/{run_id}/events", Event, LARGE_PAGES)

    def adapters(self, run_id: UUID) -> Iterator[Adapter]:
        """The adapters that clients can download."""
        return self._transport.walk(f"/runs/{run_id}/adapters", Adapter)

    def stream_adapter(self, run_id: UUID, client_id: UUID) -> Iterator[bytes]:
        """A client's adapter as a zip of a PEFT LoRA folder, chunk by chunk."""
        with self._transport.stream(f"/runs/{run_id}/clients/{client_id}/adapter") as chunks:
            yield from chunks

    def download_adapter(self, run_id: UUID, client_id: UUID, target: Path) -> Path:
        """Store a client's adapter as a zip file.

        The bytes go to `<target>.part` first, so that a broken download never looks complete.

        Args:
            run_id: which run.
            client_id: whose adapter.
            target: the file to write; its folder must exist.

        Returns:
            `target`.
        """
        part = target.with_name(target.name + ".part")
        with part.open("wb") as file:
            for chunk in self.stream_adapter(run_id, client_id):
                file.write(chunk)
        return part.replace(target)
