"""Which device trains, and how many cores one training process may take."""

from typing import Literal

import torch


def configure_torch(num_threads: int) -> None:
    """Settings of a process that trains.

    Two workers that each take all cores slow each other down several times, and so do denormal
    numbers on CPUs: both are switched off here.

    Args:
        num_threads: cores for this process, 1 or more.
    """
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)


def training_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weights_dtype(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype:
    """The type of the frozen base weights: bf16 where asked for, or where a GPU is good at it."""
    if precision == "auto":
        good_at_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if good_at_bf16 else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32
