"""Makes the built-in image models from nothing: `python -m worker.builtin_models.build_images`.

They learn to tell drawings apart: a dozen kinds of strokes, drawn at random and reduced to 8 x 8
grey values. They have never seen a digit, nor any picture of a data set. Seeded, on one thread.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import IMAGE_PROCESSOR_NAME

from backend.contracts.base_models import BuiltinModelName
from worker.federated.tasks.images import Preprocessing, to_pixels

FOLDER = Path(__file__).parent
PREPROCESSING = Preprocessing(size=16, patch_size=4)
CANVAS = 64  # pixels per side while drawing
SMALL = 8  # grey values per side of what is drawn
BATCH = 64
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
HELD_OUT = 1_000

Point = tuple[float, float]
Stroke = list[Point]


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Stroke:
    """Part of an ellipse, angles in turns from the right, clockwise."""
    angles = [2 * math.pi * (start + (end - start) * step / 24) for step in range(25)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


KINDS: dict[str, list[Stroke]] = {
    "ring": [_arc(0, 0, 0.5, 0.7, 0, 1)],
    "two rings": [_arc(0, -0.4, 0.35, 0.35, 0, 1), _arc(0, 0.4, 0.35, 0.35, 0, 1)],
    "bar": [[(0, -0.8), (0, 0.8)]],
    "beam": [[(-0.7, 0), (0.7, 0)]],
    "cross": [[(-0.6, -0.6), (0.6, 0.6)], [(0.6, -0.6), (-0.6, 0.6)]],
    "plus": [[(0, -0.7), (0, 0.7)], [(-0.6, 0), (0.6, 0)]],
    "corner": [[(-0.4, -0.7), (-0.4, 0.7), (0.5, 0.7)]],
    "roof": [[(-0.5, 0.6), (0, -0.7), (0.5, 0.6)]],
    "left bow": [_arc(0.3, 0, 0.7, 0.7, 0.25, 0.75)],
    "right bow": [_arc(-0.3, 0, 0.7, 0.7, -0.25, 0.25)],
    "wave": [_arc(0, -0.35, 0.4, 0.35, 0.25, 1.0)[::-1] + _arc(0, 0.35, 0.4, 0.35, -0.25, 0.5)],
    "lightning": [[(-0.5, -0.7), (0.5, -0.7), (-0.4, 0.7), (0.5, 0.7)]],
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one model is made of and how long it is trained."""

    new_model: Callable[..., PreTrainedModel]
    new_config: Callable[..., PreTrainedConfig]
    shape: dict[str, int]
    seed: int
    steps: int


RECIPES: dict[BuiltinModelName, Recipe] = {
    BuiltinModelName.TINY_VIT: Recipe(
        ViTForImageClassification,
        ViTConfig,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        seed=11,
        steps=1500,
    ),
    BuiltinModelName.TINY_DEIT: Recipe(
        DeiTForImageClassification,
        DeiTConfig,
        {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
        seed=12,
        steps=1500,
    ),
}


def draw(kind: str, source: Random) -> Image.Image:
    """One drawing of a kind, (8, 8) grey values: strokes are bright, the ground is black."""
    picture = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(picture)
    angle, slant = source.gauss(0, 0.12), source.gauss(0, 0.15)
    width, height = source.uniform(18, 28), source.uniform(24, 30)
    shift = [CANVAS / 2 + source.gauss(0, 2.5) for _ in range(2)]
    thickness = source.randint(5, 11)
    for stroke in KINDS[kind]:
        points = []
        for x, y in stroke:
            x, y = (x + slant * y + source.gauss(0, 0.02)) * width, (y * height)
            points.append(
                (
                    shift[0] + x * math.cos(angle) - y * math.sin(angle),
                    shift[1] + x * math.sin(angle) + y * math.cos(angle),
                )
            )
        pen.line(points, fill=255, width=thickness, joint="curve")
    return picture.resize((SMALL, SMALL), Image.Resampling.BOX)


def build(name: BuiltinModelName, folder: Path) -> float:
    """Trains one model into `folder`, without its head; gives its held-out accuracy."""
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    source = Random(f"drawings/{recipe.seed}")  # noqa: S311 - data, no secret
    held_out = _drawings(source, HELD_OUT)
    config: Any = recipe.new_config(
        image_size=PREPROCESSING.size,
        patch_size=PREPROCESSING.patch_size,
        num_labels=len(KINDS),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **recipe.shape,
    )
    model = recipe.new_model(config)
    _train(model, source, recipe.steps)
    body: Any = model.base_model
    body.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}  # the head stays here, and so do its names
    body.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    body.save_pretrained(folder)
    (folder / IMAGE_PROCESSOR_NAME).write_text(json.dumps(_stated(), indent=2) + "\n")
    with torch.no_grad():
        predicted = model(pixel_values=held_out[0]).logits.argmax(-1)
    return float((predicted == held_out[1]).float().mean())


def _drawings(source: Random, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (count, 3, size, size) and numbers of kinds (count,)."""
    kinds = list(KINDS)
    chosen = [source.randrange(len(kinds)) for _ in range(count)]
    pixels = [to_pixels(draw(kinds[number], source), PREPROCESSING) for number in chosen]
    return torch.stack(pixels), torch.tensor(chosen)


def _train(model: PreTrainedModel, source: Random, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
        ),
    )
    model.train()
    for step in range(steps):
        pixels, kinds = _drawings(source, BATCH)
        loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, kinds)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.train(mode=False)


def _stated() -> dict[str, object]:
    """How the models want their pictures, as transformers reads it."""
    side = PREPROCESSING.size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(PREPROCESSING.mean),
        "image_std": list(PREPROCESSING.deviation),
        "do_convert_rgb": True,
    }


def main() -> None:
    """Builds the named models, or all, beside this file, and prints their held-out accuracy."""
    torch.set_num_threads(1)
    names = [BuiltinModelName(word) for word in sys.argv[1:]] or list(RECIPES)
    accuracies = {name.value: round(build(name, FOLDER / name), 4) for name in names}
    print(json.dumps({"held_out_accuracy": accuracies}, indent=2))


if __name__ == "__main__":
    main()
