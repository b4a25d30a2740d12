"""A base model together with what it is trained for, chosen by its family and its task."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import IMAGE_PROCESSOR_NAME

from backend.contracts.base_models import BaseModelRef
from backend.contracts.enums import TaskKind
from backend.contracts.training import TrainingConfig
from worker.federated.base_models import (
    TOKENIZER,
    find_checkpoint,
    inspect_base_model,
    load_base_model,
    load_tokenizer,
    load_weights,
)
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.objectives.answers import answer_objective
from worker.federated.objectives.classification import (
    HeadObjective,
    Inputs,
    TextInputs,
    head_modules,
    start_head,
)
from worker.federated.objectives.encoder import EncoderObjective, EncoderSettings
from worker.federated.objectives.encoder_start import (
    all_rows,
    are_pairs,
    encoder_objective,
    labels_of,
)
from worker.federated.objectives.objective import Objective
from worker.federated.placement import Placement
from worker.federated.roles import family_of
from worker.federated.tasks.images import ImageInputs, Pictures, Preprocessing
from worker.federated.types import ClientData

POOLER = "pooler."
"""What the names of a pooler's weights begin with, in an encoder without a head."""


def load_for_task(
    ref: BaseModelRef,
    data: ClientData,
    training: TrainingConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    image_folder: Pictures | None = None,
) -> tuple[PreTrainedModel, Objective]:
    """A fresh base model and its objective.

    Decoders answer in words, classification included. Encoders of text classify with the head of
    their checkpoint where it has one for as many classes; else from the embeddings of label texts,
    or by a cosine for pairs (`encoder_start`). Only pairs with more than two labels then get a head
    that is drawn anew, and so do image models whose checkpoint has no head that fits.

    Args:
        ref: which model.
        data: the client's; its answers are the classes, in alphabetical order.
        training: lengths, and how the weights are placed.
        device: where they go.
        dtype: of the weights.
        image_folder: where pictures lie; None: built-in ones.

    Raises:
        InvalidConfigError: as `load_base_model`, or the data describe their labels incompletely.
        UnsupportedModelError: as `load_base_model`, or the family cannot do the task.
    """
    architecture, _ = inspect_base_model(ref)
    family = family_of(architecture.family)
    if family.reads == "text" and family.writes and data.task is not TaskKind.IMAGE_CLASSIFICATION:
        model, tokenizer = load_base_model(
            ref,
            device=device,
            dtype=dtype,
            quantization=training.quantization,
            device_map=training.device_map,
        )
        return model, answer_objective(tokenizer, data, training)
    placement = Placement(device, dtype, training.quantization, training.device_map)
    wanted = TaskKind.IMAGE_CLASSIFICATION if family.reads == "image" else TaskKind.CLASSIFICATION
    if data.task is not wanted:
        raise UnsupportedModelError(
            f"Base model {ref.id!r} ({architecture.family}) reads {family.reads}s and can only do "
            f"{wanted.value!r}, not {data.task.value!r}: choose another model or another task."
        )
    if data.task is TaskKind.IMAGE_CLASSIFICATION:
        return load_classifier(ref, data, training, placement, image_folder=image_folder)
    if _says_it_has_a_head(ref, data):
        headed, missing = _load_with_head(ref, data, placement)
        if not missing:
            return headed, _head_objective(ref, headed, data, training)
    if are_pairs(all_rows(data)) and len(labels_of(data)) > 2:
        return load_classifier(ref, data, training, placement)
    return load_encoder(ref, data, training, placement)


def load_encoder(
    ref: BaseModelRef, data: ClientData, training: TrainingConfig, placement: Placement
) -> tuple[PreTrainedModel, EncoderObjective]:
    """A text encoder without a head, and classification by its embeddings; see `load_for_task`.

    The pooler that some families have is never read, so a checkpoint may lack it.

    Raises:
        InvalidConfigError: files are missing or cannot be placed as asked, or the data describe
            their labels incompletely.
        UnsupportedModelError: weights of the body are missing.
    """
    source = find_checkpoint(ref, companions=TOKENIZER)
    model, missing = load_weights(ref, source, AutoModel, placement)
    _require_body(ref, [name for name in missing if not name.startswith(POOLER)])
    settings = EncoderSettings(training.max_length, max_eval_examples=training.max_eval_examples)
    return model, encoder_objective(model, load_tokenizer(ref, source), data, settings)


