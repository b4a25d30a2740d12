"""One client in one session of secure aggregation, over HTTP and over the death of its agent.

Every secret of a session follows from one random root, which lies in the client's own folder before
anything leaves; so do roster and inbox, as they came first. An agent that was killed thus says the
same words again. Saying others would be worse than saying nothing: two versions of one message can
give away what each alone hides.
"""

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Event
from uuid import UUID

from backend.api_client import ApiClient
from backend.contracts.agent import Work
from backend.contracts.enums import SecureStep
from backend.contracts.privacy import SMALLEST_SUM, SecureAggregation
from backend.contracts.secure_aggregation import (
    SecureKeys,
    SecureMember,
    SecureReveal,
    SecureShares,
    SecureState,
    session_tag,
)
from backend.contracts.strategies import Params
from worker.agent.errors import LeaseLostError, MaskingError
from worker.agent.party_file import PartyFile
from worker.agent.patience import patiently
from worker.federated.privacy.keystream import KEY_BYTES, repeatable_random
from worker.federated.privacy.masked_update import mask_update
from worker.federated.privacy.secure_aggregation.client import SecureClient
from worker.federated.privacy.secure_aggregation.errors import ValueRangeError
from worker.federated.privacy.secure_aggregation.exchange import public_shares
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint
from worker.federated.privacy.secure_aggregation.messages import PublicKeys
from worker.federated.privacy.secure_aggregation.shamir import SHARE_BYTES, Share
from worker.federated.types import Progress
from worker.federated.wire import decode_update, encode_update

POLL_SECONDS = 1.0
STAGE = "exchanging_keys"

Report = Callable[[Progress], None]


@dataclass(slots=True)
class SecureParty:
    """A client's side of one session; `agree`, then `mask`.

    Attributes:
        api: speaks to the platform with the client's credential.
        stop: set when the agent shall end.
        file: what lies on disk; written anew with `save` before anything follows from it.
        save: keeps it.
    """

    api: ApiClient
    stop: Event
    client_id: str
    file: PartyFile
    save: Callable[[PartyFile], None]

    def agree(self, report: Report) -> None:
        """Steps 1 and 2, as far as they are not done; ends with the inbox in hand.

        Args:
            report: says that the client is alive, and raises when its attempt counts no more.

        Raises:
            LeaseLostError: the attempt counts no more.
            ProtocolError: what came does not follow the protocol.
        """
        if self.file.inbox is not None:
            return
        update_id = self.file.client_update_id
        if self.file.roster is None:
            keys = self._client().keys()
            message = SecureKeys(
                fence=self.file.fence,
                session=self.file.session,
                cipher_key=_text(keys.cipher_key),
                mask_key=_text(keys.mask_key),
            )
            self._call(partial(self.api.agent.announce_keys, update_id, message))
            self._keep(roster=self._await(SecureStep.SHARES, report).roster)
        shares = self._client().share(_keys(self.file.roster or []))
        sealed = {UUID(name): _text(text) for name, text in shares.ciphertexts.items()}
        to_all = SecureShares(fence=self.file.fence, session=self.file.session, ciphertexts=sealed)
        self._call(partial(self.api.agent.send_shares, update_id, to_all))
        self._keep(inbox=self._await(SecureStep.INPUTS, report).inbox)

    def mask(self, plain: bytes, params: Params, settings: SecureAggregation) -> bytes:
        """Step 3: the encoded update behind its masks.

        Args:
            plain: the encoded update, which stays here.
            params: of the strategy.
            settings: of the run.

        Returns:
            The encoded update that may leave.

        Raises:
            MaskingError: a number is outside the agreed range.
            ProtocolError: the inbox does not fit the roster.
        """
        weights = {str(m.client_id): float(m.num_examples) for m in self.file.roster or []}
        try:
            masked = mask_update(
                decode_update(plain),
                params,
                replayed(self.client_id, self.file),
                opened_inbox(self.file),
                FixedPoint(settings.value_range),
                public_shares(weights)[self.client_id],
            )
        except ValueRangeError as error:  # its text quotes a number of the update
            raise MaskingError(
                f"A number that this client would share is larger than value_range, which is "
                f"{settings.value_range:g}: raise value_range, or lower the learning rate."
            ) from error
        return encode_update(masked)

    def _client(self) -> SecureClient:
        return new_client(self.client_id, self.file)

    def _keep(self, **values: object) -> None:
        self.file = self.file.model_copy(update=values)
        self.save(self.file)

    def _call(self, call: Callable[[], None]) -> None:
        patiently(self.stop, call)

    def _await(self, step: SecureStep, report: Report) -> SecureState:
        while True:
            report(Progress(STAGE, 0, 0))
            state = patiently(
                self.stop, partial(self.api.agent.secure_state, self.file.client_update_id)
            )
            if state.session != self.file.session:
                raise LeaseLostError
            if state.step is step:
                return state
            if _ORDER.index(state.step) > _ORDER.index(step):
                raise LeaseLostError  # the session went on without this client
            self.stop.wait(POLL_SECONDS)


