"""`/builtin-tasks` and `/clients/{id}/dataset`."""

from uuid import UUID

from fastapi import APIRouter

from backend.auth.dependencies import AnyPrincipal
from backend.contracts.clients import Client
from backend.contracts.datasets import BuiltinTaskInfo
from backend.datasets import service
from backend.datasets.upload import MEDIA_TYPES, Upload
from backend.web.dependencies import AppSettings, DbSession, Store
from backend.web.problems import problem_answers

router = APIRouter()

_EXAMPLE = (
    '{"question": "What is 2 + 3?", "answer": "5", "split": "train"}\n'
    '{"question": "What is 4 + 1?", "answer": "5", "split": "test"}\n'
)
_BODY = {
    "required": True,
    "content": {
        media_type: {"schema": {"type": "string", "format": "binary"}, "example": _EXAMPLE}
        for media_type in MEDIA_TYPES
    },
}


@router.get("/builtin-tasks", tags=["catalogue"], summary="Built-in task generators")
def list_builtin_tasks(_principal: AnyPrincipal) -> list[BuiltinTaskInfo]:
    """Seeded generators of task data, with the kind of task that each is for."""
    return service.list_builtin_tasks()


@router.put(
    "/clients/{client_id}/dataset",
    tags=["clients"],
    summary="Replace a client's data set",
    responses=problem_answers(415, 507),
    openapi_extra={"requestBody": _BODY},
)
def put_dataset(
    client_id: UUID,
    upload: Upload,
    principal: AnyPrincipal,
    session: DbSession,
    store: Store,
    settings: AppSettings,
) -> Client:
    """One JSON object per line with `question`, `answer` and, for all rows or none, `split`.

    Rows of a classification may describe their label in `label_text`, from which text encoders
    start; one row of each label is enough.

    Where the client's task is `image_classification`: a zip of PNG and JPEG files, as
    `<label>/<file>` or, with `train`, `validation` and `test`, as `<split>/<label>/<file>`.

    For operators, and for the client itself. A wrong row is named by its line, a wrong picture
    by its name, and then nothing changes.
    """
    service.require_room_in_federations(session, client_id, upload.size_bytes, settings)
    return service.replace_dataset(session, store, client_id, upload.content, principal)
