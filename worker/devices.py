"""Which device trains, and how many cores one training process may take."""

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
