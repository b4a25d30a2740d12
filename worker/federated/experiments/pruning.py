"""A narrower copy of a BERT encoder: some coordinates, heads, neurons and layers are kept.

Every kept linear layer is fitted anew by ridge regression, so that it gives from the kept inputs
what the whole layer gave from all of them, as far as these say it. The regressions need one pass of
texts through the whole encoder; distillation (`distillation.py`) then repairs what is left.

| Part | Kept | Chosen by |
|---|---|---|
| coordinates of the hidden states | `width` | variance over the texts, mean over the layers |
| attention heads, of the same size as before | width / head size | variance of what a head adds |
| neurons of the feed-forward part | 4 width | variance of what a neuron adds |
| layers | `layers` | evenly spaced, first and last among them |
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertConfig, BertModel

from worker.federated.errors import InvalidConfigError

RIDGE = 1e-3
"""Penalty of the regressions, in mean variances of their inputs."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one layer of the whole encoder took in and gave, at n tokens, fp32."""

    states: torch.Tensor  # (n, width), the layer's input
    heads: torch.Tensor  # (n, width), heads side by side, before their output projection
    attended: torch.Tensor  # (n, width), after the first norm
    neurons: torch.Tensor  # (n, 4 width), after the activation
    given: torch.Tensor  # (n, width), the layer's output


@dataclass(frozen=True, slots=True)
class Kept:
    """Sorted positions that stay, int64."""

    states: torch.Tensor
    heads: torch.Tensor
    neurons: torch.Tensor


@torch.no_grad()
def watch(model: BertModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> list[Seen]:
    """What every layer does with all tokens of some texts; padding is left out."""
    parts: list[dict[str, list[torch.Tensor]]] = [{} for _ in model.encoder.layer]
    mask = torch.empty(0)

    def keep(number: int, name: str, tensor: torch.Tensor) -> None:
        parts[number].setdefault(name, []).append(tensor[mask])

    def listen(number: int, taken: str, given: str | None) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            keep(number, taken, inputs[0])
            if given is not None:
                keep(number, given, output)

        return hook

    handles = []
    for number, layer in enumerate(model.encoder.layer):
        for path, taken, given in (
            ("attention.self.query", "states", None),
            ("attention.output.dense", "heads", None),
            ("intermediate.dense", "attended", None),
            ("output.dense", "neurons", None),
            ("output.LayerNorm", "sum", "given"),
        ):
            module = layer.get_submodule(path)
            handles.append(module.register_forward_hook(listen(number, taken, given)))
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Seen(**{name: torch.cat(found) for name, found in part.items() if name != "sum"})
        for part in parts
    ]


@torch.no_grad()
def pruned(model: BertModel, seen: list[Seen], *, width: int, num_layers: int) -> BertModel:
    """The narrower encoder, in evaluation mode.

    Args:
        model: the whole encoder.
        seen: from `watch`.
        width: a multiple of the head size, below the whole width.
        num_layers: from 1 to all.

    Raises:
        InvalidConfigError: width or depth does not fit.
    """
    config, size = model.config, model.config.hidden_size // model.config.num_attention_heads
    if width % size or not size <= width < config.hidden_size:
        raise InvalidConfigError(
            f"width is {width}: it must be a multiple of the head size {size} below "
            f"{config.hidden_size}."
        )
    if not 1 <= num_layers <= config.num_hidden_layers:
        raise InvalidConfigError(f"layers is {num_layers}: choose 1 to {config.num_hidden_layers}.")
    changes = {
        "hidden_size": width,
        "num_attention_heads": width // size,
        "intermediate_size": config.intermediate_size * width // config.hidden_size,
        "num_hidden_layers": num_layers,
    }
    small = BertModel(BertConfig(**{**config.to_dict(), **changes}), add_pooling_layer=False)
    states = _largest(torch.stack([s.states.var(dim=0) for s in seen]).mean(dim=0), width)
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = model.embeddings.get_submodule(name).get_parameter("weight")
        small.embeddings.get_submodule(name).get_parameter("weight").copy_(table[:, states])
    _copy_norm(model.embeddings.LayerNorm, small.embeddings.LayerNorm, states)
    depths = torch.linspace(0, len(seen) - 1, num_layers).round().int().tolist()
    for place, depth in enumerate(depths):
        whole, layer = model.encoder.layer[depth], small.encoder.layer[place]
        heads = _heads(whole, seen[depth], width // size, size)
        adds = whole.output.dense.weight.norm(dim=0) * seen[depth].neurons.std(dim=0)
        neurons = _largest(adds, small.config.intermediate_size)
        _fit_layer(whole, layer, seen[depth], Kept(states, heads, neurons))
    small.train(mode=False)
    return small


def _fit_layer(whole: nn.Module, layer: nn.Module, seen: Seen, kept: Kept) -> None:
    for path, given, rows, columns in (
        ("attention.self.query", seen.states, kept.heads, kept.states),
        ("attention.self.key", seen.states, kept.heads, kept.states),
        ("attention.self.value", seen.states, kept.heads, kept.states),
        ("attention.output.dense", seen.heads, kept.states, kept.heads),
        ("intermediate.dense", seen.attended, kept.neurons, kept.states),
        ("output.dense", seen.neurons, kept.states, kept.neurons),
    ):
        linear, small = whole.get_submodule(path), layer.get_submodule(path)
        weight, bias = linear.get_parameter("weight")[rows], linear.get_parameter("bias")[rows]
        target = nn.functional.linear(given, weight, bias)
        fitted, offset = ridge_fit(given[:, columns], target)
        small.get_parameter("weight").copy_(fitted)
        small.get_parameter("bias").copy_(offset)
    for path in ("attention.output.LayerNorm", "output.LayerNorm"):
        _copy_norm(whole.get_submodule(path), layer.get_submodule(path), kept.states)


def ridge_fit(given: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (out, in) and bias (out,) that predict `target` (n, out) from `given` (n, in)."""
    mean, centre = given.mean(dim=0), target.mean(dim=0)
    centred = (given - mean).double()
    covariance = centred.T @ centred
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean())
    weight = torch.linalg.solve(covariance, centred.T @ (target - centre).double()).T.float()
    return weight, centre - weight @ mean


def _heads(layer: nn.Module, seen: Seen, count: int, size: int) -> torch.Tensor:
    """Positions of the heads that add most, each with all of its `size` positions."""
    weight = layer.get_submodule("attention.output.dense").get_parameter("weight")
    adds = (weight.norm(dim=0) * seen.heads.std(dim=0)).pow(2).view(-1, size).sum(dim=1)
    return (_largest(adds, count)[:, None] * size + torch.arange(size)).flatten()


def _copy_norm(whole: nn.Module, small: nn.Module, kept: torch.Tensor) -> None:
    for name in ("weight", "bias"):
        small.get_parameter(name).copy_(whole.get_parameter(name)[kept])


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    return values.topk(count).indices.sort().values
