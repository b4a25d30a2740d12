"""One hostile client among honest ones, without a platform: what each rule makes of it.

    python examples/hostile_client.py                          # FedIT, every rule
    python examples/hostile_client.py --strategy h2tune --rules none median
    python examples/hostile_client.py --attack noise --factor 50

The clients have one built-in model and one task, each with rows of its own. The last one does not
send what it learned, but the same turned round and enlarged, or noise. The table shows what the
honest clients deliver in the end, and how the server saw the hostile one in the first round.
"""

# ruff: noqa: T201 - a script talks to its user

import argparse
import tempfile
from pathlib import Path
from typing import get_args

import torch

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams
from backend.contracts.robustness import Robustness, Rule
from backend.contracts.training import TrainingConfig
from worker.federated.base_models import load_base_model
from worker.federated.robustness.attacks import Tamper, honest, random_noise, sign_flip
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.tasks.loading import builtin_data

STRATEGIES = {"fedit": FedItParams(), "h2tune": H2TuneParams(gauge="none")}
ATTACKS = {"sign_flip": sign_flip, "noise": random_noise}
TASK = BuiltinTaskName.ARITHMETIC_CHOICE
RANK = 4


def main() -> None:
    """Runs one simulation a rule, and one in which nobody is hostile; prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", choices=STRATEGIES, default="fedit")
    parser.add_argument("--rules", nargs="+", choices=get_args(Rule), default=get_args(Rule))
    parser.add_argument("--attack", choices=ATTACKS, default="sign_flip")
    parser.add_argument("--factor", type=float, default=100.0, help="or deviation of the noise")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per round")
    options = parser.parse_args()
    attack = ATTACKS[options.attack](STRATEGIES[options.strategy], options.factor)
    print(f"{'rule':<16}{'accuracy':>10}{'loss':>8}{'outlier score':>15}{'kept':>8}")
    _print("nobody hostile", _run(options, honest, Robustness()))
    for rule in options.rules:
        _print(rule, _run(options, attack, Robustness(rule=rule)))


def _run(options: argparse.Namespace, tamper: Tamper, settings: Robustness) -> SimulationResult:
    ref = BaseModelRef(source="builtin", id="tiny_llama")
    model, tokenizer = load_base_model(ref, device=torch.device("cpu"), dtype=torch.float32)
    clients = [
        SimulatedClient(
            client_id=f"client-{number:02d}",
            model=model,
            tokenizer=tokenizer,
            data=builtin_data(BuiltinDataset(task=TASK, seed=number, num_train=64, num_test=32)),
            lora_rank=RANK,
            lora_alpha=2.0 * RANK,
            tamper=tamper if number == options.clients - 1 else honest,
        )
        for number in range(options.clients)
    ]
    with tempfile.TemporaryDirectory(prefix="fedbraid-") as folder:
        return simulate(
            STRATEGIES[options.strategy],
            clients,
            num_rounds=options.rounds,
            training=TrainingConfig(local_steps=options.steps, learning_rate=3e-3),
            global_rank=RANK,
            seed=0,
            output=Path(folder),
            robustness=settings,
        )


def _print(title: str, result: SimulationResult) -> None:
    *trusted, hostile = sorted(result.delivered)
    accuracy = sum(result.delivered[name][MetricName.ACCURACY_DELIVERED] for name in trusted) / len(
        trusted
    )
    last = result.rounds[-1].metrics
    loss = sum(last[name][MetricName.VALIDATION_LOSS_BEFORE_TRAINING] for name in trusted) / len(
        trusted
    )
    seen = result.rounds[0].metrics[hostile]
    kept = seen.get(MetricName.KEPT_SHARE)
    share = "" if kept is None else f"{kept:.1%}"
    score = seen.get(MetricName.OUTLIER_SCORE)
    outlier = "" if score is None else f"{score:.1f}"
    print(f"{title:<16}{accuracy:>10.1%}{loss:>8.2f}{outlier:>15}{share:>8}")


if __name__ == "__main__":
    main()
