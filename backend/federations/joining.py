"""Clients that join a federation which exists already, by an enrolment key bound to it."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.contracts.common import FieldError
from backend.contracts.enums import RunStatus
from backend.db import models
from backend.errors import ConflictError, InvalidError

_AT_REST = [RunStatus.CREATED, *(status for status in RunStatus if status.is_terminal)]


def join(session: Session, federation_id: UUID, client: models.Client) -> None:
    """Makes a client one of a federation's.

    Raises:
        ConflictError: a run goes on, whose members must stay the same.
        InvalidError: the client's rank is above the federation's global rank.
    """
    federation = session.get_one(models.Federation, federation_id, with_for_update=True)
    run_id = session.scalar(
        select(models.Run.id)
        .where(models.Run.federation_id == federation_id, models.Run.status.not_in(_AT_REST))
        .limit(1)
    )
    if run_id is not None:
        raise ConflictError(
            f"Run {run_id} of federation {federation.name!r} goes on, and its members stay the "
            "same until it ends. Wait for its end, then try again.",
            code="federation_busy",
        )
    if client.lora_rank > federation.global_rank:
        message = (
            f"LoRA rank {client.lora_rank} is above the global rank {federation.global_rank} of "
            f"federation {federation.name!r}. Choose {federation.global_rank} or less."
        )
        raise InvalidError(
            message,
            code="rank_above_global_rank",
            errors=[FieldError(field="lora_rank", value=client.lora_rank, message=message)],
        )
    session.add(models.Membership(federation_id=federation_id, client_id=client.id))
    session.flush()
