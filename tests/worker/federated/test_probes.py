"""Probe texts as units that different tokenizers agree on."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.worker.federated.tiny import make_tokenizer
from worker.federated.errors import ProbeTextError
from worker.federated.probes import probe_batches

TEXTS = ["the film was good .", "a sad story", "the happy film was bad ."]


def letters() -> PreTrainedTokenizerFast:
    """One token per character."""
    alphabet = {c: i for i, c in enumerate(["<pad>", "<unk>", *sorted(set("".join(TEXTS)))])}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def test_a_text_is_the_mean_of_its_own_tokens() -> None:
    (batch,) = probe_batches(make_tokenizer(), TEXTS, "text", max_length=16)
    mask = batch.inputs["attention_mask"]
    assert mask.sum(dim=1).tolist() == [5, 3, 6]
    values = torch.arange(mask.numel(), dtype=torch.float32)
    rows = zip(values.view_as(mask), mask.bool(), strict=True)
    expected = [row[kept].mean() for row, kept in rows]
    assert torch.allclose(batch.pooling @ values, torch.stack(expected))


def test_words_are_the_same_units_for_every_tokenizer() -> None:
    by_word = list(probe_batches(make_tokenizer(), TEXTS, "word", max_length=32, batch_size=2))
    by_letter = list(probe_batches(letters(), TEXTS, "word", max_length=32, batch_size=2))
    for words, characters in zip(by_word, by_letter, strict=True):
        assert len(words.pooling) == len(characters.pooling)
    # The unit of a word is its last token: the letter that ends it.
    tokenizer = letters()
    ends = by_letter[0].pooling.argmax(dim=1)
    found = tokenizer.convert_ids_to_tokens(by_letter[0].inputs["input_ids"].flatten()[ends])
    assert found == ["e", "m", "s", "d", ".", "a", "d", "y"]


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ProbeTextError, match=r"has 6 tokens .* and 5 are the most"):
        list(probe_batches(make_tokenizer(), TEXTS, "text", max_length=5))
