"""Who takes part in a round: a draw that depends on the run's seed and the round's number alone."""

import hashlib
from collections.abc import Iterable


def draw_clients(client_ids: Iterable[str], count: int, seed: int, round_number: int) -> list[str]:
    """So many of the clients, in order of id; all of them where there are no more.

    Every client gets the place of a hash of seed, round and its own id. So each round is a fresh
    draw without replacement, in which every client has the same chance, and a member that joins or
    leaves changes nobody else's place.

    Args:
        client_ids: all that may be drawn, in any order.
        count: at least 0.
        seed: of the run.
        round_number: from 1.
    """

    def place(client_id: str) -> bytes:
        return hashlib.sha256(f"{seed}\x1f{round_number}\x1f{client_id}".encode()).digest()

    return sorted(sorted(client_ids, key=place)[:count])
