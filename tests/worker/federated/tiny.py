"""Tiny random models of every family and a tiny vocabulary, for tests of the core."""

import random
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from worker.federated.simulation import SimulatedClient
from worker.federated.types import ClientData

VOCABULARY_SIZE = 64
IMAGE_FAMILIES = ("vit", "deit")

_TOKENS = {
    "vocab_size": VOCABULARY_SIZE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", ".", ",", ":", "?"),
    *("the", "film", "was", "good", "bad", "a", "happy", "sad", "story"),
    *("yes", "no", "Question", "Answer", "Text", "Label", "Options"),
]


def _gated(layers: int, width: int) -> dict[str, int]:
    return {
        **_TOKENS,
        "hidden_size": width,
        "intermediate_size": width + 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": 64,
    }


def _plain(layers: int, width: int) -> dict[str, int]:
    skip = {"num_key_value_heads", "head_dim"}
    return {name: value for name, value in _gated(layers, width).items() if name not in skip}


def _encoder(layers: int, width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": width + 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }


_TEXT = {"vocab_size": VOCABULARY_SIZE, "max_position_embeddings": 64}
_IMAGE = {"image_size": 16, "patch_size": 8}

MODELS: dict[str, Callable[[int, int], PreTrainedModel]] = {
    "llama": lambda n, w: LlamaForCausalLM(LlamaConfig(**_gated(n, w))),
    "mistral": lambda n, w: MistralForCausalLM(MistralConfig(**_gated(n, w))),
    "qwen2": lambda n, w: Qwen2ForCausalLM(Qwen2Config(**_gated(n, w))),
    "qwen3": lambda n, w: Qwen3ForCausalLM(Qwen3Config(**_gated(n, w))),
    "gemma": lambda n, w: GemmaForCausalLM(GemmaConfig(**_gated(n, w))),
    "gemma2": lambda n, w: Gemma2ForCausalLM(Gemma2Config(**_gated(n, w))),
    "gemma3_text": lambda n, w: Gemma3ForCausalLM(Gemma3TextConfig(**_gated(n, w))),
    "phi3": lambda n, w: Phi3ForCausalLM(Phi3Config(**_plain(n, w), num_key_value_heads=2)),
    "gpt2": lambda n, w: GPT2LMHeadModel(
        GPT2Config(**_TOKENS, n_embd=w, n_layer=n, n_head=4, n_positions=64)
    ),
    "gpt_neox": lambda n, w: GPTNeoXForCausalLM(GPTNeoXConfig(**_plain(n, w))),
    "opt": lambda n, w: OPTForCausalLM(
        OPTConfig(
            **_TOKENS,
            hidden_size=w,
            ffn_dim=w + 16,
            num_hidden_layers=n,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=w,
        )
    ),
    "bert": lambda n, w: BertForSequenceClassification(BertConfig(**_TEXT, **_encoder(n, w))),
    "roberta": lambda n, w: RobertaForSequenceClassification(
        RobertaConfig(**_TEXT, **_encoder(n, w))
    ),
    "distilbert": lambda n, w: DistilBertForSequenceClassification(
        DistilBertConfig(**_TEXT, dim=w, hidden_dim=w + 16, n_layers=n, n_heads=4)
    ),
    "vit": lambda n, w: ViTForImageClassification(ViTConfig(**_IMAGE, **_encoder(n, w))),
    "deit": lambda n, w: DeiTForImageClassification(DeiTConfig(**_IMAGE, **_encoder(n, w))),
}


def make_model(
    family: str, *, num_layers: int = 2, width: int = 32, seed: int = 0
) -> PreTrainedModel:
    """A random model in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[family](num_layers, width).eval()


def make_inputs(family: str, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two inputs that fit a family."""
    source = torch.Generator().manual_seed(seed)
    if family in IMAGE_FAMILIES:
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=source)}
    return {"input_ids": torch.randint(3, VOCABULARY_SIZE, (2, 7), generator=source)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of a tiny vocabulary."""
    vocabulary = {word: number for number, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def make_data(*, num_train: int = 16, seed: int = 0) -> ClientData:
    """Films that are good or bad, told by one word of the question."""
    draw = random.Random(seed)

    def rows(split: str, count: int) -> tuple[Example, ...]:
        goods = [draw.random() < 0.5 for _ in range(count)]
        return tuple(
            Example(
                question=f"the film was {'good' if good else 'bad'} a {mood} story",
                answer="yes" if good else "no",
                split=split,
            )
            for good in goods
            for mood in [draw.choice(["happy", "sad"])]
        )

    return ClientData(
        TaskKind.CLASSIFICATION, rows("train", num_train), rows("validation", 4), rows("test", 8)
    )


def make_client(
    client_id: str = "a",
    family: str = "llama",
    *,
    num_layers: int = 2,
    width: int = 32,
    rank: int = 4,
    num_train: int = 16,
    seed: int = 0,
) -> SimulatedClient:
    """A participant with its own random model and data."""
    return SimulatedClient(
        client_id=client_id,
        model=make_model(family, num_layers=num_layers, width=width, seed=seed),
        tokenizer=make_tokenizer(),
        data=make_data(num_train=num_train, seed=seed),
        lora_rank=rank,
        lora_alpha=2.0 * rank,
    )
