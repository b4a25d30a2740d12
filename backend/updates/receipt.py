"""Whether shared matrices are those that a round waits for, found out when they arrive.

Kind of message, client, round and weight stand in the header, and so do names, shapes and types,
which `container` checks for sense. Values (finite, expected names and shapes, no longer than
the run allows) are checked by the worker when it aggregates, which then goes on without the update.
A refusal has a stable code, and is shown on the run page.
"""

from typing import Any, BinaryIO

from sqlalchemy.orm import Session

from backend.contracts.agent import AgentResult
from backend.contracts.enums import EventKind
from backend.errors import InvalidError
from backend.journal import record_event
from backend.signatures.service import checked_fingerprint
from backend.updates.container import ContainerError, check_container
from backend.updates.refusals import invalid
from backend.updates.repository import OwnUpdate


def require_update(session: Session, own: OwnUpdate, content: BinaryIO, size_bytes: int) -> None:
    """Passes when the bytes are an update of this client in this round; reads their header.

    A refusal commits the event that shows it, because the request is rolled back.

    Raises:
        InvalidError: with the code `shared_refused`, `update_wrong_kind`, `update_wrong_client`,
            `update_wrong_round` or `update_wrong_weight`.
    """
    try:
        _require_own(own, _values(content, size_bytes))
    except InvalidError as error:
        _record(session, own, error)
        raise


def require_signature(session: Session, own: OwnUpdate, result: AgentResult) -> str | None:
    """Fingerprint of the key that signed the update; None where it has to be neither signed nor is.

    A refusal commits the event that shows it, as above.

    Raises:
        InvalidError: with the code `signature_missing` or `signature_invalid`.
    """
    if result.shared_sha256 is None:
        return None
    try:
        return checked_fingerprint(session, own.update, own.round, result.signature)
    except InvalidError as error:
        _record(session, own, error)
        raise


def _record(session: Session, own: OwnUpdate, error: InvalidError) -> None:
    record_event(
        session,
        own.round.run_id,
        EventKind.UPDATE_REFUSED,
        f"{own.client.name}, round {own.round.round_number}: {error.message}",
        client_id=own.client.id,
        round_number=own.round.round_number,
        attempt=own.update.fence,
        code=error.code,
    )
    session.commit()


def _values(content: BinaryIO, size_bytes: int) -> dict[str, Any]:
    try:
        return check_container(content, size_bytes)
    except ContainerError as error:
        raise invalid(
            "body",
            "shared_refused",
            f"These {size_bytes} bytes are no shared matrices in safetensors format: {error}. "
            "Send what the agent's `encode_update` made, unchanged.",
        ) from error


def _require_own(own: OwnUpdate, values: dict[str, Any]) -> None:
    expected = {
        "message": ("update_wrong_kind", "update"),
        "client_id": ("update_wrong_client", str(own.client.id)),
        "round_number": ("update_wrong_round", own.round.round_number),
        "num_examples": ("update_wrong_weight", own.client.num_examples),
    }
    for field, (code, wanted) in expected.items():
        found = values.get(field)
        if found != wanted or isinstance(found, bool):
            raise invalid(
                field,
                code,
                f"The header of the shared matrices states {field} {str(found)[:100]!r}, expected "
                f"is {str(wanted)!r}. Send what this client trained in this round, and register "
                "the client anew if its data have changed.",
            )
