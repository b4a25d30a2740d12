"""Finds and loads base models: built-in ones, folders, and the Hugging Face hub.

Weights come as safetensors only and code never comes with a model. Every call gives a fresh
module, because adapters are put into it in place; a tiny model loads in a tenth of a second, and
for large ones the operating system's file cache does better than a second copy in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from backend.contracts.base_models import Architecture, BaseModelRef, BuiltinModelName
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.placement import Placement
from worker.federated.roles import architecture_of, module_shapes
from worker.federated.types import ModuleShape

TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files of which a text model's folder holds at least one."""


BUILTIN_PREFIX = "builtin:"


def named_model(text: str) -> BaseModelRef:
    """A base model as people write it in a command: a folder, `builtin:NAME`, or a hub id.

    Raises:
        InvalidConfigError: what looks like a folder does not exist.
    """
    if text.startswith(BUILTIN_PREFIX):
        return BaseModelRef(source="builtin", id=text.removeprefix(BUILTIN_PREFIX))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return BaseModelRef(source="folder", id=str(folder.resolve()))
    if folder.is_absolute() or text.startswith((".", "~")):
        raise InvalidConfigError(f"--model {text!r}: this folder does not exist. Correct the path.")
    return BaseModelRef(source="hub", id=text)


def load_base_model(
    ref: BaseModelRef,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Literal["none", "nf4"] = "none",
    device_map: Literal["none", "auto"] = "none",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fresh causal model in evaluation mode, without adapters, and its tokenizer.

    Args:
        ref: which model.
        device: where its weights go.
        dtype: of the weights, `torch.float32` or `torch.bfloat16`.
        quantization: see `Placement`.
        device_map: see `Placement`.

    Raises:
        InvalidConfigError: the name is unknown, files are missing, the hub did not give them, or
            this machine cannot place the weights as asked.
        UnsupportedModelError: the model is no causal language model that transformers knows, or
            its weights do not fill its architecture or know fewer tokens than its tokenizer.
    """
    source = find_checkpoint(ref, companions=TOKENIZER)
    placement = Placement(device, dtype, quantization, device_map)
    model, missing = load_weights(ref, source, AutoModelForCausalLM, placement)
    if missing:
        raise UnsupportedModelError(
            f"Base model {ref.id!r} lacks weights that its config.json promises, such as "
            f"{missing[0]} ({len(missing)} in all). Use the files of one complete checkpoint."
        )
    tokenizer = load_tokenizer(ref, source)
    embeddings: Any = model.get_input_embeddings()
    num_embeddings = embeddings.weight.shape[0]
    if len(tokenizer) > num_embeddings:
        raise UnsupportedModelError(
            f"The tokenizer of base model {ref.id!r} has {len(tokenizer)} tokens, its weights know "
            f"{num_embeddings}. Use the tokenizer that belongs to the model, or resize its "
            "embeddings and save it again."
        )
    return model, tokenizer


def load_weights(
    ref: BaseModelRef, source: str, kind: Any, placement: Placement, **config: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A fresh model in evaluation mode, and the names of weights that the checkpoint lacks.

    Args:
        ref: which model, for messages.
        source: as `find_checkpoint` gives it.
        kind: a class of transformers such as `AutoModelForCausalLM`.
        placement: where the weights go.
        config: entries of the model's configuration to replace.

    Raises:
        InvalidConfigError: the files cannot be read, or not be placed as asked.
        UnsupportedModelError: transformers has no such model of this kind.
    """
    options = placement.load_options()
    try:
        loaded: Any = kind.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
            **config,
        )
    except OSError as error:
        raise InvalidConfigError(_unreadable(ref, error)) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(_unsupported(ref, kind, error)) from error
    model, report = loaded
    if "device_map" not in options:
        model.to(placement.device)
    model.eval()
    # With `ignore_mismatched_sizes` a mismatched entry is (name, stored shape, own shape).
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    return model, sorted([*report["missing_keys"], *mismatched])


def load_tokenizer(ref: BaseModelRef, source: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer; `InvalidConfigError` or `UnsupportedModelError` as `load_weights`."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except OSError as error:
        raise InvalidConfigError(_unreadable(ref, error)) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(_unsupported(ref, AutoTokenizer, error)) from error
    return tokenizer


def inspect_base_model(ref: BaseModelRef) -> tuple[Architecture, dict[str, ModuleShape]]:
    """Architecture and the shape of each adapted role, from `config.json` alone.

    Raises:
        InvalidConfigError: the name is unknown, files are missing, or the hub did not give them.
        UnsupportedModelError: the family cannot be adapted.
    """
    source = find_checkpoint(ref, companions=())
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModel.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    except OSError as error:
        raise InvalidConfigError(_unreadable(ref, error)) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(_unsupported(ref, AutoModel, error)) from error
    return architecture_of(model), module_shapes(model)


def builtin_model_folder(name: BuiltinModelName) -> Path:
    """Where a built-in model lies within the installed package."""
    return Path(__file__).parents[1] / "builtin_models" / name.value


def find_checkpoint(ref: BaseModelRef, *, companions: Sequence[str]) -> str:
    """What transformers calls `pretrained_model_name_or_path`, checked as far as it is local.

    Args:
        ref: which model.
        companions: files of which one must lie next to the weights, such as `TOKENIZER`; may be
            empty.

    Raises:
        InvalidConfigError: the name is unknown, or files are missing.
    """
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
    _require_complete(folder, companions)
    return str(folder)


def _require_complete(folder: Path, companions: Sequence[str]) -> None:
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
    if companions and not any((folder / name).is_file() for name in companions):
        raise InvalidConfigError(
            f"The folder {str(folder)!r} has no tokenizer ({', '.join(companions)}). Add "
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


def _unsupported(ref: BaseModelRef, kind: Any, error: ValueError | KeyError) -> str:
    reason = str(error).strip().splitlines()[0]
    what = _KINDS.get(kind, "model")
    return (
        f"Base model {ref.id!r} is no {what} that the installed transformers "
        f"knows: {reason} Choose a model of that kind whose code ships with transformers."
    )


_KINDS: dict[Any, str] = {
    AutoModelForCausalLM: "causal language model",
    AutoModelForSequenceClassification: "text classifier",
    AutoModelForImageClassification: "image classifier",
}
