"""Base models in folders of the machine: where they may lie and what they must hold."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from backend.contracts.base_models import Architecture
from backend.contracts.common import FieldError
from backend.errors import InvalidError

MAX_CONFIG_BYTES = 2**20
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")


def read_folder(name: str, roots: Sequence[Path]) -> Architecture:
    """The architecture of the model in a folder, from its `config.json`.

    Args:
        name: path of the folder as the client gave it.
        roots: folders below which models may lie.

    Raises:
        InvalidError: outside the roots, missing, without config.json or without safetensors.
    """
    folder = _allowed(name, roots)
    if not folder.is_dir():
        raise _refused(
            name, f"The folder {name!r} does not exist on the platform. Correct the path."
        )
    if not (folder / "config.json").is_file():
        raise _refused(
            name,
            f"The folder {name!r} has no config.json. Give the folder of a Hugging Face "
            "checkpoint, the one that holds config.json and *.safetensors.",
        )
    _require_safetensors(name, folder)
    return _read_config(name, folder / "config.json", roots)


def _allowed(name: str, roots: Sequence[Path]) -> Path:
    """The folder without symbolic links and `..`, so that neither leads out of the roots."""
    if not roots:
        raise _refused(
            name,
            "This platform allows no folder models. Set FEDBRAID_MODEL_FOLDERS to the folders "
            "below which models may lie, or choose a built-in model or one of the hub.",
        )
    folder = _resolved(name, Path(name))
    if not _is_below(folder, roots):
        raise _refused(
            name,
            f"The folder {name!r} does not lie below a folder that this platform allows "
            "(FEDBRAID_MODEL_FOLDERS). Move the model there, or ask an administrator.",
        )
    return folder


def _resolved(name: str, path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, or a name too long
        raise _refused(name, f"The path {name!r} cannot be followed. Correct it.") from error


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root.expanduser().resolve()) for root in roots)


def _require_safetensors(name: str, folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    found = f"has {pickled[0]} but no safetensors" if pickled else "holds no *.safetensors"
    raise _refused(
        name,
        f"The folder {name!r} {found}. Pickled weights can run code and are never read: convert "
        "them with `model.save_pretrained(folder)`, which writes safetensors.",
    )


def _read_config(name: str, path: Path, roots: Sequence[Path]) -> Architecture:
    if not _is_below(_resolved(name, path), roots):
        raise _refused(
            name, f"config.json in {name!r} is a link to a place that is not allowed. Copy it."
        )
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        inner = config.get("text_config")  # models that also see or hear nest it
        shape = inner if isinstance(inner, dict) else config
        return Architecture(
            family=config.get("model_type", ""),
            num_layers=_first(shape, _NUM_LAYERS),
            hidden_size=_first(shape, _HIDDEN_SIZE),
        )
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        reason = "; ".join(_reasons(error))
        raise _refused(
            name,
            f"config.json in {name!r} does not state the model's family, depth and width "
            f"({reason}). Use the files of one complete Hugging Face checkpoint.",
        ) from error


def _first(config: dict[str, object], keys: Sequence[str]) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int):
            return value
    raise ValueError(f"none of {', '.join(keys)} is a whole number")


def _reasons(error: Exception) -> list[str]:
    if isinstance(error, ValidationError):
        return [f"{entry['loc'][0]}: {entry['msg']}" for entry in error.errors()]
    return [str(error)]


def _refused(name: str, message: str) -> InvalidError:
    return InvalidError(
        message,
        code="base_model_refused",
        errors=[FieldError(field="base_model.id", value=name, message=message)],
    )
