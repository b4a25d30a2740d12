"""Turns a reference to data into a client's examples, built-in or uploaded."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import IO

from backend.contracts.datasets import (
    BUILTIN_TASK_KINDS,
    SPLITS,
    BuiltinDataset,
    Example,
    UploadedDataset,
)
from backend.contracts.enums import TaskKind
from backend.contracts.image_archive import ImageArchiveError, parse_image_archive
from backend.contracts.json_lines import JsonLinesError, parse_json_lines
from worker.federated.errors import InvalidConfigError
from worker.federated.tasks.generators import generate
from worker.federated.types import ClientData

OpenBlob = Callable[[str], AbstractContextManager[IO[bytes]]]
"""Gives a readable stream of the stored bytes whose SHA-256 (64 hex digits) is the argument."""


def load_dataset(
    dataset: BuiltinDataset | UploadedDataset, task: TaskKind, open_blob: OpenBlob
) -> ClientData:
    """A client's rows, split into train, validation and test.

    Args:
        dataset: which rows; a built-in one is generated, an uploaded one is read and checked.
        task: what the client's model learns to do.
        open_blob: where uploaded bytes come from; not called for built-in data.

    Raises:
        InvalidConfigError: the data are of another kind of task, are broken, or are not those
            that the reference describes.
    """
    if isinstance(dataset, BuiltinDataset):
        kind = BUILTIN_TASK_KINDS[dataset.task]
        if kind is not task:
            raise InvalidConfigError(
                f"Data set {dataset.task.value!r} is for task {kind.value!r}, not {task.value!r}. "
                "Choose the task of the data set."
            )
        return builtin_data(dataset)
    data = _split(task, _read_upload(dataset, task, open_blob))
    expected = (dataset.num_train, dataset.num_validation, dataset.num_test)
    found = (len(data.train), len(data.validation), len(data.test))
    if found != expected:
        raise InvalidConfigError(
            f"Uploaded data set {dataset.sha256[:12]} has {found} train, validation and test rows "
            f"where {expected} were registered. Upload it again."
        )
    return data


def builtin_data(dataset: BuiltinDataset) -> ClientData:
    """Generated rows, split into train, validation and test."""
    return _split(BUILTIN_TASK_KINDS[dataset.task], generate(dataset))


def open_pictures(
    dataset: BuiltinDataset | UploadedDataset, open_blob: OpenBlob
) -> zipfile.Path | None:
    """The pictures of an uploaded archive, in memory; None for data without any.

    `load_dataset` has checked them before.
    """
    if isinstance(dataset, BuiltinDataset) or dataset.format != "image_archive":
        return None
    return zipfile.Path(io.BytesIO(_read_blob(dataset, open_blob)))


def _read_upload(dataset: UploadedDataset, task: TaskKind, open_blob: OpenBlob) -> list[Example]:
    has_pictures = dataset.format == "image_archive"
    if has_pictures != (task is TaskKind.IMAGE_CLASSIFICATION):
        raise InvalidConfigError(
            f"Uploaded data set {dataset.sha256[:12]} is of format {dataset.format!r}, which is "
            f"not for task {task.value!r}. Upload data for that task."
        )
    content = _read_blob(dataset, open_blob)
    try:
        if has_pictures:
            return parse_image_archive(io.BytesIO(content))
        return parse_json_lines(content.splitlines(), task)
    except (JsonLinesError, ImageArchiveError) as error:
        raise InvalidConfigError(f"Uploaded data set {dataset.sha256[:12]}: {error}") from error


def _read_blob(dataset: UploadedDataset, open_blob: OpenBlob) -> bytes:
    with open_blob(dataset.sha256) as stream:
        content = stream.read()
    digest = hashlib.sha256(content).hexdigest()
    if digest != dataset.sha256:
        raise InvalidConfigError(
            f"Uploaded data set {dataset.sha256[:12]} was changed in storage: its bytes now hash "
            f"to {digest[:12]}. Upload it again."
        )
    return content


def _split(task: TaskKind, rows: Sequence[Example]) -> ClientData:
    train, validation, test = (tuple(row for row in rows if row.split == split) for split in SPLITS)
    return ClientData(task=task, train=train, validation=validation, test=test)
