"""Makes the built-in models from nothing: `python -m worker.builtin_models.build [name ...]`.

Seeded and single-threaded, so the same versions of the libraries on the same processor give the
same bytes.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from backend.contracts.base_models import BuiltinModelName
from worker.builtin_models.corpus import Text, texts, vocabulary_texts

FOLDER = Path(__file__).parent
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
TOKENIZER_TEXTS = 20_000
HELD_OUT_TEXTS = 1_000
MAX_POSITIONS = 512
BATCH_TEXTS = 24
BATCHES_PER_POOL = 32
CONTEXT_WEIGHT = 0.2
WARMUP_STEPS = 50
MATRIX_LEARNING_RATE = 1e-2
OTHER_LEARNING_RATE = 2e-3
INITIALIZER_RANGE = 0.06  # the usual 0.02 is for widths in the thousands


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts padded on the right; each tensor is int64 of shape `(texts, longest)`."""

    ids: torch.Tensor
    mask: torch.Tensor  # 1 on real tokens
    concluding: torch.Tensor  # 1 on tokens of conclusions, end tokens included


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one model is made of and how long it is trained."""

    new_model: Callable[..., PreTrainedModel]
    new_config: Callable[..., PreTrainedConfig]
    shape: dict[str, int]
    vocab_size: int
    seed: int
    steps: int


RECIPES: dict[BuiltinModelName, Recipe] = {
    BuiltinModelName.TINY_LLAMA: Recipe(
        LlamaForCausalLM,
        LlamaConfig,
        {
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        vocab_size=832,
        seed=1,
        steps=3500,
    ),
    BuiltinModelName.TINY_GEMMA: Recipe(
        GemmaForCausalLM,
        GemmaConfig,
        {
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
        },
        vocab_size=768,
        seed=2,
        steps=3500,
    ),
    BuiltinModelName.TINY_QWEN2: Recipe(
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "hidden_size": 112,
            "intermediate_size": 304,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        vocab_size=896,
        seed=3,
        steps=3500,
    ),
}


def build(name: BuiltinModelName, folder: Path) -> float:
    """Trains one model into `folder`; gives its held-out loss in nats per concluding token."""
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    corpus = texts(recipe.seed)
    held_out = list(islice(corpus, HELD_OUT_TEXTS))
    tokenizer = _train_tokenizer(
        list(islice(vocabulary_texts(recipe.seed), TOKENIZER_TEXTS)), recipe.vocab_size
    )
    model = _new_model(recipe, tokenizer)
    _train(model, _batches(tokenizer, corpus), recipe)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _held_out_loss(model, tokenizer, held_out)


def _train_tokenizer(corpus: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    # Words keep the space before them; digits and spaces before digits are tokens of their own.
    pieces = Regex(r"\p{N}| ?\p{L}+|[^\s\p{L}\p{N}]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        # Never needed with bytes, but a family's own tokenizer class would else add one.
        unk_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = recipe.new_config(
        vocab_size=recipe.vocab_size,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **recipe.shape,
    )
    return recipe.new_model(config)


def _train(model: PreTrainedModel, batches: Iterator[Batch], recipe: Recipe) -> None:
    optimizers = _optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, recipe.steps))
        for optimizer in optimizers
    ]
    model.train()
    for step, batch in enumerate(islice(batches, recipe.steps)):
        loss = _weighted_loss(model, batch, CONTEXT_WEIGHT)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        if step % 500 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.train(False)


def _optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers: it learns copying in half the steps of AdamW."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name
        (matrices if inner else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _weighted_loss(model: PreTrainedModel, batch: Batch, context_weight: float) -> torch.Tensor:
    """Mean cross-entropy; a token of a context weighs `context_weight`, of a conclusion 1."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.ids[:, 1:], reduction="none"
    )
    weights = (batch.concluding + context_weight * (batch.mask - batch.concluding))[:, 1:]
    return (losses * weights).sum() / weights.sum()


def _batches(tokenizer: PreTrainedTokenizerFast, corpus: Iterator[Text]) -> Iterator[Batch]:
    """Batches of texts of similar length, so that little is padded."""
    while True:
        pool = _encode(tokenizer, list(islice(corpus, BATCH_TEXTS * BATCHES_PER_POOL)))
        pool.sort(key=lambda row: len(row[0]) + len(row[1]))
        for position in torch.randperm(BATCHES_PER_POOL).tolist():
            rows = pool[position * BATCH_TEXTS : (position + 1) * BATCH_TEXTS]
            yield _collate(rows, tokenizer.pad_token_id)


def _encode(
    tokenizer: PreTrainedTokenizerFast, corpus: list[Text]
) -> list[tuple[list[int], list[int]]]:
    """Ids of each context, start token first, and of each conclusion, end token last."""
    contexts = tokenizer([text.context for text in corpus])["input_ids"]
    conclusions = tokenizer([text.conclusion for text in corpus], add_special_tokens=False)
    return [
        (context, [*conclusion, tokenizer.eos_token_id])
        for context, conclusion in zip(contexts, conclusions["input_ids"], strict=True)
    ]


def _collate(rows: list[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    longest = max(len(context) + len(conclusion) for context, conclusion in rows)

    def filled(row: list[int], filler: int) -> list[int]:
        return row + [filler] * (longest - len(row))

    return Batch(
        ids=torch.tensor([filled(a + b, pad_id) for a, b in rows]),
        mask=torch.tensor([filled([1] * len(a + b), 0) for a, b in rows]),
        concluding=torch.tensor([filled([0] * len(a) + [1] * len(b), 0) for a, b in rows]),
    )


def _held_out_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, corpus: list[Text]
) -> float:
    total, count = 0.0, 0
    rows = _encode(tokenizer, corpus)
    with torch.no_grad():
        for first in range(0, len(rows), BATCH_TEXTS):
            batch = _collate(rows[first : first + BATCH_TEXTS], tokenizer.pad_token_id)
            predicted = int(batch.concluding.sum())
            total += _weighted_loss(model, batch, context_weight=0.0).item() * predicted
            count += predicted
    return total / count


def main() -> None:
    """Builds the named models, or all, beside this file, and prints their held-out losses."""
    torch.set_num_threads(1)
    names = [BuiltinModelName(word) for word in sys.argv[1:]] or list(RECIPES)
    losses = {name.value: round(build(name, FOLDER / name), 4) for name in names}
    print(json.dumps({"held_out_nats_per_token": losses}, indent=2))


if __name__ == "__main__":
    main()
