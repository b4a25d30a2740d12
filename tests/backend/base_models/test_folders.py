"""Base models in folders: what may be read, and what is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from backend.base_models.folders import read_folder
from backend.contracts.base_models import Architecture
from backend.errors import InvalidError
from backend.settings import Settings
from tests.factories import Caller, make_key, problem, registration, unchanged

CONFIG = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir()
    return root


def make_model(folder: Path, config: object = CONFIG, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).touch()
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, ("llama", 32, 4096)),
        ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768}, ("gpt2", 12, 768)),
        ({"model_type": "t5", "num_layers": 6, "d_model": 512}, ("t5", 6, 512)),
        ({"model_type": "distilbert", "n_layers": 6, "dim": 768}, ("distilbert", 6, 768)),
        (
            {
                "model_type": "gemma3",
                "text_config": {"num_hidden_layers": 34, "hidden_size": 2560},
            },
            ("gemma3", 34, 2560),
        ),
    ],
)
def test_shapes_are_read_whatever_their_keys(
    root: Path, config: dict[str, Any], expected: tuple[str, int, int]
) -> None:
    folder = make_model(root / "model", config)
    family, num_layers, hidden_size = expected
    assert read_folder(str(folder), [root]) == Architecture(
        family=family, num_layers=num_layers, hidden_size=hidden_size
    )


def refusal(name: object, roots: list[Path]) -> str:
    with pytest.raises(InvalidError) as caught:
        read_folder(str(name), roots)
    assert caught.value.code == "base_model_refused"
    assert caught.value.errors[0].field == "base_model.id"
    return caught.value.message


def test_nothing_is_allowed_by_default(root: Path) -> None:
    assert "FEDBRAID_MODEL_FOLDERS" in refusal(make_model(root / "model"), [])


def test_folders_outside_are_refused(root: Path, tmp_path: Path) -> None:
    outside = make_model(tmp_path / "outside")
    (root / "link").symlink_to(outside)
    for name in (outside, root / ".." / "outside", root / "link", "/etc", "relative", "~"):
        assert "does not lie below a folder" in refusal(name, [root])


def test_a_root_with_a_similar_name_is_outside(root: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "models-private")
    assert "does not lie below" in refusal(folder, [root])


def test_a_link_that_stays_inside_is_fine(root: Path) -> None:
    (root / "link").symlink_to(make_model(root / "model"))
    assert read_folder(str(root / "link"), [root]).family == "llama"


def test_a_loop_of_links_is_refused(root: Path) -> None:
    (root / "loop").symlink_to(root / "loop")
    assert str(root / "loop") in refusal(root / "loop", [root])


def test_a_config_linked_from_outside_is_refused(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(CONFIG))
    folder = make_model(root / "model")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(secret)
    assert "not allowed" in refusal(folder, [root])


def test_a_missing_folder_is_named(root: Path) -> None:
    message = refusal(root / "absent", [root])
    assert f"{str(root / 'absent')!r} does not exist" in message


def test_a_folder_without_config_is_named(root: Path) -> None:
    (root / "model").mkdir()
    assert "has no config.json" in refusal(root / "model", [root])


def test_pickled_weights_are_refused_with_the_remedy(root: Path) -> None:
    folder = make_model(root / "model", weights="pytorch_model.bin")
    message = refusal(folder, [root])
    assert "has pytorch_model.bin but no safetensors" in message
    assert "convert them with `model.save_pretrained(folder)`" in message


def test_no_weights_at_all(root: Path) -> None:
    folder = make_model(root / "model", weights="readme.md")
    assert "holds no *.safetensors" in refusal(folder, [root])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], "not a JSON object"),
        ({"model_type": "llama", "hidden_size": 8}, "none of num_hidden_layers"),
        ({"model_type": "llama", "num_hidden_layers": "4", "hidden_size": 8}, "whole number"),
        ({"num_hidden_layers": 4, "hidden_size": 8}, "family"),
        ({"model_type": 5, "num_hidden_layers": 4, "hidden_size": 8}, "family"),
        ({"model_type": "llama", "num_hidden_layers": -1, "hidden_size": 8}, "num_layers"),
    ],
)
def test_a_config_without_a_shape_is_refused(root: Path, config: object, words: str) -> None:
    assert words in refusal(make_model(root / "model", config), [root])


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b" " * 2**21])
def test_a_config_that_is_no_json_is_refused(root: Path, content: bytes) -> None:
    folder = make_model(root / "model")
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder, [root])


def test_registration_reads_an_allowed_folder(
    root: Path,
    operator: Caller,
    engine: Engine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "model_folders", [root])
    folder = make_model(root / "model")
    secret = make_key(operator)["secret"]
    body = registration(secret, base_model={"source": "folder", "id": str(folder)})
    client = operator.post("/clients/register", body).json()["client"]
    assert client["architecture"] == {"family": "llama", "num_layers": 32, "hidden_size": 4096}
    with unchanged(engine):
        bad = registration(secret, base_model={"source": "folder", "id": "/etc"})
        answer = problem(operator.post("/clients/register", bad), 422, "base_model_refused")
    assert "'/etc' does not lie below" in answer["detail"]


def test_a_remote_clients_folder_is_declared_not_read(operator: Caller) -> None:
    body = registration(
        make_key(operator)["secret"],
        execution="remote",
        base_model={"source": "folder", "id": "/data/model"},
        architecture={"family": "llama", "num_layers": 2, "hidden_size": 64},
        dataset=None,
        modules={"q": {"in_features": 64, "out_features": 64}},
        num_examples=5,
    )
    assert operator.post("/clients/register", body).status_code == 201
