"""How classification with a bare text encoder starts: from the encoder's own label texts.

Heads that are drawn at random fit a handful of examples by themselves, each in a direction of its
own, and then nothing that clients share means the same to two of them. Label texts give heads that
agree before anybody has trained.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.datasets import Example
from backend.contracts.label_texts import LabelTextsError, described_labels
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.encoder import (
    EncoderObjective,
    EncoderSettings,
    lines_of,
    pair_objective,
    text_objective,
)
from worker.federated.types import ClientData


def encoder_objective(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: ClientData,
    settings: EncoderSettings,
) -> EncoderObjective:
    """Pairs with two labels by their cosine, single texts by label texts.

    Args:
        model: the encoder, without head and still without adapters.
        tokenizer: its tokenizer.
        data: the client's; its answers are the classes, in alphabetical order.
        settings: lengths and rates.

    Raises:
        InvalidConfigError: the data describe their labels incompletely or in contradictions.
    """
    labels = labels_of(data)
    if are_pairs(all_rows(data)) and len(labels) == 2:
        return pair_objective(model, tokenizer, (labels[0], labels[1]), data.train, settings)
    return text_objective(model, tokenizer, label_texts(data), settings)


def label_texts(data: ClientData) -> dict[str, str]:
    """Label -> the text that the data describe it by, else the label's own words.

    Raises:
        InvalidConfigError: the descriptions are incomplete or contradict each other.
    """
    try:
        described = described_labels(all_rows(data))
    except LabelTextsError as error:
        raise InvalidConfigError(f"The client's data: {error}") from error
    return described or {label: words_of(label) for label in labels_of(data)}


def words_of(label: str) -> str:
    """`not_entailment` -> `not entailment`."""
    return " ".join(label.replace("_", " ").split()) or label


def are_pairs(examples: Sequence[Example]) -> bool:
    """Whether every question is a pair of texts: exactly two lines that are not blank.

    A first line that all questions have in common is an instruction, so those are single texts.
    """
    lines = [lines_of(example) for example in examples]
    return all(len(found) == 2 for found in lines) and len({found[0] for found in lines}) > 1


def labels_of(data: ClientData) -> list[str]:
    """All answers, each once, in alphabetical order."""
    return sorted({example.answer.strip() for example in all_rows(data)})


def all_rows(data: ClientData) -> tuple[Example, ...]:
    """Of every split."""
    return (*data.train, *data.validation, *data.test)
