"""Semi-synchronous rounds in a simulation: who is still at work, and whose updates come next."""

from collections.abc import Callable, Sequence

from backend.contracts.round_policy import RoundPolicy
from worker.federated.participation import draw_clients
from worker.federated.types import ClientUpdate

Delays = Callable[[str, int], int]
"""By client id and the round in which it begins: how many rounds later its update comes."""


def on_time(_client_id: str, _round_number: int) -> int:
    """Every update comes in its own round."""
    return 0


class Arrivals:
    """Updates under way. Rounds have no length here: delays say in which order updates come.

    Without a buffer a round waits for all its clients, so delays change nothing. With a buffer of K
    it takes the K updates that come first, and whoever is at work begins nothing else meanwhile.
    """

    def __init__(
        self, policy: RoundPolicy, client_ids: Sequence[str], seed: int, delays: Delays
    ) -> None:
        self._policy = policy
        self._client_ids = client_ids
        self._seed = seed
        self._delays = delays
        self._under_way: list[tuple[int, ClientUpdate]] = []  # the round in which it comes

    def starting(self, round_number: int) -> list[str]:
        """The clients that begin to train in this round."""
        busy = {update.client_id for _, update in self._under_way}
        num_at_work = self._policy.num_participants(len(self._client_ids))
        free = [client_id for client_id in self._client_ids if client_id not in busy]
        return draw_clients(free, max(0, num_at_work - len(busy)), self._seed, round_number)

    def send(self, update: ClientUpdate) -> None:
        """Puts an update on its way."""
        delay = self._delays(update.client_id, update.round_number)
        self._under_way.append((update.round_number + delay, update))

    def take(self) -> list[ClientUpdate]:
        """The updates with which the round closes, in order of client id."""
        coming = sorted(self._under_way, key=lambda item: (item[0], item[1].client_id))
        count = self._policy.buffer_size or len(coming)
        self._under_way = coming[count:]
        return sorted((update for _, update in coming[:count]), key=lambda u: u.client_id)
