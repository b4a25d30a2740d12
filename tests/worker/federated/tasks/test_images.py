"""Pictures from folders and built-in digits, and image models that learn them."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from backend.contracts.base_models import BaseModelRef
from backend.contracts.enums import TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from tests.worker.federated.strategies.rounds import training
from tests.worker.federated.tiny import make_data, make_model, make_tokenizer
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.objectives.classification import HeadObjective
from worker.federated.objectives.loading import load_for_task
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.tasks import optional
from worker.federated.tasks.images import (
    ImageInputs,
    Preprocessing,
    handwritten_digits,
    read_image_folder,
)
from worker.federated.types import ClientData

CPU = torch.device("cpu")
SMALL = Preprocessing(size=16, patch_size=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Red and blue squares, in every split."""
    for split, count in (("train", 6), ("validation", 2), ("test", 4)):
        for label, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            place = tmp_path / "pictures" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                picture = Image.new("RGB", (20 + number, 20), colour)
                picture.save(place / f"{number}.{'png' if number % 2 else 'jpg'}")
    return tmp_path / "pictures"


def saved_model(family: str, folder: Path) -> BaseModelRef:
    make_model(family).save_pretrained(folder)
    return BaseModelRef(source="folder", id=str(folder))


def test_a_folder_is_its_splits_and_labels(folder: Path) -> None:
    (folder / "train" / "red" / "notes.txt").write_text("no picture")
    data = read_image_folder(folder)
    assert data.task is TaskKind.IMAGE_CLASSIFICATION
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 8)
    assert {(e.question, e.answer) for e in data.test} >= {("test/red/0.jpg", "red")}


def test_a_folder_without_test_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"0 train and 0 test .*train/<label>/"):
        read_image_folder(tmp_path)


def test_pixels_are_scaled_and_normalised(folder: Path) -> None:
    wanted = Preprocessing(16, 8, mean=(0.5, 0.25, 0.0), deviation=(0.5, 0.25, 1.0))
    pixels = ImageInputs(wanted, folder).pixels("train/red/1.png")
    assert pixels.shape == (3, 16, 16)
    for channel, value in enumerate(((200 / 255 - 0.5) / 0.5, -1.0, 0.0)):
        torch.testing.assert_close(pixels[channel], torch.full((16, 16), value))
    batch = ImageInputs(wanted, folder).collate(["train/red/1.png", "train/blue/0.jpg"])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["attention_mask"].sum() == 2 * 4, "one per patch of 8 x 8"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "train/../../secret.png"])
def test_pictures_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    Image.new("RGB", (4, 4)).save(folder.parent / "secret.png")
    with pytest.raises(InvalidConfigError, match="outside its folder"):
        ImageInputs(SMALL, folder).pixels(name)


def test_broken_missing_and_huge_pictures_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.png").write_bytes(b"not a picture")
    for name in ("broken.png", "absent.png"):
        with pytest.raises(InvalidConfigError, match=rf"'{name}' cannot be read"):
            ImageInputs(SMALL, folder).pixels(name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InvalidConfigError, match=r"cannot be read.*decompression bomb"):
        ImageInputs(SMALL, folder).pixels("train/red/1.png")
    with pytest.raises(InvalidConfigError, match="say in which one"):
        ImageInputs(SMALL).pixels("train/red/1.png")


def test_digits_are_drawn_by_seed_and_splits_never_overlap() -> None:
    wanted = {"num_train": 300, "num_validation": 40, "num_test": 60}
    one, again, other = (handwritten_digits(seed=seed, **wanted) for seed in (1, 1, 2))
    assert one == again != other
    assert not {e.question for e in one.train} & {e.question for e in other.test}
    assert {e.answer for e in one.train} == {str(digit) for digit in range(10)}
    bright = ImageInputs(Preprocessing(8, 4, (0.0,) * 3, (1.0,) * 3)).pixels(one.train[0].question)
    assert bright.min() == 0
    assert bright.max() > 0.8
    with pytest.raises(InvalidConfigError, match="ask for fewer"):
        handwritten_digits(seed=0, num_train=5000, num_validation=0, num_test=1)
    with pytest.raises(InvalidConfigError, match="no digit 'digits/1797'"):
        ImageInputs(SMALL).pixels("digits/1797")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(InvalidConfigError, match="Pictures need the package 'pillow'"):
        ImageInputs(SMALL).pixels("digits/0")


def client(client_id: str, ref: BaseModelRef, data: ClientData, folder: Path | None = None):
    config = training()
    model, objective = load_for_task(
        ref, data, config, device=CPU, dtype=torch.float32, image_folder=folder
    )
    assert isinstance(objective, HeadObjective)

    def bind(copy: PreTrainedModel, _: object) -> HeadObjective:
        labels = sorted({example.answer for example in data.train})
        return HeadObjective(copy, ImageInputs(SMALL, folder), labels, head_learning_rate=3e-3)

    return SimulatedClient(client_id, model, make_tokenizer(), data, 4, 8.0, bind_objective=bind)


def test_vit_and_deit_learn_in_one_federation_and_stock_peft_loads_them(
    folder: Path, tmp_path: Path
) -> None:
    colours = read_image_folder(folder)
    digits = handwritten_digits(seed=0, num_train=200, num_validation=10, num_test=60)
    members = [
        client("colours", saved_model("vit", tmp_path / "vit"), colours, folder),
        client("digits", saved_model("deit", tmp_path / "deit"), digits),
    ]
    result = simulate(
        H2TuneParams(),
        members,
        num_rounds=2,
        training=training(local_steps=60, batch_size=16),
        global_rank=8,
        seed=0,
        output=tmp_path / "out",
    )
    assert result.delivered["colours"][MetricName.ACCURACY_DELIVERED] == 1.0
    before = result.rounds[0].metrics["digits"][MetricName.ACCURACY_BEFORE_TRAINING]
    after = result.delivered["digits"][MetricName.ACCURACY_DELIVERED]
    assert after > max(0.3, before + 0.1), "ten classes: guessing gives 0.1"
    assert result.rounds[0].metrics["colours"][MetricName.NUM_TOKENS] == 60 * 4 * 12

    config = ViTConfig.from_pretrained(tmp_path / "vit", num_labels=2)
    base = ViTForImageClassification.from_pretrained(tmp_path / "vit", config=config)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out" / "colours").eval()
    inputs = ImageInputs(SMALL, folder)
    batch = inputs.collate([example.question for example in colours.test])
    with torch.no_grad():
        answers = loaded(pixel_values=batch["pixel_values"]).logits.argmax(-1).tolist()
    assert answers == [["blue", "red"].index(example.answer) for example in colours.test]


def test_preprocessing_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    ref = saved_model("vit", tmp_path)
    digits = handwritten_digits(seed=0, num_train=20, num_validation=1, num_test=20)

    def brightest() -> float:
        _, objective = load_for_task(ref, digits, training(), device=CPU, dtype=torch.float32)
        return float(objective.collate(objective.encode(digits.train))["pixel_values"].max())

    assert brightest() == pytest.approx(1.0, abs=0.02), "0.5 and 0.5 where nothing is said"
    stated = {"image_mean": [0.0] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    assert brightest() == pytest.approx(4.0, abs=0.05)


def test_image_models_do_pictures_only(tmp_path: Path) -> None:
    ref = saved_model("vit", tmp_path)
    with pytest.raises(UnsupportedModelError, match="reads images and can only do"):
        load_for_task(ref, make_data(), training(), device=CPU, dtype=torch.float32)
