"""Data sets: built-in generators, and checked uploads."""

from collections import Counter
from uuid import UUID

from sqlalchemy.orm import Session

from backend.auth.principals import Principal
from backend.clients.service import get_client, set_dataset
from backend.contracts.clients import Client
from backend.contracts.common import FieldError
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinTaskInfo, UploadedDataset
from backend.contracts.enums import Execution
from backend.contracts.json_lines import JsonLinesError, parse_json_lines
from backend.errors import ConflictError, InvalidError
from backend.storage import BlobStore, save_blob

MEDIA_TYPE = "application/x-ndjson"


def list_builtin_tasks() -> list[BuiltinTaskInfo]:
    """The task generators that ship with the platform."""
    return [BuiltinTaskInfo(name=name, kind=kind) for name, kind in BUILTIN_TASK_KINDS.items()]


def replace_dataset(
    session: Session, store: BlobStore, client_id: UUID, content: bytes, actor: Principal
) -> Client:
    """Checks uploaded rows for the client's task and makes them its data set.

    Nothing is stored before every row is found good.

    Raises:
        NotFoundError: no such client.
        InvalidError: a row is wrong; the message names line, field, value and remedy.
        ConflictError: a run of the client goes on, or it trains on its own premises.
    """
    client = get_client(session, client_id)
    if client.execution is Execution.REMOTE:
        raise ConflictError(
            f"{client.name} trains on its own premises: its data stay there. Name them when you "
            "start its agent (--data).",
            code="client_is_remote",
        )
    try:
        examples = parse_json_lines(content.splitlines(), client.task)
    except JsonLinesError as error:
        raise InvalidError(
            str(error),
            code="dataset_refused",
            errors=[FieldError(field=_field(error), message=str(error))],
        ) from error
    counts = Counter(example.split for example in examples)
    ref = save_blob(session, store, content, MEDIA_TYPE)
    dataset = UploadedDataset(
        sha256=ref.sha256,
        num_train=counts["train"],
        num_validation=counts["validation"],
        num_test=counts["test"],
    )
    return set_dataset(session, client_id, dataset, actor)


def _field(error: JsonLinesError) -> str:
    place = [] if error.line is None else [f"line {error.line}"]
    return ".".join([*place, error.field or "body"])
