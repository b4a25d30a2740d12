"""How a data set describes its labels: one sentence each, such as "This movie is wonderful".

A row may carry one in `label_text`; one row of each label is enough. So the description travels
with the rows, in every format and to whoever trains with them. Text encoders start from it.
"""

from collections.abc import Sequence

from backend.contracts.datasets import Example


class LabelTextsError(ValueError):
    """The descriptions contradict each other or are incomplete; the text names the remedy."""

    def __init__(self, problem: str, *, index: int | None = None) -> None:
        super().__init__(problem)
        self.index = index  # of the example at fault, if it is a single one


def described_labels(examples: Sequence[Example]) -> dict[str, str]:
    """Label -> the text that describes it, in alphabetical order; empty where no row has one.

    Args:
        examples: all rows of a classification, of every split.

    Raises:
        LabelTextsError: rows of one label describe it differently, two labels have one text, or
            some labels have a text and others have none.
    """
    texts: dict[str, str] = {}
    for index, example in enumerate(examples):
        if example.label_text is None:
            continue
        label, text = example.answer.strip(), example.label_text.strip()
        known = texts.setdefault(label, text)
        if known != text:
            raise LabelTextsError(
                f"field `label_text` is {text[:60]!r}, but an earlier row describes the label "
                f"{label[:60]!r} by {known[:60]!r}. Give one text for each label.",
                index=index,
            )
    for label in sorted({example.answer.strip() for example in examples}):
        if texts and label not in texts:
            raise LabelTextsError(
                f"field `label_text` describes {', '.join(sorted(texts))[:80]}, but no row "
                f"describes the label {label[:60]!r}. Describe every label, or none."
            )
    _require_different(texts)
    return dict(sorted(texts.items()))


def _require_different(texts: dict[str, str]) -> None:
    first: dict[str, str] = {}
    for label, text in texts.items():
        other = first.setdefault(text, label)
        if other != label:
            raise LabelTextsError(
                f"field `label_text` is {text[:60]!r} for both {other[:60]!r} and {label[:60]!r}: "
                "the labels would look alike. Describe them differently."
            )
