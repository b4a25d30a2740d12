"""The life of an agent: ask for work, do it here, hand in what is shared; again and again."""

import hashlib
import logging
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

from backend.api_client import ApiClient
from backend.contracts.agent import AgentResult, Work
from backend.contracts.enums import RoundKind
from backend.contracts.signatures import update_text
from worker.agent.attempt import LeasedAttempt
from worker.agent.errors import AgentStoppingError, MaskingError, StateMissingError
from worker.agent.patience import patiently
from worker.agent.premises import Premises
from worker.agent.privacy_limit import require_masked, require_within
from worker.agent.secure_party import SecureParty, begin
from worker.agent.signing import Signer
from worker.agent.store import Done, StateFolder
from worker.agent.unmasking import Unmasking
from worker.devices import training_device, weights_dtype
from worker.federated.checkpoint import Checkpointing
from worker.federated.errors import WireError
from worker.federated.objectives.loading import load_for_task
from worker.federated.privacy.masked_update import SINGLE_UPDATE_METRICS
from worker.federated.privacy.private import unpredictable_key, with_noise
from worker.federated.strategies.registry import build_strategy
from worker.federated.types import ClientPlan, ClientSpec, LocalClient, Metrics, Tensors
from worker.federated.wire import decode_plan, encode_update

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Agent:
    """One client on its own machine.

    Attributes:
        api: speaks to the platform with the client's credential; all calls go outwards.
        name: of this machine or process, for people.
        spec: the client.
        premises: base model and data.
        store: what stays here between rounds.
        stop: set from outside when the agent shall end.
        checkpoint_seconds: least time between two states saved within a round.
        max_epsilon: privacy loss that the owner accepts in one run; None: any, and runs without
            noise too.
        only_masked: the owner takes part in runs with secure aggregation only.
        signer: signs what is handed in; None: the credential alone vouches for it.
    """

    api: ApiClient
    name: str
    spec: ClientSpec
    premises: Premises
    store: StateFolder
    stop: threading.Event
    checkpoint_seconds: float = 60.0
    max_epsilon: float | None = None
    only_masked: bool = False
    signer: Signer | None = None

    def run(self) -> None:
        """Works until `stop` is set; a platform that is away is waited for.

        Raises:
            ApiClientError: the platform refuses this client, such as after its credential was
                revoked.
        """
        unmasking = Unmasking(self.api, UUID(self.spec.client_id), self.store, self.stop)
        unmasking.start()
        while not self.stop.is_set():
            try:
                work = patiently(self.stop, partial(self.api.agent.lease, self.name))
            except AgentStoppingError:
                return
            if work is None:
                self.stop.wait(POLL_SECONDS)
            else:
                self.do(work)

    def do(self, work: Work) -> None:
        """Does one leased update, or drops it when it counts no more.

        Raises:
            ApiClientError: the platform refuses this client.
        """
        logger.info(
            "round %d of run %s: %s, attempt %d",
            work.round_number,
            work.run_id,
            work.kind.value,
            work.fence,
        )
        with LeasedAttempt(self.api, UUID(self.spec.client_id), work, self.stop) as attempt:
            self.store.forget_before(work.run_id, work.kept_round_number)
            require_within(work, self.max_epsilon)
            if self.only_masked:
                require_masked(work)
            party = self._agreed(work, attempt)
            done = self.store.load_done(work)
            if done is None:
                done = self._compute(work, attempt)
            else:
                logger.info("this round was finished here before: handing it in")
            self._hand_in(work, done if party is None else self._masked(work, party, done))
            logger.info("round %d of run %s is handed in", work.round_number, work.run_id)

    def _agreed(self, work: Work, attempt: LeasedAttempt) -> SecureParty | None:
        """With secure aggregation: this client's part in it, once keys and shares are exchanged."""
        if work.secure is None:
            hides = work.privacy.secure_aggregation is not None
            if hides and work.kind is not RoundKind.DELIVER:
                raise MaskingError(
                    "This run hides updates, but this round does not: start a new run."
                )
            return None
        known = self.store.load_party(work.run_id, work.round_number)
        file = begin(work, known, partial(self.store.forget_masked, work))
        self.store.save_party(file)
        party = SecureParty(self.api, self.stop, self.spec.client_id, file, self.store.save_party)
        party.agree(attempt.report)
        return party

    def _masked(self, work: Work, party: SecureParty, done: Done) -> Done:
        """What leaves in place of a finished round; the same bytes whenever it is asked for."""
        settings = work.privacy.secure_aggregation
        if settings is None or done.shared is None:
            raise MaskingError("This run masks updates without saying how: start a new run.")
        masked = self.store.load_masked(work)
        if masked is None:
            masked = party.mask(done.shared, work.strategy, settings)
            self.store.save_masked(work, masked)
        metrics = {n: v for n, v in done.metrics.items() if n not in SINGLE_UPDATE_METRICS}
        return Done(metrics=metrics, shared=masked)

    def _compute(self, work: Work, attempt: LeasedAttempt) -> Done:
        plan = self._fetch_plan(work)
        client = self._local_client(work, attempt)
        noise = work.privacy.differential_privacy
        strategy = with_noise(
            build_strategy(work.strategy), work.strategy, noise, unpredictable_key
        )
        if work.kind is RoundKind.DELIVER:

            def write_adapter(folder: Path) -> Metrics:
                return strategy.deliver_client(plan, client, folder)

            done = self.store.save_delivered(work, write_adapter)
            logger.info("the adapter lies in %s", self.store.adapter_folder(work.run_id))
            return done
        update = strategy.train_client(plan, client)
        done = Done(metrics=update.metrics, shared=encode_update(update))
        self.store.save_trained(work, update.private, done)
        return done

    def _fetch_plan(self, work: Work) -> ClientPlan:
        data = patiently(self.stop, partial(self._download_plan, work))
        if hashlib.sha256(data).hexdigest() != work.plan_sha256:
            raise WireError(
                f"The plan of round {work.round_number} arrived with another content than the "
                "lease announced. Look for a proxy that changes what passes through."
            )
        plan = decode_plan(data)
        expected = (self.spec.client_id, work.round_number, work.kind)
        if (plan.client_id, plan.round_number, plan.kind) != expected:
            raise WireError(
                f"The plan is for client {plan.client_id!r} in round {plan.round_number} "
                f"({plan.kind.value}), not for this one in round {work.round_number} "
                f"({work.kind.value}). Start a new run."
            )
        return plan

    def _download_plan(self, work: Work) -> bytes:
        data = bytearray()
        for chunk in self.api.agent.stream_plan(work.client_update_id):
            data += chunk
            if len(data) > work.plan_size_bytes:
                raise WireError(
                    f"The plan is longer than the {work.plan_size_bytes} bytes that the lease "
                    "announced. Look for a proxy that changes what passes through."
                )
        return bytes(data)

    def _local_client(self, work: Work, attempt: LeasedAttempt) -> LocalClient:
        training = work.training
        device = training_device()
        model, objective = load_for_task(
            self.premises.model,
            self.premises.data,
            training,
            device=device,
            dtype=weights_dtype(training.precision, device),
            image_folder=self.premises.pictures,
        )
        return LocalClient(
            spec=self.spec,
            model=model,
            objective=objective,
            data=self.premises.data,
            training=training,
            private=self._private(work),
            on_progress=attempt.report,
            checkpointing=Checkpointing(
                on_checkpoint=partial(self.store.save_checkpoint, work),
                interval_seconds=self.checkpoint_seconds,
                resume_from=self.store.load_checkpoint(work),
            ),
        )

    def _private(self, work: Work) -> Tensors | None:
        """What its last accepted round left here; without that it cannot go on as if it had it."""
        if work.kept_round_number == 0:
            return None
        private = self.store.load_private(work.run_id, work.kept_round_number)
        if private is None:
            raise StateMissingError(
                f"What {self.spec.name} kept of round {work.kept_round_number} is not in its "
                "agent's state folder. Start the agent with the --state folder of that round, then "
                "start a new run."
            )
        return private

    def _hand_in(self, work: Work, done: Done) -> None:
        shared_sha256 = None
        if done.shared is not None:
            upload = partial(
                self.api.agent.upload_shared, work.client_update_id, work.fence, done.shared
            )
            shared_sha256 = patiently(self.stop, upload).sha256
        result = AgentResult(
            fence=work.fence,
            metrics=done.metrics,
            shared_sha256=shared_sha256,
            signature=None if shared_sha256 is None else self._signed(work, shared_sha256),
        )
        patiently(self.stop, partial(self.api.agent.finish, work.client_update_id, result))

    def _signed(self, work: Work, sha256: str) -> str | None:
        if self.signer is None:
            return None
        client_id = UUID(self.spec.client_id)
        return self.signer.sign(
            update_text(work.run_id, client_id, work.round_number, work.fence, sha256)
        )
