"""Comparisons: control, results and exports."""

from collections.abc import Iterator
from uuid import UUID

from backend.api_client.transport import Transport
from backend.contracts.comparisons import Comparison, ComparisonCreate, ComparisonResults
from backend.contracts.runs import Event, Run

LARGE_PAGES = {"limit": 1000}


class Comparisons:
    """`/comparisons`: several strategies times several seeds over the same clients and data."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, federation_id: UUID, comparison: ComparisonCreate) -> Comparison:
        """Prepare a comparison of a federation; it begins with `start`."""
        return self._transport.post(
            f"/federations/{federation_id}/comparisons", Comparison, comparison
        )

    def of_federation(self, federation_id: UUID) -> Iterator[Comparison]:
        """A federation's comparisons, newest first."""
        return self._transport.walk(f"/federations/{federation_id}/comparisons", Comparison)

    def get(self, comparison_id: UUID) -> Comparison:
        """One comparison."""
        return self._transport.get(f"/comparisons/{comparison_id}", Comparison)

    def start(self, comparison_id: UUID) -> Comparison:
        """Queue all runs; a few go on at once."""
        return self._transport.post(f"/comparisons/{comparison_id}/start", Comparison)

    def cancel(self, comparison_id: UUID) -> Comparison:
        """End every run that has not ended; results of the others stay."""
        return self._transport.post(f"/comparisons/{comparison_id}/cancel", Comparison)

    def runs(self, comparison_id: UUID) -> Iterator[Run]:
        """A comparison's runs, newest first."""
        return self._transport.walk(f"/comparisons/{comparison_id}/runs", Run)

    def events(self, comparison_id: UUID) -> Iterator[Event]:
        """The events of all its runs, newest first."""
        return self._transport.walk(f"/comparisons/{comparison_id}/events", Event, LARGE_PAGES)

    def results(self, comparison_id: UUID) -> ComparisonResults:
        """Means, spreads, differences and verdicts, as far as runs have completed."""
        return self._transport.get(f"/comparisons/{comparison_id}/results", ComparisonResults)

    def results_csv(self, comparison_id: UUID) -> bytes:
        """Every figure as CSV: one line for each arm, seed and client."""
        return self._read(f"/comparisons/{comparison_id}/results.csv")

    def results_markdown(self, comparison_id: UUID) -> bytes:
        """The report as Markdown."""
        return self._read(f"/comparisons/{comparison_id}/results.md")

    def _read(self, path: str) -> bytes:
        with self._transport.stream(path) as chunks:
            return b"".join(chunks)
