"""Keys with which clients sign, and whether an update is signed as it must be.

A client without a key sends unsigned updates, which its credential alone vouches for. As soon as it
has a key, updates without its signature are refused, so that a thief of the credential cannot leave
the signature out; another key follows only with a signature of the present one, or after an
operator has retired that.
"""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import Actor, ClientPrincipal
from backend.contracts.common import FieldError, Page
from backend.contracts.enums import Execution
from backend.contracts.signatures import (
    SIGNATURE_INVALID,
    SIGNATURE_MISSING,
    SignedUpdate,
    SigningKey,
    SigningKeyPut,
    fingerprint_of,
    rotation_text,
    update_text,
)
from backend.db import models
from backend.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from backend.signatures import repository
from backend.signatures.ed25519 import is_signed
from backend.web.paging import fetch_page


def put_key(session: Session, client: ClientPrincipal, request: SigningKeyPut) -> SigningKey:
    """Makes a key the client's own; the same key again changes nothing.

    Raises:
        ForbiddenError: the client is a managed one, or its present key did not sign the new one.
        ConflictError: the key was retired before.
    """
    row = repository.lock_client(session, client.id)
    if row.execution is not Execution.REMOTE:
        raise ForbiddenError(
            f"Client {client.name} is managed: the platform trains for it, so it has nothing to "
            "sign.",
            code="client_is_managed",
        )
    present = repository.find_active(session, client.id)
    if present is not None and present.public_key == request.public_key:
        return SigningKey.model_validate(present)
    if present is not None:
        _require_rotation(client, present, request)
        present.retired_at = datetime.now(UTC)
    return add_key(session, client, request.public_key)


def add_key(session: Session, client: ClientPrincipal, public_key: str) -> SigningKey:
    """Adds a client's key, when it has none that counts.

    Raises:
        ConflictError: the key was retired before.
    """
    fingerprint = fingerprint_of(public_key)
    if repository.find_by_fingerprint(session, client.id, fingerprint) is not None:
        raise ConflictError(
            f"The key {fingerprint[:16]} of {client.name} was retired. Make a new one.",
            code="key_retired",
        )
    key = models.SigningKey(client_id=client.id, public_key=public_key, fingerprint=fingerprint)
    session.add(key)
    record_audit(session, client, "client.set_signing_key", client.id, fingerprint=fingerprint)
    session.flush()
    session.refresh(key)
    return SigningKey.model_validate(key)


def retire_key(session: Session, client_id: UUID, actor: Actor) -> None:
    """Ends a client's key, such as one that was lost: the client may register another one.

    Raises:
        NotFoundError: the client has no key that counts.
    """
    repository.lock_client(session, client_id)
    present = repository.find_active(session, client_id)
    if present is None:
        raise NotFoundError("There is no signing key of this client's to retire.")
    present.retired_at = datetime.now(UTC)
    record_audit(
        session, actor, "client.retire_signing_key", client_id, fingerprint=present.fingerprint
    )


def list_keys(
    session: Session, client_id: UUID, cursor: UUID | None, limit: int
) -> Page[SigningKey]:
    """All keys that a client ever had, newest first."""
    query = repository.of_client_query(client_id)
    return fetch_page(
        session, query, models.SigningKey.id, cursor, limit, SigningKey.model_validate
    )


def require_keys(session: Session, federation: models.Federation) -> None:
    """Passes when all clients that must sign can.

    Raises:
        ConflictError: names those that have no key.
    """
    if not federation.require_signatures:
        return
    names = repository.names_without_key(session, federation.id)
    if names:
        raise ConflictError(
            f"This federation demands signed updates, and no signing key is known of "
            f"{', '.join(names)}. Start each agent with --sign, then try again.",
            code="signing_key_missing",
        )


def checked_fingerprint(
    session: Session, update: models.ClientUpdate, round_: models.Round, signature: str | None
) -> str | None:
    """The key that signed an uploaded update; None where neither is one given nor demanded.

    Raises:
        InvalidError: with the code `signature_missing` or `signature_invalid`.
    """
    key = repository.find_active(session, update.client_id)
    if signature is None:
        demands = session.get_one(models.Run, round_.run_id).federation.require_signatures
        if key is None and not demands:
            return None
        raise _refused(
            SIGNATURE_MISSING,
            "The update is not signed, and it has to be: "
            + (
                "its federation demands signatures. Start the agent with --sign."
                if key is None
                else f"its client has the signing key {key.fingerprint[:16]}. Start the agent with "
                "the --state folder that holds this key."
            ),
        )
    text = update_text(
        round_.run_id,
        update.client_id,
        round_.round_number,
        update.fence,
        update.shared_sha256 or "",
    )
    if key is None or not is_signed(key.public_key, signature, text):
        known = "none is registered" if key is None else f"that is {key.fingerprint[:16]}"
        raise _refused(
            SIGNATURE_INVALID,
            f"The signature is not that of the client's present key ({known}) over this run, "
            "client, round, attempt and update. Start the agent with the --state folder that holds "
            "the key, or have an operator retire it.",
        )
    return key.fingerprint


def signed_updates(session: Session, run_id: UUID) -> list[SignedUpdate]:
    """What anybody needs to verify a run's signed updates.

    Raises:
        NotFoundError: no such run.
    """
    if session.get(models.Run, run_id) is None:
        raise NotFoundError(f"There is no run {run_id}.")
    return [
        SignedUpdate(
            client_update_id=update.id,
            client_id=client.id,
            client_name=client.name,
            round_number=round_.round_number,
            attempt=update.fence,
            sha256=update.shared_sha256 or "",
            signed_text=update_text(
                run_id, client.id, round_.round_number, update.fence, update.shared_sha256 or ""
            ).decode(),
            signature=update.signature or "",
            fingerprint=key.fingerprint,
            public_key=key.public_key,
        )
        for update, round_, client, key in repository.signed_updates(session, run_id)
    ]


def _require_rotation(
    client: ClientPrincipal, present: models.SigningKey, request: SigningKeyPut
) -> None:
    text = rotation_text(client.id, fingerprint_of(request.public_key))
    if request.signature is None or not is_signed(present.public_key, request.signature, text):
        raise ForbiddenError(
            f"Client {client.name} has the key {present.fingerprint[:16]}, and a new one must be "
            "signed by it: use `python -m worker.agent rotate-key`. If the key is lost, an "
            "operator can retire it with DELETE /api/v1/clients/{id}/signing-key.",
            code="rotation_not_signed",
        )


def _refused(code: str, message: str) -> InvalidError:
    return InvalidError(message, code=code, errors=[FieldError(field="signature", message=message)])
