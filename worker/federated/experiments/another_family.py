"""`python -m worker.federated.experiments.another_family --data-dir DIR --out FOLDER [...]`.

Makes a text encoder of another family: a Llama body (causal, RMSNorm, rotary positions, gated MLP)
that learns from nothing to see texts as the packaged encoder does, by distillation on the texts of
the training files; test rows are not read. Its word vectors are the principal components of the
packaged encoder's, so that it need not learn the vocabulary from a few thousand texts; all its
layers start at random, and no weight of them comes from anywhere else. Experiments name the folder
as `path` of a member.
"""

import logging

import torch
from transformers import LlamaConfig, LlamaModel, PreTrainedModel, PreTrainedTokenizerBase

from worker.federated.encoders import load_encoder
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.distillation import distill
from worker.federated.experiments.narrow import (
    NUM_COMPARED,
    WHOLE_DEPTH,
    likeness,
    prepared_texts,
    student_parser,
)
from worker.federated.objectives.encoder import embed_texts

_LOGGER = logging.getLogger("worker.federated.experiments.another_family")

BATCH = 48
HEAD_SIZE = 32
WORD_DEVIATION = 0.5
"""Of the entries of word vectors; RMSNorm takes any scale, residuals start beside it."""


def main() -> None:
    """Writes `config.json`, `model.safetensors` and the tokenizer."""
    parser = student_parser("Makes an encoder of another family.")
    parser.set_defaults(
        width=192, layers=5, steps=1200, learning_rate=1.5e-3, max_length=48, seed=1
    )
    options = parser.parse_args()
    texts = prepared_texts(options)
    held_out, rest = texts[:NUM_COMPARED], texts[NUM_COMPARED:]
    teacher, tokenizer = load_encoder(WHOLE_DEPTH, dtype=torch.bfloat16)
    student = new_student(
        teacher, tokenizer, width=options.width, num_layers=options.layers, seed=options.seed
    )
    losses = distill(
        student,
        teacher,
        tokenizer,
        rest,
        num_steps=options.steps,
        batch_size=BATCH,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        seed=options.seed,
    )
    agreement = likeness(
        embed_texts(student, tokenizer, held_out, options.max_length),
        embed_texts(teacher, tokenizer, held_out, options.max_length),
    )
    _LOGGER.info("loss %.4f at first, %.4f at last", losses[0], losses[-1])
    _LOGGER.info("correlation of cosines with the packaged encoder %.3f", agreement)
    student.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


def new_student(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    width: int,
    num_layers: int,
    seed: int,
) -> LlamaModel:
    """A Llama body with random layers and the teacher's word vectors, reduced to its width.

    Args:
        teacher: gives the word vectors.
        tokenizer: of both.
        width: a multiple of `HEAD_SIZE`, at most the teacher's.
        num_layers: at least 1.
        seed: of the layers.

    Raises:
        InvalidConfigError: the width does not fit.
    """
    table = _word_vectors(teacher).detach().float()
    if width % HEAD_SIZE or not 0 < width <= table.shape[1]:
        raise InvalidConfigError(
            f"width is {width}: choose a multiple of {HEAD_SIZE}, at most {table.shape[1]}."
        )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(table),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=width // HEAD_SIZE,
        num_key_value_heads=width // HEAD_SIZE,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    student = LlamaModel(config)
    centred = table - table.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
    words = centred @ directions.T
    with torch.no_grad():
        _word_vectors(student).copy_(words * (WORD_DEVIATION / words.std()))
    student.train(mode=False)
    return student


def _word_vectors(model: PreTrainedModel) -> torch.Tensor:
    weight: torch.Tensor = model.get_input_embeddings().get_parameter("weight")
    return weight


if __name__ == "__main__":
    main()
