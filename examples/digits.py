"""Two image models of different size learn handwritten digits together, without a platform.

    python examples/digits.py        # three seeds, about a minute, nothing is downloaded

Two small vision transformers of different width and depth know the digits 0 to 4, learned here from
public pictures. Four owners, two per model, have a few private pictures each of the digits 5 to 9.
They train alone with LoRA, then together with H2Tune and with HeteroTune (reconstructed). Neither
pictures nor models nor heads leave their owner; what does is counted in the last column.
"""

# ruff: noqa: T201 - a script talks to its user

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from backend.contracts.datasets import Example
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.strategies import Params, title_of
from backend.contracts.training import TrainingConfig
from worker.federated.objectives.classification import HeadObjective, start_head
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.tasks.images import ImageInputs, Preprocessing, handwritten_digits
from worker.federated.types import ClientData

PICTURES = ImageInputs(Preprocessing(size=16, patch_size=4))
ALL = handwritten_digits(seed=0, num_train=1091, num_validation=0, num_test=360)
PUBLIC, PRIVATE = "01234", "56789"
MODELS = {"narrow": (32, 4, 4), "wide": (48, 3, 8)}  # width, depth, rank of its owners
ARMS: tuple[Params, ...] = (LocalOnlyParams(), H2TuneParams(), HeteroTuneParams())
NO_WORDS = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({})))


def some(rows: Sequence[Example], digits: str) -> tuple[Example, ...]:
    """The pictures of these digits."""
    return tuple(row for row in rows if row.answer in digits)


def base_model(width: int, depth: int, steps: int) -> PreTrainedModel:
    """A vision transformer that knows the public digits, with a fresh head for five others."""
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=PICTURES.preprocessing.size,
            patch_size=PICTURES.preprocessing.patch_size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_labels=len(PUBLIC),
        )
    )
    rows = some(ALL.train, PUBLIC)
    pixels = PICTURES.collate([row.question for row in rows])["pixel_values"]
    labels = torch.tensor([PUBLIC.index(row.answer) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        chosen = torch.randint(len(rows), (32,))
        loss = cross_entropy(model(pixel_values=pixels[chosen]).logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    start_head(model, ["classifier.weight", "classifier.bias"])
    return model.eval()


def objective(model: PreTrainedModel, _: TrainingConfig) -> HeadObjective:
    """Which of the private digits a picture shows, by the model's own head."""
    return HeadObjective(model, PICTURES, list(PRIVATE), head_learning_rate=3e-3)


def owners(models: dict[str, PreTrainedModel], examples: int, seed: int) -> list[SimulatedClient]:
    """Two owners per model; nobody has a picture of another one, all are tested on the same."""
    rows = some(ALL.train, PRIVATE)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    tests, clients = some(ALL.test, PRIVATE), []
    for number, name in enumerate([*models, *models]):
        own = tuple(rows[i] for i in order[number * examples : (number + 1) * examples])
        data = ClientData(ALL.task, own, (), tests)
        rank = MODELS[name][2]
        clients.append(
            SimulatedClient(
                f"{name}-{1 + number // len(models)}",
                models[name],
                NO_WORDS,
                data,
                rank,
                2.0 * rank,
                bind_objective=objective,
            )
        )
    return clients


def main() -> None:
    """Trains every arm with every seed and prints accuracies on the private digits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15, help="optimizer steps per round")
    parser.add_argument("--examples", type=int, default=20, help="training pictures per owner")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--public-steps", type=int, default=150, help="of making the base models")
    options = parser.parse_args()
    if not 1 <= options.examples <= len(some(ALL.train, PRIVATE)) // (2 * len(MODELS)):
        parser.error(f"--examples {options.examples}: there are 541 private pictures for 4 owners")

    models = {n: base_model(w, d, options.public_steps) for n, (w, d, _) in MODELS.items()}
    names = [client.client_id for client in owners(models, options.examples, 0)]
    print(f"{'':<28}" + "".join(f"{name:>10}" for name in names) + f"{'mean':>14}{'bytes up':>10}")
    training = TrainingConfig(
        local_steps=options.steps, batch_size=10, learning_rate=5e-3, evaluate_every=1000
    )
    for arm in ARMS:
        reached: dict[str, list[float]] = {name: [] for name in names}
        sent = 0.0
        for seed in range(options.seeds):
            clients = owners(models, options.examples, seed)
            with tempfile.TemporaryDirectory() as folder:
                result = simulate(
                    arm,
                    clients,
                    num_rounds=options.rounds,
                    training=training,
                    global_rank=max(client.lora_rank for client in clients),
                    seed=seed,
                    output=Path(folder),
                )
            for name, metrics in result.delivered.items():
                reached[name].append(metrics[MetricName.ACCURACY_DELIVERED])
            last = result.rounds[-1].metrics.values()
            sent = mean(metrics[MetricName.BYTES_UP] for metrics in last)
        by_seed = [mean(values) for values in zip(*reached.values(), strict=True)]
        spread = f" ± {stdev(by_seed):.1%}" if len(by_seed) > 1 else ""
        print(
            f"{title_of(arm):<28}"
            + "".join(f"{mean(reached[name]):>10.1%}" for name in names)
            + f"{f'{mean(by_seed):.1%}{spread}':>14}{sent:>10,.0f}"
        )
    print(
        f"Share of {len(some(ALL.test, PRIVATE))} test pictures named right (guessing: 20%), of "
        f"delivered adapters; {options.seeds} seeds, ± is their standard deviation. Bytes per "
        "owner and round. All arms have the same steps and learning rate; none was tuned."
    )


if __name__ == "__main__":
    main()
