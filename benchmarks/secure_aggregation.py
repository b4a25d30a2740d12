"""What secure aggregation costs beside adding updates up in the clear.

    python benchmarks/secure_aggregation.py [--clients 10] [--values 100000] [--repeats 5]

Each line is one JSON object: the protocol's figure as `value`, that of a plain weighted sum of the
same fp32 updates as `peer_value`, and their `ratio`. Seconds are medians over the repeats, of all
parties in one process: `..._client_seconds` is the work of one client, `..._server_seconds` that of
the server with `dropouts` clients gone after the keys were agreed on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from worker.federated.privacy.keystream import KEY_BYTES
from worker.federated.privacy.secure_aggregation.client import SecureClient
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint
from worker.federated.privacy.secure_aggregation.messages import MaskedInput
from worker.federated.privacy.secure_aggregation.server import SecureServer
from worker.federated.privacy.secure_aggregation.shamir import SHARE_BYTES

GRID = FixedPoint(16.0)
Vector = npt.NDArray[np.floating[Any]]
T = TypeVar("T")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--values", type=int, default=100_000, help="shared numbers a client")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    source = np.random.default_rng(0)
    updates = source.standard_normal((options.clients, options.values)).astype(np.float32)
    _, plain_seconds = timed(lambda: plain_sum(updates), options.repeats)
    for dropouts in (0, max(1, options.clients // 10)):
        rounds = [secure_round(updates, dropouts) for _ in range(options.repeats)]
        client_seconds, server_seconds, num_bytes = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        suffix = f"{options.clients}_clients_{dropouts}_dropouts"
        report(f"secure_aggregation_server_seconds_{suffix}", server_seconds, "s", plain_seconds)
        if dropouts == 0:
            # In the clear, a client only sends its numbers: 4 bytes each, and no work worth timing.
            report(f"secure_aggregation_client_seconds_{suffix}", client_seconds, "s", None)
            report(f"secure_aggregation_bytes_up_{suffix}", num_bytes, "B", 4.0 * options.values)


def plain_sum(updates: Vector) -> Vector:
    """The mean in double precision, as `WeightedMean` takes it."""
    total = np.zeros(updates.shape[1])
    for update in updates:
        total += update
    return total / len(updates)


def secure_round(updates: Vector, dropouts: int) -> tuple[float, float, float]:
    """Seconds of a client and of the server, and bytes that a client sends up."""
    names = [f"client-{number:04}" for number in range(len(updates))]
    threshold = -(-2 * len(names) // 3)
    server = SecureServer(threshold, "benchmark", updates.shape[1])
    clients, client_seconds = timed(
        lambda: [SecureClient(name, threshold, "benchmark") for name in names]
    )
    for client in clients:
        server.add_keys(client.keys())
    roster = server.roster()
    shares, seconds = timed(lambda: [client.share(roster) for client in clients])
    client_seconds += seconds
    for share in shares:
        server.add_shares(share)
    present = list(zip(names, clients, updates, strict=True))[dropouts:]

    def mask(client: SecureClient, name: str, update: Vector) -> MaskedInput:
        encoded = GRID.encode(update.astype(np.float64), 1 / len(names))
        return client.mask(encoded, server.inbox(name))

    masked, seconds = timed(lambda: [mask(client, name, u) for name, client, u in present])
    client_seconds += seconds

    def add_up() -> Vector:
        for message in masked:
            server.add_masked(message)
        survivors = server.survivors()
        for _, client, _ in present:
            server.add_revealed(client.reveal(survivors))
        return GRID.decode(server.total()) * len(names) / len(survivors)

    mean, server_seconds = timed(add_up)
    error = float(np.abs(mean - plain_sum(updates[dropouts:])).max())
    if error > len(names) * GRID.step:
        raise SystemExit(f"the opened mean is off by {error}")
    sent = shares[0].ciphertexts.values()
    revealed = SHARE_BYTES * len(names)
    num_bytes = masked[0].values.nbytes + sum(map(len, sent)) + revealed + 2 * KEY_BYTES
    return client_seconds / len(names), server_seconds, float(num_bytes)


def timed(work: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """The last result, and the median of the seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def report(bench: str, value: float, unit: str, peer_value: float | None) -> None:
    """One line of JSON."""
    line = {"bench": bench, "value": value, "unit": unit, "peer": "plain weighted sum of fp32"}
    ratio = None if peer_value is None else value / peer_value
    print(json.dumps(line | {"peer_value": peer_value, "ratio": ratio}))


if __name__ == "__main__":
    main()
