"""Whether what an agent is about to send fits into what its federation may store."""

from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind
from backend.journal import record_event
from backend.settings import Settings
from backend.storage.usage import QuotaExceededError, require_room
from backend.updates import repository
from backend.updates.repository import OwnUpdate


def require_room_for(session: Session, own: OwnUpdate, size_bytes: int, settings: Settings) -> None:
    """Passes when so many bytes fit; the run page shows once an attempt that they do not.

    An agent waits and tries again, so nothing is lost when an administrator makes room.

    Raises:
        QuotaExceededError: they do not fit.
    """
    run = repository.find_run(session, own.round.run_id)
    try:
        require_room(session, run.federation_id, settings, size_bytes)
    except QuotaExceededError as error:
        if not repository.is_refusal_known(session, own, own.update.fence):
            record_event(
                session,
                run.id,
                EventKind.UPDATE_REFUSED,
                f"{own.client.name}, round {own.round.round_number}: {error.message}",
                client_id=own.client.id,
                round_number=own.round.round_number,
                attempt=own.update.fence,
                code=error.code,
            )
        session.commit()  # the event stays although the request is refused
        raise
