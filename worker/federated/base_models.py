"""Finds and loads base models: built-in ones, folders, and the Hugging Face hub.

Weights come as safetensors only and code never comes with a model. Every call gives a fresh
module, because adapters are put into it in place; a tiny model loads in a tenth of a second, and
for large ones the operating system's file cache does better than a second copy in memory.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from backend.contracts.base_models import Architecture, BaseModelRef, BuiltinModelName
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.roles import architecture_of, module_shapes
from worker.federated.types import ModuleShape

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_base_model(
    ref: BaseModelRef, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fresh causal model in evaluation mode, without adapters, and its tokenizer.

    Args:
        ref: which model.
        device: where its weights go.
        dtype: of the weights, `torch.float32` or `torch.bfloat16`.

    Raises:
        InvalidConfigError: the name is unknown, files are missing, or the hub did not give them.
        UnsupportedModelError: the model is no causal language model that transformers knows, or
            its weights do not fill its architecture.
    """
    source = _source(ref)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise InvalidConfigError(_unreadable(ref, error)) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(_unsupported(ref, error)) from error
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise UnsupportedModelError(
            f"Base model {ref.id!r} lacks weights that its config.json promises, such as "
            f"{missing[0]} ({len(missing)} in all). Use the files of one complete checkpoint."
        )
    model.to(device).eval()
    return model, tokenizer


def inspect_base_model(ref: BaseModelRef) -> tuple[Architecture, dict[str, ModuleShape]]:
    """Architecture and the shape of each adapted role, from `config.json` alone.

    Raises:
        InvalidConfigError: the name is unknown, files are missing, or the hub did not give them.
        UnsupportedModelError: the family cannot be adapted.
    """
    source = _source(ref)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    except OSError as error:
        raise InvalidConfigError(_unreadable(ref, error)) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(_unsupported(ref, error)) from error
    return architecture_of(model), module_shapes(model)


def builtin_model_folder(name: BuiltinModelName) -> Path:
    """Where a built-in model lies within the installed package."""
    return Path(__file__).parents[1] / "builtin_models" / name.value


def _source(ref: BaseModelRef) -> str:
    """What transformers calls `pretrained_model_name_or_path`, checked as far as it is local."""
    match ref.source:
        case "hub":
            return ref.id
        case "builtin":
            if ref.id not in set(BuiltinModelName):
                raise InvalidConfigError(
                    f"There is no built-in base model {ref.id!r}. Choose one of "
                    f"{', '.join(BuiltinModelName)}."
                )
            folder = builtin_model_folder(BuiltinModelName(ref.id))
        case "folder":
            folder = Path(ref.id).expanduser()
    _require_complete(folder)
    return str(folder)


def _require_complete(folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidConfigError(
            f"The base model folder {str(folder)!r} does not exist on the machine that trains. "
            "Put the model there, or correct the path."
        )
    if not (folder / "config.json").is_file():
        raise InvalidConfigError(
            f"The folder {str(folder)!r} has no config.json. Give the folder of a Hugging Face "
            "checkpoint, the one that holds config.json and *.safetensors."
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {pickled[0]}, a pickle that could run code" if pickled else "no weights"
        raise InvalidConfigError(
            f"The folder {str(folder)!r} holds {found}. Store the weights as safetensors: "
            "model.save_pretrained(folder)."
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InvalidConfigError(
            f"The folder {str(folder)!r} has no tokenizer ({', '.join(_TOKENIZER_FILES)}). Add "
            "it: tokenizer.save_pretrained(folder)."
        )


def _unreadable(ref: BaseModelRef, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0]
    if ref.source == "hub":
        return (
            f"Base model {ref.id!r} cannot be had from the Hugging Face hub: {reason} Check the "
            "name, the network and access rights (HF_TOKEN), that the repository has safetensors, "
            "or download it and use its folder."
        )
    return f"Base model {ref.id!r} cannot be read: {reason} Copy the checkpoint again."


def _unsupported(ref: BaseModelRef, error: ValueError | KeyError) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"Base model {ref.id!r} is no causal language model that the installed transformers "
        f"knows: {reason} Choose a text model whose code ships with transformers."
    )
