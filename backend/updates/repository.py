"""SQL of the client updates that remote clients do themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind, Execution, RoundKind, RunStatus, UpdateStatus
from backend.db.ids import new_id
from backend.db.models import Blob, Client, ClientUpdate, Event, Round, Run, Upload, UploadPiece
from backend.errors import NotFoundError
from backend.storage import BlobRef, BlobStoreUnavailableError


@dataclass(frozen=True, slots=True)
class OwnUpdate:
    """A client update with what it belongs to."""

    update: ClientUpdate
    round: Round
    client: Client


def find_client(session: Session, client_id: UUID) -> Client:
    """The client, which exists because its credential does."""
    return session.get_one(Client, client_id)


def find_waiting(session: Session, client_id: UUID) -> UUID | None:
    """The oldest update that waits for this client in a running run."""
    return session.scalar(
        select(ClientUpdate.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Run, Round.run_id == Run.id)
        .where(
            ClientUpdate.client_id == client_id,
            ClientUpdate.status == UpdateStatus.PENDING,
            Run.status == RunStatus.RUNNING,
        )
        .order_by(Round.opened_at, ClientUpdate.id)
        .limit(1)
    )


def find_own(session: Session, client_id: UUID, update_id: UUID) -> OwnUpdate | None:
    """The update, read anew, if it is this client's and the client is a remote one."""
    row = session.execute(
        select(ClientUpdate, Round, Client)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(
            ClientUpdate.id == update_id,
            ClientUpdate.client_id == client_id,
            Client.execution == Execution.REMOTE,
        )
        .execution_options(populate_existing=True)
    ).first()
    return None if row is None else OwnUpdate(*row)


def find_kept_round(session: Session, own: OwnUpdate) -> int:
    """Number of the round whose private state the client goes on from; 0 before its first."""
    number = session.scalar(
        select(func.max(Round.round_number))
        .join(ClientUpdate, ClientUpdate.round_id == Round.id)
        .where(
            Round.run_id == own.round.run_id,
            Round.kind == RoundKind.TRAIN,
            Round.round_number < own.round.round_number,
            ClientUpdate.client_id == own.client.id,
            ClientUpdate.status == UpdateStatus.ACCEPTED,
        )
    )
    return number or 0


def find_run(session: Session, run_id: UUID) -> Run:
    """The run of a round."""
    return session.get_one(Run, run_id)


def find_plan(session: Session, own: OwnUpdate) -> Blob:
    """The row of what the client receives in a round.

    Raises:
        NotFoundError: the run ended long ago, and the plan was given up since.
    """
    if own.update.plan_sha256 is None:
        raise NotFoundError(
            f"There is no plan of round {own.round.round_number} any more: the run has ended, and "
            "its federation keeps plans for a while only. Start a new run."
        )
    return session.get_one(Blob, own.update.plan_sha256)


def find_blob(session: Session, sha256: str) -> Blob:
    """The row of a stored blob."""
    return session.get_one(Blob, sha256)


def keep_shared(session: Session, update_id: UUID, fence: int, sha256: str) -> bool:
    """Remembers what an attempt uploaded, if it still counts."""
    kept = session.scalar(
        update(ClientUpdate)
        .where(
            ClientUpdate.id == update_id,
            ClientUpdate.fence == fence,
            ClientUpdate.status == UpdateStatus.TRAINING,
        )
        .values(shared_sha256=sha256)
        .returning(ClientUpdate.id)
    )
    return kept is not None


def begin_upload(session: Session, update_id: UUID, sha256: str, size_bytes: int) -> Upload:
    """The upload of these bytes, which may have begun before; locked."""
    session.execute(
        insert(Upload)
        .values(id=new_id(), client_update_id=update_id, sha256=sha256, size_bytes=size_bytes)
        .on_conflict_do_nothing()
    )
    upload = find_upload(session, update_id, sha256)
    if upload is None:
        raise BlobStoreUnavailableError(
            f"The upload {sha256} was completed in this moment. Ask again."
        )
    return upload


def find_upload(session: Session, update_id: UUID, sha256: str) -> Upload | None:
    """The upload, locked until the transaction ends: pieces come one after the other."""
    return session.scalar(
        select(Upload)
        .where(Upload.client_update_id == update_id, Upload.sha256 == sha256)
        .with_for_update(key_share=True)
    )


def upload_offset(session: Session, upload_id: UUID) -> int:
    """Bytes of an upload that are here."""
    query = select(func.coalesce(func.sum(UploadPiece.size_bytes), 0))
    return int(session.scalar(query.where(UploadPiece.upload_id == upload_id)) or 0)


def pieces_of(session: Session, upload_id: UUID) -> Sequence[UploadPiece]:
    """The pieces of an upload in their order."""
    return session.scalars(
        select(UploadPiece).where(UploadPiece.upload_id == upload_id).order_by(UploadPiece.start)
    ).all()


def add_piece(session: Session, upload_id: UUID, start: int, ref: BlobRef) -> None:
    """Adds a piece that is stored."""
    piece = UploadPiece(
        upload_id=upload_id, start=start, size_bytes=ref.size_bytes, sha256=ref.sha256
    )
    session.add(piece)
    session.flush()


def forget_upload(session: Session, upload_id: UUID) -> None:
    """Removes an upload with its pieces; their bytes go with the next garbage collection."""
    session.execute(delete(Upload).where(Upload.id == upload_id))


def is_refusal_known(session: Session, own: OwnUpdate, fence: int) -> bool:
    """True when the run page shows already that this attempt's result was refused."""
    known = session.scalar(
        select(func.count())
        .select_from(Event)
        .where(
            Event.run_id == own.round.run_id,
            Event.kind == EventKind.UPDATE_REFUSED,
            Event.client_id == own.client.id,
            Event.round_number == own.round.round_number,
            Event.data["attempt"].as_integer() == fence,
        )
    )
    return bool(known)
