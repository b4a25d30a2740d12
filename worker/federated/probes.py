"""Public probe texts in a model's own tokens, pooled to units that all models have in common.

Tokenizers cut texts differently, so activations of different models are compared per whole text or
per word: a word's unit is its last token, where a causal model has read all of it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from worker.federated.errors import ProbeTextError

ProbeUnit = Literal["text", "word"]

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class ProbeBatch:
    """What a model reads at once, and which of its tokens make up each unit."""

    inputs: Mapping[str, torch.Tensor]  # of the model's forward, such as `input_ids`
    pooling: torch.Tensor  # (units, batch * length) fp32, rows sum to 1


def pack_texts(texts: Sequence[str]) -> torch.Tensor:
    """Probe texts as a tensor, so that they travel with a plan and count as what they weigh.

    Returns:
        uint8 (bytes,): a JSON list in UTF-8.
    """
    text = json.dumps(list(texts), ensure_ascii=False, separators=(",", ":"))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def unpack_texts(packed: torch.Tensor) -> list[str]:
    """Inverse of `pack_texts`."""
    texts: list[str] = json.loads(bytes(packed.tolist()))
    return texts


def probe_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    unit: ProbeUnit,
    *,
    max_length: int,
    batch_size: int = 32,
) -> Iterator[ProbeBatch]:
    """The probes for one model; unit number u is the same text or word for every tokenizer.

    Args:
        tokenizer: of the model, a fast one, since words are found by character positions.
        texts: public texts, in an order that all clients share.
        unit: `text` takes the mean over all tokens, `word` one unit per word and punctuation mark.
        max_length: most tokens per text.
        batch_size: texts per forward pass.

    Raises:
        ProbeTextError: a text does not fit, so that its units would differ between models.
    """
    for first in range(0, len(texts), batch_size):
        chosen = list(texts[first : first + batch_size])
        encoded = tokenizer(chosen, padding=True, padding_side="right", return_tensors="pt")
        mask = encoded["attention_mask"]
        lengths = mask.sum(dim=1)
        longest = int(lengths.argmax())
        if lengths[longest] > max_length:
            raise ProbeTextError(
                f"The probe text {chosen[longest][:60]!r} has {int(lengths[longest])} tokens for "
                f"the tokenizer of this model, and {max_length} are the most: upload a probe set "
                "with shorter texts, then make a new run."
            )
        if unit == "text":
            rows = torch.zeros(len(chosen), len(chosen), mask.shape[1])
            places = torch.arange(len(chosen))
            rows[places, places] = mask / mask.sum(dim=1, keepdim=True)
            rows = rows.flatten(1)
        else:
            tokens = [
                number * mask.shape[1] + encoded.char_to_token(number, word.end() - 1)
                for number, text in enumerate(chosen)
                for word in _WORD.finditer(text)
            ]
            rows = torch.zeros(len(tokens), mask.numel())
            rows[torch.arange(len(tokens)), torch.tensor(tokens)] = 1.0
        inputs = {"input_ids": encoded["input_ids"], "attention_mask": mask}
        yield ProbeBatch(inputs, rows)
