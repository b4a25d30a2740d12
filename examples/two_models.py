"""TriLoRA on two different models, without a platform.

    python examples/two_models.py                       # the built-in tiny models
    python examples/two_models.py MODEL_A MODEL_B       # two folders of Hugging Face checkpoints

Each model learns its own task. After every round they exchange small middle matrices, nothing
else; in the end each one is a plain LoRA adapter that stock PEFT loads.
"""

# ruff: noqa: T201 - a script talks to its user

import argparse
from pathlib import Path

import torch
from peft import PeftModel

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.training import TrainingConfig
from worker.federated.base_models import load_base_model
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.tasks.loading import builtin_data

TASKS = (BuiltinTaskName.ARITHMETIC_FILL_IN, BuiltinTaskName.ARITHMETIC_PROGRAM)
RANKS = (4, 16)  # the second client has more memory


def main() -> None:
    """Federates the two models, prints a table, and loads the adapters with stock PEFT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="two folders; default: built-in ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per round")
    parser.add_argument("--examples", type=int, default=64, help="training examples per client")
    parser.add_argument("--output", type=Path, default=Path("adapters"))
    options = parser.parse_args()
    if len(options.models) not in {0, 2}:
        parser.error(f"give two folders or none, not {len(options.models)}")
    refs = [BaseModelRef(source="folder", id=str(folder)) for folder in options.models] or [
        BaseModelRef(source="builtin", id=name) for name in ("tiny_llama", "tiny_gemma")
    ]

    clients = []
    for number, (ref, task, rank) in enumerate(zip(refs, TASKS, RANKS, strict=True)):
        model, tokenizer = load_base_model(ref, device=torch.device("cpu"), dtype=torch.float32)
        dataset = BuiltinDataset(task=task, seed=number, num_train=options.examples, num_test=64)
        name = f"{chr(ord('a') + number)}-{Path(ref.id).name}"
        data = builtin_data(dataset)
        clients.append(SimulatedClient(name, model, tokenizer, data, rank, 2.0 * rank))

    result = simulate(
        H2TuneParams(),
        clients,
        num_rounds=options.rounds,
        training=TrainingConfig(local_steps=options.steps, learning_rate=3e-3),
        global_rank=max(RANKS),
        seed=0,
        output=options.output,
    )

    print(f"{'client':<16}{'rank':>5}{'start':>9}{'end':>9}{'bytes up':>10}{'as LoRA':>9}")
    for client in clients:
        first, last = (result.rounds[i].metrics[client.client_id] for i in (0, -1))
        start = first[MetricName.ACCURACY_BEFORE_TRAINING]
        end = result.delivered[client.client_id][MetricName.ACCURACY_DELIVERED]
        sent, lora = last[MetricName.BYTES_UP], last[MetricName.BYTES_LORA]
        columns = f"{client.lora_rank:>5}{start:>9.1%}{end:>9.1%}{sent:>10,.0f}{lora:>9,.0f}"
        print(f"{client.client_id:<16}{columns}")

    for client in clients:
        adapter = options.output / client.client_id
        adapted = PeftModel.from_pretrained(client.model, str(adapter)).eval()
        example = client.data.test[0]
        prompt = client.tokenizer(f"Question: {example.question}\n", return_tensors="pt")
        with torch.no_grad():
            tuned = adapted(prompt.input_ids).logits
            with adapted.disable_adapter():
                plain = adapted(prompt.input_ids).logits
        change = float((tuned - plain).abs().max())
        print(f"{adapter}: loaded with stock PEFT, logits move by up to {change:.2f}")


if __name__ == "__main__":
    main()
