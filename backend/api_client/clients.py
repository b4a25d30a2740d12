"""Enrolment keys and the participants of federations."""

import builtins
from collections.abc import Iterable, Iterator
from uuid import UUID

from backend.api_client.transport import Transport
from backend.contracts.clients import (
    Client,
    ClientRegister,
    ClientRegistered,
    EnrolmentKey,
    EnrolmentKeyCreate,
    EnrolmentKeyCreated,
)
from backend.contracts.quotas import QuotaUse
from backend.contracts.refusals import Refusal, RefusalCreate
from backend.contracts.signatures import SigningKey, SigningKeyPut


class EnrolmentKeys:
    """`/enrolment-keys`: secrets with which clients may register."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, key: EnrolmentKeyCreate) -> EnrolmentKeyCreated:
        """Make a key; its secret is in this answer and never again."""
        return self._transport.post("/enrolment-keys", EnrolmentKeyCreated, key)

    def list(self) -> Iterator[EnrolmentKey]:
        """All keys, newest first, without secrets."""
        return self._transport.walk("/enrolment-keys", EnrolmentKey)

    def revoke(self, key_id: UUID) -> None:
        """Refuse further registrations with a key; clients that registered stay."""
        self._transport.call("DELETE", f"/enrolment-keys/{key_id}")


class Clients:
    """`/clients`: participants, their data sets and their credentials."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def register(self, registration: ClientRegister) -> ClientRegistered:
        """Join the platform with an enrolment key; needs no token.

        The answer holds the client's own credential, shown once.
        """
        return self._transport.post("/clients/register", ClientRegistered, registration)

    def list(self) -> Iterator[Client]:
        """All clients, newest first."""
        return self._transport.walk("/clients", Client)

    def get(self, client_id: UUID) -> Client:
        """One client."""
        return self._transport.get(f"/clients/{client_id}", Client)

    def me(self) -> Client:
        """The client whose credential is sent."""
        return self._transport.get("/clients/me", Client)

    def heartbeat(self) -> None:
        """Tell the platform that the client whose credential is sent is alive."""
        self._transport.call("POST", "/clients/me/heartbeat")

    def upload_pictures(self, client_id: UUID, archive: bytes | Iterable[bytes]) -> Client:
        """Replace the data set of a client whose task is `image_classification`.

        Args:
            client_id: whose data set.
            archive: a zip of PNG and JPEG files as `<label>/<file>` or `<split>/<label>/<file>`; an
                open binary file works.

        Returns:
            The client with its new data set. A wrong picture refuses all of them; the `ApiError`
            names it.
        """
        return self._transport.put_bytes(
            f"/clients/{client_id}/dataset", Client, archive, "application/zip"
        )

    def upload_dataset(self, client_id: UUID, lines: bytes | Iterable[bytes]) -> Client:
        """Replace a client's data set.

        Args:
            client_id: whose data set.
            lines: JSON lines, one `contracts.datasets.Example` each; an open binary file works.

        Returns:
            The client with its new data set. A wrong row refuses all of them; the `ApiError`
            names its line.
        """
        return self._transport.put_bytes(
            f"/clients/{client_id}/dataset", Client, lines, "application/x-ndjson"
        )

    def approve(self, client_id: UUID) -> Client:
        """Let a pending client take part."""
        return self._transport.post(f"/clients/{client_id}/approval", Client)

    def rotate_credential(self, client_id: UUID) -> ClientRegistered:
        """Give a client a new credential, shown once; the old one stops working."""
        return self._transport.post(f"/clients/{client_id}/credential", ClientRegistered)

    def revoke_credential(self, client_id: UUID) -> None:
        """Lock a client out until it gets a new credential."""
        self._transport.call("DELETE", f"/clients/{client_id}/credential")

    def put_signing_key(self, key: SigningKeyPut) -> SigningKey:
        """Make a key that of the client whose credential is sent."""
        return self._transport.put("/clients/me/signing-key", SigningKey, key)

    def signing_keys(self, client_id: UUID) -> Iterator[SigningKey]:
        """All keys that a client ever had, newest first."""
        return self._transport.walk(f"/clients/{client_id}/signing-keys", SigningKey)

    def retire_signing_key(self, client_id: UUID) -> None:
        """End the key of a client, which may then register another one."""
        self._transport.call("DELETE", f"/clients/{client_id}/signing-key")

    def usage(self, client_id: UUID) -> builtins.list[QuotaUse]:
        """How much of its quotas a client has used; empty: nothing is counted."""
        return self._transport.get(f"/clients/{client_id}/usage", builtins.list[QuotaUse])

    def refuse(self, client_id: UUID, run_id: UUID, reason: str) -> Refusal:
        """Take a client out of one run; what it handed in before counts."""
        body = RefusalCreate(run_id=run_id, reason=reason)
        return self._transport.post(f"/clients/{client_id}/refusals", Refusal, body)

    def refusals(self, client_id: UUID) -> Iterator[Refusal]:
        """The runs that a client refuses, newest first."""
        return self._transport.walk(f"/clients/{client_id}/refusals", Refusal)

    def withdraw_refusal(self, client_id: UUID, refusal_id: UUID) -> None:
        """Let a client take part in a run after all."""
        self._transport.call("DELETE", f"/clients/{client_id}/refusals/{refusal_id}")
