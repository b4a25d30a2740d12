"""Distillation of sentence embeddings: a smaller encoder learns to see texts as a larger one does.

Loss per batch, with e and E the embeddings of student and teacher, and cosines between all texts
of the batch: mean (e e' - E E')^2 over pairs, times `PAIRS`, plus 1 - cos(L e, E), where L is a
linear map that is thrown away. The first keeps the geometry that label texts and pair tasks use,
the second the directions.
"""

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker.federated.objectives.encoder import embed, embed_texts, tokenize

PAIRS = 10.0
"""Weight of the cosines between texts: their errors are small in absolute terms."""


def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    max_length: int,
    seed: int,
) -> list[float]:
    """Trains the student in place, all but its embedding tables.

    Args:
        student: BERT-like.
        teacher: frozen.
        tokenizer: of both.
        texts: any number, at least `batch_size`.
        num_steps: of AdamW, with a linear decay to zero.
        batch_size: texts per step.
        learning_rate: peak rate.
        max_length: tokens per text.
        seed: of the batches; equal arguments give equal weights on one CPU thread.

    Returns:
        The loss at each step.
    """
    width, target_width = student.config.hidden_size, teacher.config.hidden_size
    source = torch.Generator().manual_seed(seed)
    reader = torch.randn(target_width, width, generator=source) / width**0.5
    reader.requires_grad_(True)
    student.get_input_embeddings().requires_grad_(False)
    weights = [p for p in student.parameters() if p.requires_grad]
    groups = [{"params": weights, "lr": learning_rate}, {"params": [reader], "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    losses = []
    for chosen in _batches(texts, num_steps, batch_size, seed):
        wanted = embed_texts(teacher, tokenizer, chosen, max_length)
        found = embed(student, tokenize(tokenizer, chosen, max_length))
        pairs = (found @ found.T - wanted @ wanted.T).pow(2).mean()
        directions = functional.cosine_similarity(found @ reader.T, wanted).mean()
        loss = PAIRS * pairs + 1 - directions
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def _batches(
    texts: Sequence[str], num_steps: int, batch_size: int, seed: int
) -> Iterator[list[str]]:
    """Texts of about equal length together, which saves padding."""
    source = Random(seed)  # noqa: S311 - an order, no secret
    ordered = sorted(texts, key=len)
    for _ in range(num_steps):
        first = source.randrange(len(ordered) - batch_size + 1)
        yield ordered[first : first + batch_size]
