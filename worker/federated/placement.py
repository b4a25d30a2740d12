"""How the frozen weights of a base model lie in memory: their precision, and on which GPUs.

Everything that only a GPU can do is here, in a few lines, and is tested in `tests/gpu`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig

from worker.federated.errors import InvalidConfigError


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's weights go, and as what.

    Attributes:
        device: where to, or where the first part of a model on several GPUs goes.
        dtype: of the weights, and of the computation with 4-bit weights.
        quantization: `nf4` stores the weights of linear layers in 4 bits.
        device_map: `auto` spreads the layers over all GPUs; with one device it changes nothing.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: Literal["none", "nf4"] = "none"
    device_map: Literal["none", "auto"] = "none"

    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`.

        Raises:
            InvalidConfigError: the machine or its packages cannot do what is asked.
        """
        options: dict[str, Any] = {"dtype": self.dtype}
        if self._is_spread():
            _require("accelerate", "device_map 'auto'")
            options["device_map"] = "auto"
        if self.quantization == "nf4":
            if self.device.type != "cuda":
                raise InvalidConfigError(
                    f"quantization is 'nf4' but training runs on {self.device.type!r}: 4-bit "
                    "weights need an NVIDIA GPU. Set quantization to 'none'."
                )
            _require("bitsandbytes", "quantization 'nf4'")
            _require("accelerate", "quantization 'nf4'")
            options.setdefault("device_map", {"": self.device})
            options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=self.dtype,
                bnb_4bit_use_double_quant=True,
            )
        return options

    def _is_spread(self) -> bool:
        several = self.device.type == "cuda" and torch.cuda.device_count() > 1
        return self.device_map == "auto" and several


def _require(package: str, purpose: str) -> None:
    if find_spec(package) is None:
        raise InvalidConfigError(f"{purpose} needs the package {package!r}: pip install {package}.")