def load_classifier(
    ref: BaseModelRef,
    data: ClientData,
    training: TrainingConfig,
    placement: Placement,
    *,
    image_folder: Pictures | None = None,
) -> tuple[PreTrainedModel, HeadObjective]:
    """The same with a classification head for any family, decoders included; see `load_for_task`.

    Raises:
        InvalidConfigError: files are missing or cannot be placed as asked.
        UnsupportedModelError: transformers knows no such classifier, or weights of the body are
            missing.
    """
    model, missing = _load_with_head(ref, data, placement)
    start_head(model, missing)
    return model, _head_objective(ref, model, data, training, image_folder)


def _load_with_head(
    ref: BaseModelRef, data: ClientData, placement: Placement
) -> tuple[PreTrainedModel, list[str]]:
    """A model with a head for the data's classes, and names of what the checkpoint lacks of it."""
    reads_images = data.task is TaskKind.IMAGE_CLASSIFICATION
    model, missing = load_weights(
        ref,
        find_checkpoint(ref, companions=() if reads_images else TOKENIZER),
        AutoModelForImageClassification if reads_images else AutoModelForSequenceClassification,
        placement,
        num_labels=len(labels_of(data)),
        ignore_mismatched_sizes=True,  # a head for other classes; the body is checked below
    )
    tops = tuple(f"{name}." for name in head_modules(model))
    _require_body(ref, [name for name in missing if not name.startswith(tops)])
    return model, missing


def _head_objective(
    ref: BaseModelRef,
    model: PreTrainedModel,
    data: ClientData,
    training: TrainingConfig,
    image_folder: Pictures | None = None,
) -> HeadObjective:
    source = find_checkpoint(ref, companions=())
    inputs: Inputs
    if data.task is TaskKind.IMAGE_CLASSIFICATION:
        inputs = ImageInputs(_preprocessing(model, ref, source), image_folder)
    else:
        inputs = TextInputs(load_tokenizer(ref, source), training.max_length)
    limit = training.max_eval_examples
    return HeadObjective(model, inputs, labels_of(data), max_eval_examples=limit)


def _says_it_has_a_head(ref: BaseModelRef, data: ClientData) -> bool:
    """Whether the checkpoint says that it is a classifier of as many classes as the data have."""
    source = find_checkpoint(ref, companions=())
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    stored = config.architectures or []
    is_classifier = any(name.endswith("ForSequenceClassification") for name in stored)
    return is_classifier and config.num_labels == len(labels_of(data))


def _require_body(ref: BaseModelRef, absent: list[str]) -> None:
    if absent:
        raise UnsupportedModelError(
            f"Base model {ref.id!r} lacks weights that its config.json promises, such as "
            f"{absent[0]} ({len(absent)} in all). Use the files of one complete checkpoint."
        )


def _preprocessing(model: PreTrainedModel, ref: BaseModelRef, source: str) -> Preprocessing:
    """What the checkpoint says about its pictures; half and half where a folder says nothing."""
    size, patch = model.config.image_size, model.config.patch_size
    stated: dict[str, Any] = {}
    if ref.source == "hub" or (Path(source) / IMAGE_PROCESSOR_NAME).is_file():
        try:
            stated, _ = ImageProcessingMixin.get_image_processor_dict(source)
        except OSError as error:
            raise InvalidConfigError(
                f"Base model {ref.id!r} does not say how it wants its pictures: {error} Download "
                f"it, and put a {IMAGE_PROCESSOR_NAME} into its folder if it has none."
            ) from error
    plain = Preprocessing(size, patch)
    return Preprocessing(
        size,
        patch,
        tuple(stated.get("image_mean", plain.mean)),
        tuple(stated.get("image_std", plain.deviation)),
    )
