import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.tasks.encoding import (
    IGNORED_LABEL,
    EncodedExample,
    batches_by_length,
    collate,
    encode_examples,
    encode_prompts,
    pad_left,
    padding_id,
    sequence_start,
)
from worker.federated.tasks.prompts import build_prompt

CHARACTERS = ["<s>", "</s>", *map(chr, range(32, 127)), "\n"]
VOCABULARY = {character: number for number, character in enumerate(CHARACTERS)}


def character_tokenizer(*, start: bool = True, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos)


def example(question="1 + 1?", answer="2", **more):
    return Example(question=question, answer=answer, split="train", **more)


def text(ids):
    return "".join(CHARACTERS[number] for number in ids)


def test_prompt_is_ignored_and_answer_and_end_are_learnt():
    (encoded,) = encode_examples(character_tokenizer(), TaskKind.FILL_IN, [example()], 64)
    assert text(encoded.input_ids) == "<s>Question: 1 + 1?\nAnswer:\n2</s>"
    assert encoded.labels[:-2] == (IGNORED_LABEL,) * (len(encoded.input_ids) - 2)
    assert encoded.labels[-2:] == (VOCABULARY["2"], VOCABULARY["</s>"])


def test_start_token_is_used_only_where_the_tokenizer_does_so():
    assert sequence_start(character_tokenizer()) == [0]
    assert sequence_start(character_tokenizer(start=False)) == []
    (encoded,) = encode_examples(
        character_tokenizer(start=False), TaskKind.FILL_IN, [example()], 64
    )
    assert text(encoded.input_ids).startswith("Question")


def test_long_prompt_loses_its_beginning_but_never_its_answer():
    (encoded,) = encode_examples(
        character_tokenizer(), TaskKind.FILL_IN, [example(answer="123")], 12
    )
    assert text(encoded.input_ids) == "<s>nswer:\n123</s>"
    assert len(encoded.input_ids) == 12
    (prompt,) = encode_prompts(character_tokenizer(), TaskKind.FILL_IN, [example()], 12)
    assert text(prompt) == "<s>1?\nAnswer:\n"


def test_evaluation_prompt_is_the_training_prompt():
    rows = [example(), example("Which?", "B", options=["3", "4"])]
    for task in set(TaskKind) - {TaskKind.IMAGE_CLASSIFICATION}:  # pictures have no prompt
        trained = encode_examples(character_tokenizer(), task, rows, 99)
        asked = encode_prompts(character_tokenizer(), task, rows, 99)
        for whole, prompt in zip(trained, asked, strict=True):
            assert list(whole.input_ids[: len(prompt)]) == prompt
            assert set(whole.labels[: len(prompt)]) == {IGNORED_LABEL}


def test_example_with_nothing_to_learn_is_named():
    rows = [example(), example("second", "x" * 30)]
    with pytest.raises(InvalidConfigError, match=r"Example 2 \('second'\).*30 tokens.*at least 13"):
        encode_examples(character_tokenizer(), TaskKind.FILL_IN, rows, 20)
    assert encode_examples(character_tokenizer(), TaskKind.FILL_IN, rows, 33)
    with pytest.raises(InvalidConfigError, match=r"Example 1 .*gives no token"):
        encode_examples(character_tokenizer(), TaskKind.FILL_IN, [example(answer=" ")], 20)


def test_tokenizer_without_end_token_is_refused():
    with pytest.raises(UnsupportedModelError, match="eos_token"):
        encode_examples(character_tokenizer(eos=None), TaskKind.FILL_IN, [example()], 64)


def test_end_token_pads_where_there_is_no_padding_token():
    assert padding_id(character_tokenizer()) == VOCABULARY["</s>"]


def test_collate_pads_on_the_right():
    batch = collate(
        [EncodedExample((5, 6, 7), (IGNORED_LABEL, 6, 7)), EncodedExample((8,), (8,))], pad_id=9
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_pad_left_ends_every_row_at_the_last_column():
    ids, mask = pad_left([[5, 6, 7], [8]], 9, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_batches_cover_every_row_once_from_short_to_long():
    rows = [[0] * length for length in (3, 1, 2, 5, 4)]
    assert list(batches_by_length(rows, 2)) == [[1, 2], [0, 4], [3]]


def test_options_are_listed_unless_the_question_lists_them():
    row = example("Which?", "B", options=["3", "4"])
    assert build_prompt(TaskKind.CHOICE, row) == "Question: Which?\n(A) 3 (B) 4\nLetter:\n"
    listed = example("Which? (A) 3 (B) 4", "B", options=["3", "4"])
    assert build_prompt(TaskKind.CHOICE, listed) == "Question: Which? (A) 3 (B) 4\nLetter:\n"
