import random
import secrets
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from worker.federated.privacy.secure_aggregation.client import SecureClient
from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_aggregation.exchange import Contribution, secure_mean
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint, Residues
from worker.federated.privacy.secure_aggregation.messages import PublicKeys, RevealedShares
from worker.federated.privacy.secure_aggregation.server import SecureServer
from worker.federated.privacy.secure_aggregation.shamir import RandomBytes

GRID = FixedPoint(4.0)
NAMES = ["a", "b", "c", "d", "e"]
TAG = "run 1, round 1"


def contributions(count: int, num_values: int, seed: int) -> dict[str, Contribution]:
    source = np.random.default_rng(seed)
    return {
        f"client-{number}": Contribution(
            source.uniform(-4, 4, num_values), float(source.integers(1, 50))
        )
        for number in range(count)
    }


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(3, 6), num_values=st.integers(1, 40), seed=st.integers(0, 2**32 - 1),
    num_missing=st.integers(0, 2),
)  # fmt: skip
def test_the_opened_mean_is_the_plain_mean_of_the_survivors(
    count: int, num_values: int, seed: int, num_missing: int
) -> None:
    parts = contributions(count, num_values, seed)
    missing = random.Random(seed).sample(sorted(parts), min(num_missing, count - 2))
    opened = secure_mean(parts, GRID, 2, TAG, missing)
    stayed = sorted(parts.keys() - set(missing))
    assert list(opened.survivors) == stayed
    weights = np.array([parts[name].weight for name in stayed])
    plain = np.average([parts[name].values for name in stayed], axis=0, weights=weights)
    assert np.abs(opened.values - plain).max() <= opened.error_bound + 1e-12
    # The bound is a step of 4 / 2^30 a client, over the share of the weights that stayed.
    everybody = sum(part.weight for part in parts.values())
    assert opened.error_bound == pytest.approx(
        len(stayed) * 2.0**-28 / 2 / (weights.sum() / everybody)
    )


class Round:
    """A round by hand, up to the masked inputs."""

    def __init__(
        self,
        values: dict[str, Residues],
        threshold: int = 3,
        secret: RandomBytes = secrets.token_bytes,
    ) -> None:
        self.clients = {name: SecureClient(name, threshold, TAG, secret) for name in values}
        self.server = SecureServer(threshold, TAG, len(next(iter(values.values()))))
        for client in self.clients.values():
            self.server.add_keys(client.keys())
        self.roster = self.server.roster()
        for client in self.clients.values():
            self.server.add_shares(client.share(self.roster))
        self.masked = {
            name: client.mask(values[name], self.server.inbox(name))
            for name, client in self.clients.items()
        }

    def arrive(self, names: Collection[str]) -> None:
        for name in names:
            self.server.add_masked(self.masked[name])


def same_values(num_values: int = 8) -> dict[str, Residues]:
    return {name: np.full(num_values, 7, np.uint32) for name in NAMES}


