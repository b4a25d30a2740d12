"""Whole updates behind masks: what is hidden, what is not, and what comes out of the sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.errors import InvalidUpdateError
from worker.federated.privacy.exposure import secret_names
from worker.federated.privacy.keystream import repeatable_random
from worker.federated.privacy.masked_update import flat_residues, mask_update, shaped
from worker.federated.privacy.secure_aggregation.client import SecureClient
from worker.federated.privacy.secure_aggregation.errors import ValueRangeError
from worker.federated.privacy.secure_aggregation.exchange import opened_mean, public_shares
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint
from worker.federated.privacy.secure_aggregation.messages import MaskedInput
from worker.federated.privacy.secure_aggregation.server import SecureServer
from worker.federated.types import ClientUpdate

PARAMS = H2TuneParams(train_alignment=False, mask_warmup_rounds=0)
GRID = FixedPoint(4.0)
WEIGHTS = {"a": 8.0, "b": 16.0, "c": 40.0}
PUBLIC = {"mask/q": torch.tensor([1, 2], dtype=torch.uint16), "coverage/full": torch.ones(2)}


def make_update(name: str, seed: int) -> ClientUpdate:
    source = torch.Generator().manual_seed(seed)
    values = {f"values/{role}": torch.randn(2, 5, generator=source) for role in "qv"}
    metrics = {MetricName.SHARED_CHANGE: 0.5, MetricName.TRAIN_LOSS: 1.0}
    return ClientUpdate(name, 1, int(WEIGHTS[name]), {**PUBLIC, **values}, {}, metrics)


def client_of(name: str) -> SecureClient:
    return SecureClient(name, 3, "tag", repeatable_random(name.encode() * 32))


def test_hidden_tensors_open_as_their_weighted_mean_and_public_ones_stay() -> None:
    updates = {name: make_update(name, seed) for seed, name in enumerate(WEIGHTS)}
    clients = {name: client_of(name) for name in WEIGHTS}
    names = secret_names(PARAMS, updates["a"].shared)
    assert names == ["values/q", "values/v"]
    server = SecureServer(3, "tag", 20)
    for client in clients.values():
        server.add_keys(client.keys())
    for client in clients.values():
        server.add_shares(client.share(server.roster()))
    for name, update in updates.items():
        share = public_shares(WEIGHTS)[name]
        masked = mask_update(update, PARAMS, clients[name], server.inbox(name), GRID, share)
        assert masked.shared.keys() == update.shared.keys()
        assert all(torch.equal(masked.shared[public], t) for public, t in PUBLIC.items())
        assert {masked.shared[secret].dtype for secret in names} == {torch.int32}
        assert masked.metrics == {MetricName.TRAIN_LOSS: 1.0}
        server.add_masked(MaskedInput(name, flat_residues(masked, names)))
    for client in clients.values():
        server.add_revealed(client.reveal(server.survivors()))
    opened = opened_mean(server, GRID, public_shares(WEIGHTS))
    assert opened.num_dropouts == 0
    shapes = {secret: updates["a"].shared[secret].shape for secret in names}
    mean = shaped(torch.from_numpy(opened.values), shapes)
    for secret in names:
        stacked = np.stack([updates[name].shared[secret].double().numpy() for name in WEIGHTS])
        expected = np.average(stacked, axis=0, weights=list(WEIGHTS.values()))
        assert np.abs(mean[secret].numpy() - expected).max() <= opened.error_bound + 1e-12


def test_a_client_made_again_from_its_root_says_the_same_words() -> None:
    roster = [client_of(name).keys() for name in WEIGHTS]
    once, again = client_of("a"), client_of("a")
    assert once.keys() == again.keys()
    assert once.share(roster) == again.share(roster)
    others = {name: client_of(name).share(roster).ciphertexts["a"] for name in "bc"}
    values = np.arange(4, dtype=np.uint32)
    assert np.array_equal(once.mask(values, others).values, again.mask(values, others).values)
    after_a_kill = client_of("a")
    after_a_kill.share(roster)
    after_a_kill.receive(others)
    assert after_a_kill.reveal(["a", "b", "c"]) == once.reveal(["a", "b", "c"])


def test_an_update_in_the_clear_is_refused() -> None:
    update = make_update("a", 0)
    with pytest.raises(InvalidUpdateError, match=r"'values/q' is torch.float32 and not masked"):
        flat_residues(update, ["values/q"])


def test_a_number_out_of_range_is_never_cut_off() -> None:
    update = make_update("a", 0)
    large = replace(update, shared={**update.shared, "values/q": torch.full((2, 5), 5.0)})
    with pytest.raises(ValueRangeError, match="value_range is 4"):
        mask_update(large, PARAMS, client_of("a"), {}, GRID, 0.5)
