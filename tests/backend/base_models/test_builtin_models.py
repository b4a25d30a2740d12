"""The catalogue agrees with the files that ship, which are read here without any library."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

import worker.builtin_models
from backend.contracts.base_models import BuiltinModelName
from tests.factories import Caller

FOLDER = Path(next(iter(worker.builtin_models.__path__)))


def num_parameters(path: Path) -> int:
    """Entries of all tensors, from the JSON header after its length in 8 bytes."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")


@pytest.fixture
def catalogue(viewer: Caller) -> dict[str, dict[str, Any]]:
    return {entry["ref"]["id"]: entry for entry in viewer.get("/base-models").json()}


def test_every_shipped_model_is_listed(catalogue: dict[str, dict[str, Any]]) -> None:
    assert set(catalogue) == set(BuiltinModelName)
    assert set(catalogue) == {path.parent.name for path in FOLDER.glob("*/config.json")}


@pytest.mark.parametrize("name", BuiltinModelName)
def test_shapes_and_sizes_are_those_of_the_files(
    catalogue: dict[str, dict[str, Any]], name: BuiltinModelName
) -> None:
    config = json.loads((FOLDER / name / "config.json").read_text())
    assert catalogue[name]["architecture"] == {
        "family": config["model_type"],
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
    }
    assert catalogue[name]["num_parameters"] == num_parameters(FOLDER / name / "model.safetensors")