_ORDER = list(SecureStep)


def begin(work: Work, known: PartyFile | None, new: Callable[[], None]) -> PartyFile:
    """The party of a leased update: as it was left, or a fresh one for a new session.

    Args:
        work: of a round with secure aggregation.
        known: what lies on disk of this round.
        new: called before a fresh party takes the place of another.

    Raises:
        MaskingError: the threshold protects nobody, or this client has told its shares in another
            session of the round: a second sum over the same updates could give one of them away.
    """
    task = work.secure
    if task is None or task.threshold < SMALLEST_SUM:
        raise MaskingError(
            f"A threshold of {task.threshold if task else 0} clients protects nobody: this client "
            f"takes part from {SMALLEST_SUM} on. Start a new run."
        )
    if known is not None and known.session == task.session:
        return known.model_copy(update={"fence": work.fence})
    if known is not None and known.survivors is not None:
        raise MaskingError(
            f"This client has told its shares for another sum of round {work.round_number}, and a "
            "second one could give a single update away. Start a new run."
        )
    new()
    return PartyFile(
        client_update_id=work.client_update_id,
        run_id=work.run_id,
        round_number=work.round_number,
        fence=work.fence,
        session=task.session,
        threshold=task.threshold,
        root=secrets.token_hex(KEY_BYTES),
    )


def new_client(client_id: str, file: PartyFile) -> SecureClient:
    """The client as it was before its first message."""
    tag = session_tag(file.run_id, file.round_number, file.session)
    random = repeatable_random(bytes.fromhex(file.root))
    return SecureClient(client_id, file.threshold, tag, random)


def replayed(client_id: str, file: PartyFile) -> SecureClient:
    """The client after steps 1 and 2.

    Raises:
        ProtocolError: the roster does not follow the protocol.
    """
    client = new_client(client_id, file)
    client.share(_keys(file.roster or []))
    return client


def opened_inbox(file: PartyFile) -> dict[str, bytes]:
    """Ciphertexts by sender."""
    return {str(sender): base64.b64decode(text) for sender, text in (file.inbox or {}).items()}


def revealed(client_id: str, file: PartyFile) -> SecureReveal:
    """Step 4, from a file that names the survivors.

    Raises:
        ProtocolError: too few survived, or somebody unknown.
    """
    client = replayed(client_id, file)
    client.receive(opened_inbox(file))
    told = client.reveal([str(name) for name in file.survivors or []])
    return SecureReveal(
        session=file.session,
        own_seeds={UUID(name): _share_text(share) for name, share in told.own_seeds.items()},
        mask_keys={UUID(name): _share_text(share) for name, share in told.mask_keys.items()},
    )


def _keys(roster: list[SecureMember]) -> list[PublicKeys]:
    return [
        PublicKeys(
            str(member.client_id),
            base64.b64decode(member.cipher_key),
            base64.b64decode(member.mask_key),
        )
        for member in roster
    ]


def _share_text(share: Share) -> str:
    return _text(share.value.to_bytes(SHARE_BYTES))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
