"""Pictures as task data: folders `<split>/<label>/<file>`, and scikit-learn's handwritten digits.

An example's question names its picture (`train/cat/17.png`, `digits/17`) and its answer is the
label; pixels are read when they are needed and never become part of an example.
"""

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import IO, Any

import torch

from backend.contracts.datasets import SPLITS, Example, Split
from backend.contracts.enums import TaskKind
from backend.contracts.image_archive import SUFFIXES
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.objective import Batch
from worker.federated.tasks.optional import optional_module
from worker.federated.tasks.partition import split_of
from worker.federated.types import ClientData

Pictures = Path | zipfile.Path
"""A folder of pictures, on disk or in an archive."""

DIGITS = "digits/"
_DIGIT_MAXIMUM = 16  # grey values of scikit-learn's digits go from 0 to 16


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a model wants its pictures: squares of RGB values, scaled to [0, 1], then normalised."""

    size: int  # pixels per side
    patch_size: int  # pixels per side of what becomes one token
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Reads the picture that an example names.

    Attributes:
        preprocessing: as the model was trained.
        folder: where the pictures lie, on disk or in an archive; None: only the built-in digits can
            be read.
    """

    preprocessing: Preprocessing
    folder: Pictures | None = None

    @property
    def tokenizer(self) -> None:
        """Pictures have none."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """The pixels alone."""
        return ("pixel_values",)

    @property
    def task_type(self) -> str | None:
        """PEFT has no name for image classifiers."""
        return None

    def encode(self, example: Example) -> str:
        """The picture's name: pixels are read batch by batch."""
        return example.question

    def collate(self, rows: Sequence[str]) -> Batch:
        """`pixel_values` (rows, 3, size, size) fp32, and an `attention_mask` of one per patch."""
        pixels = torch.stack([self.pixels(name) for name in rows])
        side = self.preprocessing.size // self.preprocessing.patch_size
        mask = torch.ones(len(rows), side * side, dtype=torch.int64)
        return {"pixel_values": pixels, "attention_mask": mask}

    def pixels(self, name: str) -> torch.Tensor:
        """One picture as the model reads it, (3, size, size) fp32.

        Raises:
            InvalidConfigError: there is no such picture, or it cannot be read.
        """
        library = optional_module("PIL.Image", "Pictures")
        picture = _digit(library, name) if name.startswith(DIGITS) else self._open(library, name)
        return to_pixels(picture, self.preprocessing)

    def _open(self, library: Any, name: str) -> Any:
        if self.folder is None:
            raise InvalidConfigError(f"Picture {name!r} lies in a folder: say in which one.")
        try:
            with warnings.catch_warnings(), _stream(self.folder, name) as stream:
                warnings.simplefilter("error", library.DecompressionBombWarning)
                picture = library.open(stream)
                picture.load()
        except (OSError, library.DecompressionBombError, library.DecompressionBombWarning) as error:
            raise InvalidConfigError(
                f"Picture {name!r} cannot be read: {error}. Store it again as PNG or JPEG."
            ) from error
        return picture


def _stream(folder: Pictures, name: str) -> IO[bytes]:
    """One picture's bytes; names cannot lead out of an archive, which has no outside."""
    if isinstance(folder, zipfile.Path):
        return folder.joinpath(name).open("rb")
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise InvalidConfigError(
            f"Picture {name!r} lies outside its folder: put it inside, or remove the example."
        )
    return path.open("rb")


def to_pixels(picture: Any, wanted: Preprocessing) -> torch.Tensor:
    """A picture of Pillow's as a model reads it, (3, size, size) fp32."""
    bilinear = optional_module("PIL.Image", "Pictures").BILINEAR
    small = picture.convert("RGB").resize((wanted.size, wanted.size), bilinear)
    values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    scaled = values.view(wanted.size, wanted.size, 3).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (wanted.mean, wanted.deviation))
    return (scaled - mean) / deviation


def read_image_folder(folder: Path) -> ClientData:
    """Examples of `folder/<split>/<label>/*.png|jpg`; the splits are train, validation and test.

    Raises:
        InvalidConfigError: train or test pictures are missing, or there are fewer than two labels.
    """
    found: dict[Split, tuple[Example, ...]] = {
        split: tuple(
            Example(question=path.relative_to(folder).as_posix(), answer=label.name, split=split)
            for label in sorted((folder / split).glob("*"))
            for path in sorted(label.glob("*"))
            if path.suffix.lower() in SUFFIXES
        )
        for split in SPLITS
    }
    labels = {example.answer for rows in found.values() for example in rows}
    if not found["train"] or not found["test"] or len(labels) < 2:
        raise InvalidConfigError(
            f"The folder {str(folder)!r} has {len(found['train'])} train and {len(found['test'])} "
            f"test pictures of {len(labels)} labels: put some into train/<label>/ and "
            "test/<label>/, for at least two labels."
        )
    return ClientData(TaskKind.IMAGE_CLASSIFICATION, **found)


def handwritten_digits(
    *, seed: int, num_train: int, num_validation: int, num_test: int
) -> ClientData:
    """Some of scikit-learn's 1,797 digits of 8 x 8 pixels.

    Which split a picture belongs to depends on the picture alone, so the test pictures of one
    client are never training pictures of another. Within a split, pictures lie in one shuffled
    order, from which seed s takes the s-th piece of the wanted size, from the start again after the
    end: clients of equal sizes with successive seeds share no picture until all are dealt out.

    Raises:
        InvalidConfigError: scikit-learn is missing, or a split has fewer pictures than asked for.
    """
    targets = _digits().target
    wanted = dict(zip(SPLITS, (num_train, num_validation, num_test), strict=True))
    drawn: dict[Split, tuple[Example, ...]] = {}
    for split, count in wanted.items():
        pool = [i for i in range(len(targets)) if split_of(f"{DIGITS}{i}") == split]
        if count > len(pool):
            raise InvalidConfigError(
                f"{count} {split} digits are asked for but there are {len(pool)}: ask for fewer."
            )
        Random(f"{DIGITS}{split}").shuffle(pool)  # noqa: S311 - no secret
        start = seed * count % len(pool)
        chosen = (pool + pool)[start : start + count]
        drawn[split] = tuple(
            Example(question=f"{DIGITS}{i}", answer=str(targets[i]), split=split) for i in chosen
        )
    return ClientData(TaskKind.IMAGE_CLASSIFICATION, **drawn)


@cache
def _digits() -> Any:
    return optional_module("sklearn.datasets", "Handwritten digits").load_digits()


def _digit(library: Any, name: str) -> Any:
    images, number = _digits().images, name.removeprefix(DIGITS)
    if not number.isdecimal() or int(number) >= len(images):
        raise InvalidConfigError(f"There is no digit {name!r}: they go to {len(images) - 1}.")
    return library.fromarray((images[int(number)] * (255 / _DIGIT_MAXIMUM)).astype("uint8"))
