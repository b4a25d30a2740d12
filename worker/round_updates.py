"""The updates that one aggregation uses, read from the store one at a time."""

from collections.abc import Iterator

from sqlalchemy import select

from backend.contracts.enums import UpdateStatus
from backend.db.models import ClientUpdate, Round
from backend.errors import RetryableJobError
from worker import artifacts
from worker.federated import types
from worker.federated.staleness import discounted
from worker.platform import Platform


class RoundUpdates:
    """Updates one at a time, in order of client id: memory does not grow with their number.

    They are those that `backend.barrier` marked when the round closed, at most one of a client:
    its own update of the round, or an earlier one that was carried over.

    Those of earlier rounds weigh less, by `exponent` (`worker.federated.staleness`).

    `current` is whose update was given last, for messages about what is wrong with it.
    """

    def __init__(
        self,
        platform: Platform,
        round_: Round,
        federation: types.FederationSpec,
        exponent: float = 0.0,
    ) -> None:
        self._exponent = exponent
        self._platform = platform
        self._federation = federation
        self._number = round_.round_number
        self._blobs = self._find(round_)
        self.current: types.ClientSpec | None = None

    @property
    def staleness(self) -> dict[str, int]:
        """By client id: how many rounds older its update is than the state it is added to."""
        return {
            client_id: self._number - trained_in
            for client_id, (_, trained_in) in self._blobs.items()
        }

    def __iter__(self) -> Iterator[types.ClientUpdate]:
        return discounted(self._stored(), self.staleness, self._exponent)

    def _stored(self) -> Iterator[types.ClientUpdate]:
        for spec in self._federation.clients:
            if spec.client_id not in self._blobs:
                continue
            self.current = spec
            sha256, trained_in = self._blobs[spec.client_id]
            if sha256 is None:
                raise RetryableJobError(f"the update of {spec.name} is not stored")
            yield artifacts.load_update(self._platform, sha256, spec, trained_in)
        self.current = None

    def _find(self, round_: Round) -> dict[str, tuple[str | None, int]]:
        """Blob and own round by client id."""
        with self._platform.session_factory() as session:
            rows = session.execute(
                select(ClientUpdate.client_id, ClientUpdate.shared_sha256, Round.round_number)
                .join(Round, ClientUpdate.round_id == Round.id)
                .where(
                    Round.run_id == round_.run_id,
                    ClientUpdate.aggregated_in == round_.round_number,
                    ClientUpdate.status == UpdateStatus.ACCEPTED,
                )
            ).all()
        return {str(client_id): (sha256, number) for client_id, sha256, number in rows}
