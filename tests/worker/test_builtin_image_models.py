"""The built-in image models: small, different, and honest about what they have seen."""

import json
from random import Random

import pytest
import torch
from transformers import PreTrainedModel

from backend.contracts.base_models import IMAGE_MODELS, BaseModelRef
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.training import TrainingConfig
from worker.builtin_models.build_images import KINDS, PREPROCESSING, RECIPES, draw
from worker.federated.base_models import builtin_model_folder, inspect_base_model
from worker.federated.objectives.loading import load_for_task
from worker.federated.tasks.loading import builtin_data

FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}
CPU = torch.device("cpu")


def test_files_are_small_and_shapes_differ() -> None:
    assert set(RECIPES) == IMAGE_MODELS
    shapes = []
    for name in IMAGE_MODELS:
        folder = builtin_model_folder(name)
        assert {path.name for path in folder.iterdir()} == FILES
        assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
        shapes.append(inspect_base_model(BaseModelRef(source="builtin", id=name))[0])
        stated = json.loads((folder / "preprocessor_config.json").read_text())
        assert stated["image_mean"] == list(PREPROCESSING.mean)
    assert len({shape.family for shape in shapes}) == 2
    assert len({shape.num_layers for shape in shapes}) == 2
    assert len({shape.hidden_size for shape in shapes}) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_drawings_are_seeded_small_and_not_empty(kind: str) -> None:
    picture = draw(kind, Random(3))
    assert picture.size == (8, 8)
    assert picture.tobytes() == draw(kind, Random(3)).tobytes()
    assert picture.tobytes() != draw(kind, Random(4)).tobytes()
    assert max(picture.tobytes()) > 50


@pytest.mark.parametrize("name", sorted(IMAGE_MODELS))
def test_pretraining_made_features_that_tell_digits_apart(name: str) -> None:
    """Nearest class mean on what a head reads; without pre-training that is much worse."""
    data = builtin_data(
        BuiltinDataset(task=BuiltinTaskName.HANDWRITTEN_DIGITS, num_train=200, num_test=200)
    )
    ref = BaseModelRef(source="builtin", id=name)
    model, objective = load_for_task(ref, data, TrainingConfig(), device=CPU, dtype=torch.float32)

    def nearest_mean(body: PreTrainedModel) -> float:
        features, labels = [], []
        for examples in (data.train, data.test):
            batch = objective.collate(objective.encode(examples))
            with torch.no_grad():
                hidden = body(pixel_values=batch["pixel_values"]).last_hidden_state
            features.append(hidden[:, 0])
            labels.append(batch["labels"])
        means = torch.stack([features[0][labels[0] == d].mean(dim=0) for d in range(10)])
        predicted = torch.cdist(features[1], means).argmin(dim=1)
        return float((predicted == labels[1]).float().mean())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = type(model)(model.config).eval()
    accuracy = nearest_mean(model.base_model)
    assert accuracy > 0.45, "guessing gives 0.1"
    assert accuracy > nearest_mean(untrained.base_model) + 0.2
