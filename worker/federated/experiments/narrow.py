"""`python -m worker.federated.experiments.narrow --data-dir DIR --out FOLDER [--width 256] ...`.

Makes a narrower encoder from the packaged one: structured pruning, then distillation on the texts
of the training files; test rows are not read. Experiments name the folder as `path` of a member.
"""

import argparse
import json
import logging
from pathlib import Path
from random import Random

import torch
from transformers import BertModel

from worker.federated.encoders import load_encoder
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.distillation import distill
from worker.federated.experiments.pruning import pruned, watch
from worker.federated.objectives.encoder import embed_texts, tokenize

_LOGGER = logging.getLogger("worker.federated.experiments.narrow")

WHOLE_DEPTH = 6
NUM_WATCHED = 512
NUM_COMPARED = 200
BATCH = 32


def main() -> None:
    """Writes `config.json`, `model.safetensors` and the tokenizer."""
    parser = student_parser("Makes a narrower encoder.")
    parser.set_defaults(width=256, layers=4, steps=500, learning_rate=5e-4, max_length=32, seed=0)
    options = parser.parse_args()
    texts = prepared_texts(options)
    torch.manual_seed(options.seed)
    whole, tokenizer = load_encoder(WHOLE_DEPTH)
    if not isinstance(whole, BertModel):
        raise InvalidConfigError(f"Pruning knows BERT, but here is a {type(whole).__name__}.")
    held_out, watched, rest = (
        texts[:NUM_COMPARED],
        texts[NUM_COMPARED:][:NUM_WATCHED],
        texts[NUM_COMPARED:],
    )
    batches = [
        tokenize(tokenizer, sorted(watched, key=len)[first : first + BATCH], options.max_length)
        for first in range(0, len(watched), BATCH)
    ]
    student = pruned(whole, watch(whole, batches), width=options.width, num_layers=options.layers)

    def agreement() -> float:
        return likeness(
            embed_texts(student, tokenizer, held_out, options.max_length),
            embed_texts(teacher, tokenizer, held_out, options.max_length),
        )

    # Only read from here on, and twice as fast.
    teacher, _ = load_encoder(WHOLE_DEPTH, dtype=torch.bfloat16)
    _LOGGER.info("pruned: correlation of cosines with the whole encoder %.3f", agreement())
    losses = distill(
        student,
        teacher,
        tokenizer,
        rest,
        num_steps=options.steps,
        batch_size=BATCH,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        seed=options.seed,
    )
    _LOGGER.info("loss %.4f at first, %.4f at last", losses[0], losses[-1])
    _LOGGER.info("distilled: correlation of cosines %.3f", agreement())
    student.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


def training_texts(data_dir: Path) -> list[str]:
    """All texts for encoders in the training files of a folder, each once, in a fixed order.

    Raises:
        InvalidConfigError: there are none.
    """
    found: dict[str, None] = {}
    for path in sorted(data_dir.glob("*_train.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.update(dict.fromkeys(row[key] for key in ("text_a", "text_b") if row.get(key)))
    if len(found) < NUM_WATCHED + NUM_COMPARED:
        raise InvalidConfigError(
            f"The training files in {data_dir.name!r} have {len(found)} texts, too few for "
            f"{NUM_WATCHED + NUM_COMPARED}: give another folder with --data-dir."
        )
    return list(found)


def likeness(left: torch.Tensor, right: torch.Tensor) -> float:
    """Pearson correlation of the cosines between all pairs of texts, in [-1, 1]."""
    rows, columns = torch.triu_indices(len(left), len(left), offset=1)
    cosines = torch.stack([(e @ e.T)[rows, columns] for e in (left, right)])
    return float(torch.corrcoef(cosines)[0, 1])


def student_parser(description: str) -> argparse.ArgumentParser:
    """Options of a program that makes a student; those with a value of its own have no default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds *_train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoder")
    parser.add_argument("--width", type=int, help="a multiple of the head size, 32")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int, help="of distillation")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--max-length", type=int, help="tokens per text")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    return parser


def prepared_texts(options: argparse.Namespace) -> list[str]:
    """Sets up logging and threads, and gives all training texts in the seed's order."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    texts = training_texts(options.data_dir)
    Random(options.seed).shuffle(texts)  # noqa: S311 - an order, no secret
    return texts


if __name__ == "__main__":
    main()
