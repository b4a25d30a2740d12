"""Data sets: built-in generators, and checked uploads."""

from collections import Counter
from typing import BinaryIO
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.auth.principals import Principal
from backend.clients.service import get_client, set_dataset
from backend.contracts.clients import Client
from backend.contracts.common import FieldError
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinTaskInfo, Example, UploadedDataset
from backend.contracts.enums import Execution, TaskKind
from backend.contracts.image_archive import ImageArchiveError, parse_image_archive
from backend.contracts.json_lines import JsonLinesError, parse_json_lines
from backend.db.models import Membership
from backend.errors import ConflictError, InvalidError
from backend.settings import Settings
from backend.storage import BlobStore, save_blob
from backend.storage.usage import require_room

ROWS_TYPE = "application/x-ndjson"
PICTURES_TYPE = "application/zip"


def list_builtin_tasks() -> list[BuiltinTaskInfo]:
    """The task generators that ship with the platform."""
    return [BuiltinTaskInfo(name=name, kind=kind) for name, kind in BUILTIN_TASK_KINDS.items()]


def replace_dataset(
    session: Session, store: BlobStore, client_id: UUID, content: BinaryIO, actor: Principal
) -> Client:
    """Checks uploaded rows or pictures for the client's task and makes them its data set.

    Nothing is stored before every row and picture is found good.

    Raises:
        NotFoundError: no such client.
        InvalidError: a row or picture is wrong; the message names it, and the remedy.
        ConflictError: a run of the client goes on, or it trains on its own premises.
    """
    client = get_client(session, client_id)
    if client.execution is Execution.REMOTE:
        raise ConflictError(
            f"{client.name} trains on its own premises: its data stay there. Name them when you "
            "start its agent (--data).",
            code="client_is_remote",
        )
    has_pictures = client.task is TaskKind.IMAGE_CLASSIFICATION
    examples = _parse_pictures(content) if has_pictures else _parse_rows(content, client.task)
    counts = Counter(example.split for example in examples)
    content.seek(0)
    ref = save_blob(session, store, content, PICTURES_TYPE if has_pictures else ROWS_TYPE)
    dataset = UploadedDataset(
        format="image_archive" if has_pictures else "json_lines",
        sha256=ref.sha256,
        num_train=counts["train"],
        num_validation=counts["validation"],
        num_test=counts["test"],
    )
    return set_dataset(session, client_id, dataset, actor)


def require_room_in_federations(
    session: Session, client_id: UUID, size_bytes: int, settings: Settings
) -> None:
    """Passes when all federations of a client may store so many bytes more.

    Raises:
        QuotaExceededError: one of them may not.
    """
    of_client = select(Membership.federation_id).where(Membership.client_id == client_id)
    for federation_id in session.scalars(of_client.order_by(Membership.federation_id)).all():
        require_room(session, federation_id, settings, size_bytes)


def _parse_rows(content: BinaryIO, task: TaskKind) -> list[Example]:
    try:
        return parse_json_lines(content, task)
    except JsonLinesError as error:
        raise _refused(error, _field(error)) from error


def _parse_pictures(content: BinaryIO) -> list[Example]:
    try:
        return parse_image_archive(content)
    except ImageArchiveError as error:
        raise _refused(error, error.file or "body") from error


def _refused(error: ValueError, field: str) -> InvalidError:
    return InvalidError(
        str(error),
        code="dataset_refused",
        errors=[FieldError(field=field, message=str(error))],
    )


def _field(error: JsonLinesError) -> str:
    place = [] if error.line is None else [f"line {error.line}"]
    return ".".join([*place, error.field or "body"])
