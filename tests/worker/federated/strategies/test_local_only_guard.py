"""Early stopping of clients that train alone.

What a guarded run must deliver is told by runs without a guard: the plain run of k rounds delivers
the state after round k, so the guarded one has to deliver what the plain run of the best k does.
Between its rounds a simulated client is nothing but encoded bytes, as after a restart.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import LocalOnlyParams
from tests.worker.federated.strategies.rounds import training
from tests.worker.federated.tiny import make_client, make_data, make_model, make_tokenizer
from worker.federated.client_round import take
from worker.federated.objectives.classification import HeadObjective, TextInputs
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.types import Metrics

GUARDED = LocalOnlyParams(guard="validation")
# Few large steps: the validation loss goes up, comes down and goes up again.
RESTLESS = {"learning_rate": 0.03, "local_steps": 2}


def run(
    params: LocalOnlyParams,
    client: SimulatedClient,
    num_rounds: int,
    output: Path | None = None,
    **changes: float,
) -> SimulationResult:
    config = training(**{**RESTLESS, **changes})
    return simulate(
        params,
        [client],
        num_rounds=num_rounds,
        training=config,
        global_rank=8,
        seed=0,
        output=output,
    )


def files_of(folder: Path) -> Mapping[str, torch.Tensor]:
    """All tensors of a delivered adapter, of its head too."""
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def losses_of(result: SimulationResult) -> list[float]:
    """Validation losses of the rounds 0, 1, ... of a run that measures all of them."""
    metrics = [stage.metrics["a"] for stage in result.rounds]
    return [
        metrics[0][MetricName.VALIDATION_LOSS_BEFORE_TRAINING],
        *(values[MetricName.VALIDATION_LOSS_AFTER_TRAINING] for values in metrics),
    ]


def after_round(client: SimulatedClient, number: int, folder: Path) -> tuple[float, Mapping]:
    """Accuracy and files of what a plain client has after some rounds; 0: before the first."""
    steps = {} if number else {"local_steps": 0}
    result = run(LocalOnlyParams(), client, max(number, 1), folder, **steps)
    return result.delivered["a"][MetricName.ACCURACY_DELIVERED], files_of(folder / "a")


@pytest.mark.parametrize(
    ("num_rounds", "evaluate_every", "expected"),
    [
        (2, 1, 0),  # training hurts: the untrained adapter
        (5, 1, 4),  # a round in between
        (4, 1, 4),  # the last one
        (5, 3, 5),  # measured are 0, 3 and, as it is delivered, 5: 4 was better and nobody knows
    ],
)
def test_the_measured_round_of_lowest_validation_loss_is_delivered(
    num_rounds: int, evaluate_every: int, expected: int, tmp_path: Path
) -> None:
    client = make_client("a", num_layers=1)
    losses = losses_of(run(LocalOnlyParams(), client, num_rounds))
    measured = {*range(0, num_rounds + 1, evaluate_every), num_rounds}
    best = min(measured, key=lambda number: losses[number])
    assert best == expected, losses
    accuracy, files = after_round(client, best, tmp_path / "plain")
    guarded = run(GUARDED, client, num_rounds, tmp_path, evaluate_every=evaluate_every)
    assert guarded.delivered["a"] == {
        MetricName.ACCURACY_DELIVERED: accuracy,
        MetricName.GUARD_KEPT_OWN: float(best != num_rounds),
    }
    assert equal(files_of(tmp_path / "a"), files)


def test_training_goes_on_as_without_a_guard() -> None:
    client = make_client("a", num_layers=1)
    plain, guarded = run(LocalOnlyParams(), client, 3), run(GUARDED, client, 3)
    own = {n: t for n, t in guarded.private["a"].items() if not n.startswith("served/")}
    assert equal(own, plain.private["a"])
    assert losses_of(guarded) == losses_of(plain)
    assert take("served", guarded.private["a"])
    assert not take("served", plain.private["a"])


def test_the_head_is_that_of_the_same_round(tmp_path: Path) -> None:
    client = SimulatedClient(
        "a",
        make_model("bert"),
        make_tokenizer(),
        make_data(num_train=32),
        4,
        8.0,
        bind_objective=lambda model, _config: HeadObjective(
            model, TextInputs(make_tokenizer(), 32), ("no", "yes"), head_learning_rate=0.3
        ),
    )
    losses = losses_of(run(LocalOnlyParams(), client, 3))
    best = min(range(4), key=lambda number: losses[number])
    assert best < 3, losses
    accuracy, files = after_round(client, best, tmp_path / "plain")
    guarded = run(GUARDED, client, 3, tmp_path)
    assert guarded.delivered["a"][MetricName.ACCURACY_DELIVERED] == accuracy
    found = files_of(tmp_path / "a")
    assert any("classifier" in name for name in found)
    assert equal(found, files)


def test_without_a_validation_split_the_last_round_is_delivered(tmp_path: Path) -> None:
    client = make_client("a", num_layers=1)
    client = replace(client, data=replace(client.data, validation=()))
    accuracy, files = after_round(client, 2, tmp_path / "plain")
    guarded = run(GUARDED, client, 2, tmp_path)
    expected: Metrics = {MetricName.ACCURACY_DELIVERED: accuracy, MetricName.GUARD_KEPT_OWN: 0.0}
    assert guarded.delivered["a"] == expected
    assert equal(files_of(tmp_path / "a"), files)
    assert not take("served", guarded.private["a"])
