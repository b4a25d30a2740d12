"""A base model and a delivered adapter as one model: W' = W + (lora_alpha / r) B A.

For whoever serves a model with software that knows no adapters. The result is an ordinary
checkpoint in safetensors, with its tokenizer; a classification head comes along, within the model
or, for an encoder that classifies by its embeddings, beside it.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import IMAGE_PROCESSOR_NAME

from backend.contracts.base_models import BaseModelRef
from worker.federated.base_models import (
    TOKENIZER,
    find_checkpoint,
    load_tokenizer,
    load_weights,
)
from worker.federated.errors import InvalidConfigError, NonFiniteError
from worker.federated.objectives.classes import HEAD_CONFIG_FILE, HEAD_FILE, LABELS_FILE
from worker.federated.objectives.encoder import TASK_TYPE as WITHOUT_HEAD
from worker.federated.placement import Placement
from worker.federated.roles import family_of

Precision = Literal["as_stored", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_COMPANIONS = (
    *("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", IMAGE_PROCESSOR_NAME),
)
_REQUIRED = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)
_HEAD_BESIDE = (HEAD_FILE, HEAD_CONFIG_FILE, LABELS_FILE)


def merge_adapter(
    ref: BaseModelRef, adapter: Path, output: Path, precision: Precision = "as_stored"
) -> Path:
    """Writes base model and adapter as one checkpoint that needs no PEFT.

    The sum is made in fp32 on the CPU and rounded once.

    Args:
        ref: the base model that the adapter was trained on.
        adapter: a delivered adapter, as a folder or as the archive that was downloaded.
        output: a folder, created if missing; must be empty.
        precision: of the written weights; `as_stored` keeps that of the base model.

    Returns:
        `output`.

    Raises:
        InvalidConfigError: the output holds files, or this is no adapter, or not of this model.
        UnsupportedModelError: as `load_base_model`.
        NonFiniteError: the merged weights hold NaN or infinity.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidConfigError(f"The output {str(output)!r} holds something: choose another.")
    source = find_checkpoint(ref, companions=())
    with _opened(adapter) as folder:
        config, labels = _read_config(folder)
        reads = family_of(AutoConfig.from_pretrained(source, trust_remote_code=False).model_type)
        kind = _kind(config, labels, reads_images=reads.reads == "image")
        base, dtype = _load_base(ref, source, kind, labels)
        merged = _merged(base, config, folder, ref)
        nn.Module.to(merged, _DTYPES.get(precision, dtype))
        merged.save_pretrained(output)
        if config.task_type == WITHOUT_HEAD:
            for name in _HEAD_BESIDE:
                shutil.copy(folder / name, output)
    _add_companions(ref, source, output, reads_text=reads.reads == "text")
    return output


@contextmanager
def _opened(adapter: Path) -> Iterator[Path]:
    """The adapter as a folder; of an archive only the files of known names are read."""
    if adapter.is_dir():
        _require_files(adapter, {path.name for path in adapter.iterdir()})
        yield adapter
        return
    if not zipfile.is_zipfile(adapter):
        raise InvalidConfigError(
            f"{str(adapter)!r} is neither a folder nor an archive (.zip): give the adapter as it "
            "was downloaded."
        )
    with zipfile.ZipFile(adapter) as archive, TemporaryDirectory(prefix="fedbraid-") as name:
        present = set(archive.namelist())
        _require_files(adapter, present)
        for known in {*_REQUIRED, *_HEAD_BESIDE} & present:
            with archive.open(known) as content, (Path(name) / known).open("wb") as file:
                shutil.copyfileobj(content, file)
        yield Path(name)


def _require_files(adapter: Path, present: set[str]) -> None:
    for name in _REQUIRED:
        if name not in present:
            raise InvalidConfigError(
                f"{str(adapter)!r} has no {name}: give the folder or archive of a delivered "
                "adapter, with its weights as safetensors."
            )


def _read_config(folder: Path) -> tuple[LoraConfig, list[str] | None]:
    """The adapter's configuration, and the names of its classes if it brings a head."""
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise InvalidConfigError(
            f"The adapter is of type {config.peft_type}, which cannot be merged: only plain LoRA "
            "can."
        )
    config.inference_mode = True
    labels = folder / LABELS_FILE
    if config.task_type == WITHOUT_HEAD:
        _require_head_beside(folder)
    if not config.modules_to_save:
        return config, None
    if not labels.is_file():
        raise InvalidConfigError(
            f"The adapter brings a classification head but no {LABELS_FILE}: deliver it again."
        )
    return config, list(json.loads(labels.read_text(encoding="utf-8")))


def _require_head_beside(folder: Path) -> None:
    for name in _HEAD_BESIDE:
        if not (folder / name).is_file():
            raise InvalidConfigError(
                f"The adapter is of an encoder that classifies by its embeddings, but {name} is "
                "missing: deliver it again."
            )


def _kind(config: LoraConfig, labels: list[str] | None, *, reads_images: bool) -> Any:
    """The class of transformers that has what the adapter changes."""
    if config.task_type == WITHOUT_HEAD:
        return AutoModel
    if labels is None:
        return AutoModelForCausalLM
    return AutoModelForImageClassification if reads_images else AutoModelForSequenceClassification


def _load_base(
    ref: BaseModelRef, source: str, kind: Any, labels: list[str] | None
) -> tuple[PreTrainedModel, torch.dtype]:
    """The base model in fp32 with a head for the labels, and the type it is stored in."""
    stored = AutoConfig.from_pretrained(source, trust_remote_code=False).dtype
    placement = Placement(torch.device("cpu"), torch.float32)
    options: dict[str, Any] = {}
    if labels is not None:
        options = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,  # the adapter's head replaces it
        }
    else:  # it reads text
        find_checkpoint(ref, companions=TOKENIZER)
    model, _ = load_weights(ref, source, kind, placement, **options)
    return model, stored or torch.float32


def _add_companions(ref: BaseModelRef, source: str, output: Path, *, reads_text: bool) -> None:
    """Tokenizer or picture settings: copied as they are, or taken from the hub."""
    if ref.source != "hub":
        for pattern in _COMPANIONS:
            for path in Path(source).glob(pattern):
                shutil.copy(path, output)
    elif reads_text:
        load_tokenizer(ref, source).save_pretrained(output)
    else:
        stated, _ = ImageProcessingMixin.get_image_processor_dict(source)
        (output / IMAGE_PROCESSOR_NAME).write_text(json.dumps(stated, indent=2), encoding="utf-8")


def _merged(
    base: PreTrainedModel, config: LoraConfig, folder: Path, ref: BaseModelRef
) -> PreTrainedModel:
    config.base_model_name_or_path = base.name_or_path  # the adapter knows a name, not a place
    try:
        adapted = get_peft_model(base, config)
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        report: Any = set_peft_model_state_dict(adapted, tensors)
    except (ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()
        raise InvalidConfigError(
            f"The adapter does not fit base model {ref.id!r}: {' '.join(reason[:2])} Give the base "
            "model that the client had."
        ) from error
    absent = [name for name in report.missing_keys if "lora_" in name]
    if absent or report.unexpected_keys:
        name = [*absent, *report.unexpected_keys][0]
        raise InvalidConfigError(
            f"The adapter does not fit base model {ref.id!r}: {name} is only in one of them. Give "
            "the base model that the client had."
        )
    merged = cast(PreTrainedModel, adapted.merge_and_unload())
    for name, parameter in merged.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NonFiniteError(f"{name!r} holds NaN or infinity: the adapter is broken.")
    return merged
