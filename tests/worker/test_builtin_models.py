import dataclasses
import re
from itertools import islice

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from backend.contracts.base_models import IMAGE_MODELS, BaseModelRef, BuiltinModelName
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from worker.builtin_models import build as building
from worker.builtin_models.corpus import KNOWN_EVENTS, UNKNOWN_CUES, texts
from worker.federated.base_models import (
    builtin_model_folder,
    inspect_base_model,
    load_base_model,
)
from worker.federated.tasks.encoding import encode_examples, pad_left
from worker.federated.tasks.feelings import EVENTS
from worker.federated.tasks.generators import generate
from worker.federated.tasks.prompts import build_prompt
from worker.federated.tasks.stories import NAMES

CPU = torch.device("cpu")
TEXT_MODELS = [name for name in BuiltinModelName if name not in IMAGE_MODELS]
TEXT_TASKS = [name for name in BuiltinTaskName if name != BuiltinTaskName.HANDWRITTEN_DIGITS]
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def load(name):
    ref = BaseModelRef(source="builtin", id=name)
    return load_base_model(ref, device=CPU, dtype=torch.float32)


def named_alike(text):
    numbered = {}
    for word in re.findall(r"\w+", text):
        if word in NAMES:
            numbered.setdefault(word, f"NAME{len(numbered)}")
    return re.sub(r"\w+", lambda found: numbered.get(found.group(), found.group()), text)


def greedy(model, tokenizer, texts, num_tokens):
    rows = tokenizer(texts)["input_ids"]
    ids, mask = pad_left(rows, tokenizer.pad_token_id, CPU)
    output = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False
    )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


def test_all_files_are_there_and_small():
    sizes = {}
    for name in TEXT_MODELS:
        folder = builtin_model_folder(name)
        assert {path.name for path in folder.iterdir()} == FILES
        sizes[name] = sum(path.stat().st_size for path in folder.iterdir())
    assert sum(sizes.values()) < 12_000_000


def test_models_differ_in_family_depth_width_and_vocabulary():
    architectures = [
        inspect_base_model(BaseModelRef(source="builtin", id=name))[0] for name in TEXT_MODELS
    ]
    vocabularies = [len(load(name)[1]) for name in TEXT_MODELS]
    for values in (
        [a.family for a in architectures],
        [a.num_layers for a in architectures],
        [a.hidden_size for a in architectures],
        vocabularies,
    ):
        assert len(set(values)) == len(TEXT_MODELS)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_tokenizer_splits_digits_and_reads_any_text(name):
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder(name))
    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]
    for text in ("Tom has 12 apples.\nAnswer:\n7", "Ünïcode 数 🙂 \t x", " answer = 12 - 5"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text
    specials = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(specials) == 3


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_tokenizer_loads_as_it_was_trained_and_fits_the_model(name):
    # Some families bring a tokenizer class of their own, which may split or add tokens otherwise.
    loaded = AutoTokenizer.from_pretrained(builtin_model_folder(name))
    stored = PreTrainedTokenizerFast.from_pretrained(builtin_model_folder(name))
    assert loaded.get_vocab() == stored.get_vocab()
    for task in TEXT_TASKS:
        rows = generate(BuiltinDataset(task=task))
        prompts = [build_prompt(BUILTIN_TASK_KINDS[task], row) for row in rows]
        assert loaded(prompts)["input_ids"] == stored(prompts)["input_ids"]


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_pretrained_models_know_number_facts(name):
    model, tokenizer = load(name)
    facts = {f"{a} + {b} =": a + b for a in range(2, 13) for b in range(1, 9)}
    facts |= {f"{a} - {b} =": a - b for a in range(2, 19) for b in range(1, min(8, a) + 1)}
    answers = greedy(model, tokenizer, list(facts), 4)
    right = [answer.strip() == str(v) for answer, v in zip(answers, facts.values(), strict=True)]
    # Twenty-one possible results: guessing gives 5 to 10 %.
    assert sum(right) / len(right) > 0.6


def test_corpus_holds_no_prompt_of_a_task():
    corpus = "\n\n".join(map(str, islice(texts(1), 20_000)))
    for task in TEXT_TASKS:
        for row in generate(BuiltinDataset(task=task)):
            assert row.question not in corpus
    for marker in ("Answer:\n", "Letter:\n", "Program:\n", "Label:\n", "How many apples does Tom"):
        assert f"{marker}" not in corpus.replace("Text: How many", "Text: how many")


def test_corpus_shares_no_problem_with_any_test_row():
    corpus = "\n".join(named_alike(str(text)) for text in islice(texts(2), 20_000))
    for task in TEXT_TASKS:
        for row in generate(BuiltinDataset(task=task, seed=7, num_test=300)):
            if row.split == "test":
                story = named_alike(row.question).split(" How many")[0]
                assert story not in corpus


def test_corpus_computes_no_outcome_of_the_cues_left_for_fine_tuning():
    verbs = re.compile(rf"\b({'|'.join(sorted(UNKNOWN_CUES))})\b \w* ?\d+\. ")
    events = [event for group in EVENTS.values() for event in group if event not in KNOWN_EVENTS]
    told = 0
    for text in islice(texts(3), 20_000):
        if text.conclusion and verbs.search(text.context):
            assert "Question:" in text.context
            told += 1
        if "felt" in text.conclusion:
            assert not any(f" {event} at " in text.context for event in events)
    assert told > 10


def test_the_same_seed_gives_the_same_corpus():
    assert list(islice(texts(4), 200)) == list(islice(texts(4), 200))
    assert list(islice(texts(4), 200)) != list(islice(texts(5), 200))


def test_building_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    name = BuiltinModelName.TINY_LLAMA
    short = dataclasses.replace(building.RECIPES[name], steps=3)
    monkeypatch.setitem(building.RECIPES, name, short)
    monkeypatch.setattr(building, "TOKENIZER_TEXTS", 500)
    monkeypatch.setattr(building, "HELD_OUT_TEXTS", 20)
    losses = [building.build(name, tmp_path / part) for part in ("one", "two")]
    assert losses[0] == losses[1]
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_training_weighs_conclusions_more_than_contexts():
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder(BuiltinModelName.TINY_LLAMA))
    model = building._new_model(building.RECIPES[BuiltinModelName.TINY_LLAMA], tokenizer)
    rows = [([1, 5, 6], [7, 2]), ([1, 8], [2])]
    batch = building._collate(rows, tokenizer.pad_token_id)
    total = weight = 0.0
    for context, conclusion in rows:
        ids = torch.tensor([context + conclusion])
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        for position, token in enumerate(ids[0, 1:].tolist()):
            share = 1.0 if position + 1 >= len(context) else 0.25
            total -= share * log_probs[position, token].item()
            weight += share
    found = building._weighted_loss(model, batch, 0.25).item()
    assert found == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_prompts_and_answers_of_the_built_in_tasks_are_short(name):
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder(name))
    for task in TEXT_TASKS:
        rows = generate(BuiltinDataset(task=task, num_train=200))
        encoded = encode_examples(tokenizer, BUILTIN_TASK_KINDS[task], rows, 256)
        assert max(len(row.input_ids) for row in encoded) <= 96
