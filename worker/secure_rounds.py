"""Rounds with secure aggregation: their session, and the sum opened from what clients have sent."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.contracts.enums import Execution, RoundKind
from backend.contracts.privacy import PrivacySettings, SecureAggregation, threshold_of
from backend.contracts.secure_aggregation import session_tag
from backend.contracts.strategies import PARAMS
from backend.db.models import Client, ClientUpdate, Round, Run, SecureParty, SecureSession
from worker.federated import types
from worker.federated.errors import FederatedError
from worker.federated.privacy.masked_update import flat_residues
from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_aggregation.exchange import (
    SecureMean,
    opened_mean,
    public_shares,
)
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint
from worker.federated.privacy.secure_aggregation.messages import (
    EncryptedShares,
    MaskedInput,
    PublicKeys,
    RevealedShares,
)
from worker.federated.privacy.secure_aggregation.server import SecureServer
from worker.federated.privacy.secure_aggregation.shamir import Share
from worker.federated.privacy.secure_strategy import Opening, SecurelyAggregated
from worker.federated.strategy import Strategy
from worker.platform import Platform


def begin_session(session: Session, run: Run, round_: Round, clients: Sequence[Client]) -> None:
    """Gives a training round of a run with secure aggregation its session; others none.

    The round then needs at least as many updates as clients must tell their shares.

    Raises:
        FederatedError: the platform trains for one of the clients, which came after the run.
    """
    settings = _settings(run)
    if settings is None or round_.kind is RoundKind.DELIVER:
        return
    managed = [client.name for client in clients if client.execution is Execution.MANAGED]
    if managed:
        raise FederatedError(
            f"The platform trains for {', '.join(managed)}, and so sees what secure aggregation "
            "would hide: leave managed clients out of the federation, then start a new run."
        )
    threshold = threshold_of(settings, len(clients))
    round_.quorum = max(round_.quorum or 0, threshold)
    session.add(SecureSession(round_id=round_.id, threshold=threshold))


def secured(platform: Platform, run: Run, strategy: Strategy) -> Strategy:
    """The strategy over opened sums, where the run asks for them; else the strategy itself."""
    settings = _settings(run)
    if settings is None:
        return strategy
    params = PARAMS.validate_python(run.strategy)

    def begin(_state: types.ServerState, round_number: int) -> Opening:
        return _find_recorded(platform, run.id, round_number, FixedPoint(settings.value_range))

    return SecurelyAggregated(strategy, params, settings, begin)


@dataclass(frozen=True, slots=True)
class _Party:
    """What one client has sent in the session besides its masked update."""

    keys: PublicKeys
    num_examples: int
    recipients: tuple[str, ...] | None  # of its shares; None: it sent none
    revealed: Mapping[str, Mapping[str, str]] | None


class _Recorded:
    """The server's side of a session, from the database: an `Opening`."""

    def __init__(
        self, parties: Sequence[_Party], threshold: int, tag: str, grid: FixedPoint
    ) -> None:
        self._parties = parties
        self._threshold = threshold
        self._tag = tag
        self._grid = grid
        self._server: SecureServer | None = None

    def add(self, update: types.ClientUpdate, names: Sequence[str]) -> None:
        """Adds a masked update to the sum.

        Raises:
            InvalidUpdateError: it is not masked.
            ProtocolError: its sender sent no shares, or it has another length than the others.
        """
        residues = flat_residues(update, names)
        if self._server is None:
            self._server = self._begun(len(residues))
        self._server.add_masked(MaskedInput(update.client_id, residues))

    def open(self) -> SecureMean:
        """The mean of the masked updates.

        Raises:
            ProtocolError: too few shares were told, or they open nothing.
        """
        if self._server is None:
            raise ProtocolError("No masked update arrived: start the run anew.")
        for index, party in enumerate(self._parties, start=1):
            if party.revealed is not None:
                self._server.add_revealed(
                    RevealedShares(
                        party.keys.client_id,
                        own_seeds=_shares(index, party.revealed["own_seeds"]),
                        mask_keys=_shares(index, party.revealed["mask_keys"]),
                    )
                )
        weights = {party.keys.client_id: float(party.num_examples) for party in self._parties}
        return opened_mean(self._server, self._grid, public_shares(weights))

    def _begun(self, num_values: int) -> SecureServer:
        server = SecureServer(self._threshold, self._tag, num_values)
        for party in self._parties:
            server.add_keys(party.keys)
        for party in self._parties:
            if party.recipients is not None:
                sealed = dict.fromkeys(party.recipients, b"")  # unreadable here, and not needed
                server.add_shares(EncryptedShares(party.keys.client_id, sealed))
        return server


def _find_recorded(
    platform: Platform, run_id: UUID, round_number: int, grid: FixedPoint
) -> _Recorded:
    with platform.session_factory() as session:
        secure = session.scalars(
            select(SecureSession)
            .join(Round, SecureSession.round_id == Round.id)
            .where(Round.run_id == run_id, Round.round_number == round_number)
        ).one()
        rows = session.execute(
            select(SecureParty, Client.id, Client.num_examples)
            .join(ClientUpdate, SecureParty.client_update_id == ClientUpdate.id)
            .join(Client, ClientUpdate.client_id == Client.id)
            .where(ClientUpdate.round_id == secure.round_id)
        ).all()
    parties = [
        _Party(
            keys=PublicKeys(
                str(client_id),
                base64.b64decode(party.cipher_key),
                base64.b64decode(party.mask_key),
            ),
            num_examples=num_examples or 0,
            recipients=None if party.shares is None else tuple(party.shares),
            revealed=party.revealed,
        )
        for party, client_id, num_examples in rows
    ]
    parties.sort(key=lambda party: party.keys.client_id)  # a share's place follows this order
    tag = session_tag(run_id, round_number, secure.number)
    return _Recorded(parties, secure.threshold, tag, grid)


def _shares(index: int, texts: Mapping[str, str]) -> dict[str, Share]:
    return {
        client_id: Share(index, int.from_bytes(base64.b64decode(text)))
        for client_id, text in texts.items()
    }


def _settings(run: Run) -> SecureAggregation | None:
    return PrivacySettings.model_validate(run.privacy).secure_aggregation
