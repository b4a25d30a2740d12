"""The exchanges of secure aggregation: the platform carries messages that it cannot read.

Each message is taken once. The same again changes nothing; another one in its place is refused,
because a client that says two things in one session could give its update away.
"""

from uuid import UUID

from sqlalchemy.orm import Session

from backend.auth.principals import ClientPrincipal
from backend.barrier import settle_round
from backend.contracts.common import FieldError
from backend.contracts.enums import RoundStatus, SecureStep
from backend.contracts.secure_aggregation import (
    SESSION_OVER,
    SecureKeys,
    SecureMember,
    SecureReveal,
    SecureShares,
    SecureState,
)
from backend.db.models import SecureParty, SecureSession
from backend.errors import ConflictError, InvalidError
from backend.jobs import commit_and_enqueue
from backend.lifecycle import lock_run
from backend.secure_aggregation import repository
from backend.secure_steps import find_secure
from backend.updates import service as updates
from backend.updates.repository import OwnUpdate


def get_state(session: Session, client: ClientPrincipal, update_id: UUID) -> SecureState:
    """How far the session is, with what this client needs next.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the round has no session, or is over.
    """
    own = updates.require_own(session, client, update_id)
    secure = _require_session(session, own, None)
    state = SecureState(
        session=secure.number,
        step=secure.step,
        is_open=own.round.status is RoundStatus.OPEN,
        threshold=secure.threshold,
    )
    round_id = own.round.id
    match secure.step:
        case SecureStep.SHARES:
            state.roster = [
                SecureMember(
                    client_id=member.id,
                    cipher_key=party.cipher_key,
                    mask_key=party.mask_key,
                    num_examples=member.num_examples or 0,
                )
                for party, member in repository.find_parties(session, round_id)
            ]
        case SecureStep.INPUTS:
            state.inbox = {
                sender.id: party.shares[str(client.id)]
                for party, sender in repository.find_parties(session, round_id)
                if party.shares is not None and sender.id != client.id
            }
        case SecureStep.UNMASKING:
            state.survivors = repository.find_survivors(session, round_id)
    return state


def announce_keys(
    session: Session, client: ClientPrincipal, update_id: UUID, request: SecureKeys
) -> None:
    """Step 1; commits.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost, it is another session's turn, or other keys came before.
    """
    own = _lock(session, client, update_id)
    updates.require_leased(session, client, update_id, request.fence)
    secure = _require_session(session, own, request.session)
    party = repository.find_party(session, update_id)
    if party is not None:
        if (party.cipher_key, party.mask_key) != (request.cipher_key, request.mask_key):
            raise _said_before("keys")
        return
    _require_step(own, secure, SecureStep.KEYS)
    session.add(
        SecureParty(
            client_update_id=update_id,
            cipher_key=request.cipher_key,
            mask_key=request.mask_key,
        )
    )
    session.flush()
    commit_and_enqueue(session, *settle_round(session, own.round.run_id))


def send_shares(
    session: Session, client: ClientPrincipal, update_id: UUID, request: SecureShares
) -> None:
    """Step 2; commits.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost, it is not the turn of shares, or others came before.
        InvalidError: they are not one for every other client of the roster.
    """
    own = _lock(session, client, update_id)
    updates.require_leased(session, client, update_id, request.fence)
    secure = _require_session(session, own, request.session)
    party = repository.find_party(session, update_id)
    if party is None:
        raise _wrong_step(secure)
    shares = {str(recipient): text for recipient, text in request.ciphertexts.items()}
    if party.shares is not None:
        if party.shares != shares:
            raise _said_before("shares")
        return
    _require_step(own, secure, SecureStep.SHARES)
    roster = {str(member.id) for _, member in repository.find_parties(session, own.round.id)}
    _require_names("ciphertexts", shares.keys(), roster - {str(client.id)})
    party.shares = shares
    session.flush()
    commit_and_enqueue(session, *settle_round(session, own.round.run_id))


def reveal(
    session: Session, client: ClientPrincipal, update_id: UUID, request: SecureReveal
) -> None:
    """Step 4; commits, and with the threshold's last answer the aggregation leaves.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the sum is open, or the update of this client is not in it.
        InvalidError: not one share of every client.
    """
    own = _lock(session, client, update_id)
    secure = _require_session(session, own, request.session)
    party = repository.find_party(session, update_id)
    if party is None or own.update.aggregated_in is None:
        raise _wrong_step(secure)
    told = {
        "own_seeds": {str(name): text for name, text in request.own_seeds.items()},
        "mask_keys": {str(name): text for name, text in request.mask_keys.items()},
    }
    if party.revealed is not None:
        if party.revealed != told:
            raise _said_before("shares of the unmasking")
        return
    _require_step(own, secure, SecureStep.UNMASKING)
    survivors = {str(name) for name in repository.find_survivors(session, own.round.id)}
    parties = repository.find_parties(session, own.round.id)
    shared = {str(member.id) for sender, member in parties if sender.shares is not None}
    _require_names("own_seeds", told["own_seeds"].keys(), survivors)
    _require_names("mask_keys", told["mask_keys"].keys(), shared - survivors)
    party.revealed = told
    session.flush()
    commit_and_enqueue(session, *settle_round(session, own.round.run_id))


def _lock(session: Session, client: ClientPrincipal, update_id: UUID) -> OwnUpdate:
    """The client's update, read after its run is locked, so that messages come one by one."""
    own = updates.require_own(session, client, update_id)
    lock_run(session, own.round.run_id)
    return updates.require_own(session, client, update_id)


def _require_session(session: Session, own: OwnUpdate, number: int | None) -> SecureSession:
    secure = find_secure(session, own.round.id)
    lives = own.round.status in {RoundStatus.OPEN, RoundStatus.FAILED}  # a failed run may go on
    if secure is None or not lives or number not in {None, secure.number}:
        raise ConflictError(
            f"Session {number or ''} of round {own.round.round_number} is over, or there is none: "
            "forget its secrets and ask for work with POST /api/v1/agent/lease.",
            code=SESSION_OVER,
        )
    return secure


def _require_step(own: OwnUpdate, secure: SecureSession, step: SecureStep) -> None:
    if secure.step is not step or own.round.status is not RoundStatus.OPEN:
        raise _wrong_step(secure)


def _wrong_step(secure: SecureSession) -> ConflictError:
    return ConflictError(
        f"The session is in step {secure.step.value}, and this message does not belong there or "
        "not to this client. Look at GET /api/v1/agent/updates/{id}/secure.",
        code="secure_wrong_step",
    )


def _said_before(what: str) -> ConflictError:
    return ConflictError(
        f"Other {what} came before in this session. An agent keeps its secrets in its --state "
        "folder: start it with the one of this round.",
        code="secure_said_before",
    )


def _require_names(field: str, found: object, expected: set[str]) -> None:
    if found != expected:
        message = f"{field} must name exactly the {len(expected)} clients that the session expects."
        raise InvalidError(
            message, code="secure_wrong_names", errors=[FieldError(field=field, message=message)]
        )
