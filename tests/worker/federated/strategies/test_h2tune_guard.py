"""A client delivers the better of what is shared and what it had."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from tests.worker.federated.strategies.rounds import at_work, federation_of, run_round, training
from tests.worker.federated.tiny import make_client
from worker.federated.client_round import take
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import ClientUpdate, Metrics, ServerState


def one_round(strategy: H2Tune) -> tuple[ServerState, ClientUpdate]:
    client = make_client("a", num_layers=1)
    federation = federation_of([client])
    state = strategy.init_state(federation, 1)
    (update,) = run_round(strategy, state, [client], 1, training(local_steps=8))
    state, _ = strategy.aggregate(state, federation, iter([update]))
    return state, update


def delivered(
    strategy: H2Tune, state: ServerState, update: ClientUpdate, folder: Path
) -> tuple[Metrics, dict[str, torch.Tensor]]:
    client = make_client("a", num_layers=1)
    plan = strategy.configure_round(state, federation_of([client]), 2, deliver=True)["a"]
    metrics = strategy.deliver_client(plan, at_work(client, training(), update.private), folder)
    return metrics, load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("gauge", ["none", "probe"])
def test_a_spoiled_shared_state_is_not_served(gauge: str, tmp_path: Path) -> None:
    guarded = H2Tune(H2TuneParams(guard="validation", gauge=gauge))
    state, update = one_round(guarded)
    # Noise may help a model this small by chance, so the own state is made as good as can be.
    update.private["served/loss"] = torch.zeros(1, dtype=torch.float64)
    _, expected = delivered(guarded, state, update, tmp_path / "fine")
    source = torch.Generator().manual_seed(0)
    spoiled = ServerState(
        {
            name: torch.randn(t.shape, generator=source) * 30 if name.startswith("slots/") else t
            for name, t in state.tensors.items()
        },
        state.meta,
    )
    metrics, kept = delivered(guarded, spoiled, update, tmp_path / "kept")
    assert metrics[MetricName.GUARD_KEPT_OWN] == 1.0
    assert all(torch.allclose(kept[n], t, atol=1e-5) for n, t in expected.items())
    off = H2Tune(H2TuneParams(gauge=gauge))
    _, served = delivered(off, spoiled, update, tmp_path / "off")
    assert any(not torch.allclose(served[n], t, atol=1e-3) for n, t in expected.items())


@pytest.mark.parametrize("gauge", ["none", "probe"])
def test_alone_the_shared_state_is_the_own_one(gauge: str, tmp_path: Path) -> None:
    guarded = H2Tune(H2TuneParams(guard="validation", gauge=gauge))
    state, update = one_round(guarded)
    losses = [
        update.metrics[MetricName.VALIDATION_LOSS_BEFORE_TRAINING],
        update.metrics[MetricName.VALIDATION_LOSS_AFTER_TRAINING],
    ]
    assert float(take("served", update.private)["loss"]) == pytest.approx(min(losses))
    metrics, _ = delivered(guarded, state, update, tmp_path)
    assert metrics[MetricName.GUARD_KEPT_OWN] == float(losses[0] < losses[1])


def test_nothing_of_the_guard_leaves_the_client_or_is_kept_without_it() -> None:
    _, guarded = one_round(H2Tune(H2TuneParams(guard="validation", gauge="none")))
    _, off = one_round(H2Tune(H2TuneParams(gauge="none")))
    assert set(guarded.shared) == set(off.shared)
    assert not take("served", off.private)
    assert all(torch.equal(guarded.shared[name], off.shared[name]) for name in off.shared)