def test_what_the_server_sees_of_one_client_is_uniform() -> None:
    sent = Round(same_values(50_000), secret=random.Random(0).randbytes).masked
    for name in NAMES:
        words = sent[name].values
        for shift in (0, 8, 16, 24):
            counts = np.bincount((words >> shift) & 255, minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-5
    matrix = np.corrcoef([sent[name].values.astype(float) for name in NAMES])
    assert np.abs(matrix - np.eye(5)).max() < 5 / np.sqrt(50_000)


def test_the_same_values_are_sent_differently_every_time() -> None:
    first, second = Round(same_values(1000)), Round(same_values(1000))
    for name in NAMES:
        equal = first.masked[name].values == second.masked[name].values
        assert equal.mean() < 0.01


def test_pairwise_masks_alone_cancel_and_own_masks_do_not() -> None:
    """Without the revealed seeds the sum stays closed although everybody is there."""
    round_ = Round(same_values(1000), secret=random.Random(1).randbytes)
    total = sum((m.values for m in round_.masked.values()), np.zeros(1000, np.uint32))
    counts = np.bincount(total >> 24, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-5
    round_.arrive(NAMES)
    for client in round_.clients.values():
        round_.server.add_revealed(client.reveal(round_.server.survivors()))
    assert round_.server.total().tolist() == [5 * 7] * 1000


def test_a_client_may_leave_after_its_input_and_two_before() -> None:
    round_ = Round({name: np.array([10**n], np.uint32) for n, name in enumerate(NAMES)}, 2)
    round_.arrive(["a", "c", "d"])
    for name in ("a", "d"):  # c is in the sum, but gone
        round_.server.add_revealed(round_.clients[name].reveal(round_.server.survivors()))
    assert round_.server.total().tolist() == [1 + 100 + 1000]


def test_shares_of_a_client_say_only_one_of_its_secrets() -> None:
    round_ = Round(same_values())
    told = round_.clients["a"].reveal(["a", "b", "c"])
    assert told.own_seeds.keys() == {"a", "b", "c"}
    assert told.mask_keys.keys() == {"d", "e"}
    with pytest.raises(ProtocolError, match="twice"):
        round_.clients["a"].reveal(["a", "b", "d"])


def test_a_sum_of_too_few_stays_closed() -> None:
    round_ = Round(same_values())
    round_.arrive(["a", "b"])
    with pytest.raises(ProtocolError, match=r"2 clients arrived, the threshold is 3"):
        round_.server.survivors()
    with pytest.raises(ProtocolError, match="so few clients stays closed"):
        round_.clients["a"].reveal(["a", "b"])
    round_.arrive(["c"])
    for name in ("a", "b"):
        round_.server.add_revealed(round_.clients[name].reveal(["a", "b", "c"]))
    with pytest.raises(ProtocolError, match=r"2 clients told their share for 'a'"):
        round_.server.total()


def test_wrong_shares_of_a_missing_client_are_noticed() -> None:
    round_ = Round(same_values())
    round_.arrive(["a", "b", "c"])
    for name in ("a", "b", "c"):
        told = round_.clients[name].reveal(round_.server.survivors())
        swapped = {"d": told.mask_keys["e"], "e": told.mask_keys["d"]}
        round_.server.add_revealed(RevealedShares(name, told.own_seeds, swapped))
    with pytest.raises(ProtocolError, match="another key than it announced"):
        round_.server.total()


def test_shares_changed_on_the_way_are_noticed() -> None:
    client = SecureClient("a", 3, TAG)
    others = [SecureClient(name, 3, TAG) for name in ("b", "c")]
    roster = [other.keys() for other in (client, *others)]
    client.share(roster)
    sent = {
        name: other.share(roster).ciphertexts["a"] for name, other in zip("bc", others, strict=True)
    }
    sent["b"] = sent["b"][:-1] + bytes([sent["b"][-1] ^ 1])
    with pytest.raises(ProtocolError, match="'b' for 'a' were changed"):
        client.mask(np.zeros(2, np.uint32), sent)


def test_a_roster_that_cannot_be_trusted_is_refused() -> None:
    clients = [SecureClient(name, 3, TAG) for name in ("a", "b", "c")]
    a, b, c = (client.keys() for client in clients)
    for roster, reason in [
        ([a, b], "2 clients take part"),
        ([a, b, c, PublicKeys("d", c.cipher_key, c.mask_key)], "came twice"),
        ([a, b, c, c], "came twice"),
        ([PublicKeys("a", bytes([1] * 32), bytes([2] * 32)), b, c], "did not come back"),
    ]:
        with pytest.raises(ProtocolError, match=reason):
            clients[0].share(roster)


def test_a_key_that_agrees_with_nobody_is_refused() -> None:
    client = SecureClient("a", 3, TAG)
    zero_point = PublicKeys("b", bytes(32), bytes([9] * 32))
    with pytest.raises(ProtocolError, match="unusable"):
        client.share([client.keys(), zero_point, SecureClient("c", 3, TAG).keys()])


def test_the_server_takes_every_message_once_and_in_order() -> None:
    round_ = Round(same_values())
    round_.arrive(["a"])
    again = round_.clients["a"].keys()
    with pytest.raises(ProtocolError, match="keys twice"):
        round_.server.add_keys(again)
    with pytest.raises(ProtocolError, match="masked input twice"):
        round_.arrive(["a"])
    stranger = Round(same_values()).masked["b"]
    late = SecureServer(3, TAG, 8)
    with pytest.raises(ProtocolError, match="sent no shares before"):
        late.add_masked(stranger)


def test_keys_of_another_round_do_not_fit() -> None:
    parts = [SecureClient(name, 3, tag) for name, tag in (("a", "1"), ("b", "2"), ("c", "1"))]
    roster = [part.keys() for part in parts]
    shares = {part.keys().client_id: part.share(roster) for part in parts}
    inbox = {name: shares[name].ciphertexts["a"] for name in "bc"}
    with pytest.raises(ProtocolError, match="changed on the way"):
        parts[0].mask(np.zeros(2, np.uint32), inbox)
