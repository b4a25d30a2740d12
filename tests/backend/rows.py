"""Rows for tests of the round life: a running run with one open round, straight in the database."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from backend.contracts.base_models import Architecture, BaseModelRef
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import Execution, Role, RoundKind, RoundStatus, RunStatus, TaskKind
from backend.contracts.federations import Visibility
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.training import TrainingConfig
from backend.db.ids import new_id
from backend.db.models import (
    Blob,
    Client,
    ClientUpdate,
    EnrolmentKey,
    Federation,
    Round,
    Run,
    User,
)

DECLARED = {"modules": {"q": {"in_features": 128, "out_features": 128}}, "num_examples": 8}


@dataclass(frozen=True)
class OpenRun:
    """Identifiers of the rows."""

    run_id: UUID
    round_id: UUID
    client_ids: list[UUID]
    update_ids: list[UUID]


def add_user(session: Session) -> User:
    user = User(username=f"user-{new_id()}", password_hash="-", role=Role.ADMINISTRATOR)
    session.add(user)
    session.flush()
    return user


def _dataset(seed: int) -> dict[str, Any]:
    return BuiltinDataset(
        task=BuiltinTaskName.ARITHMETIC_FILL_IN, seed=seed, num_train=8, num_test=4
    ).model_dump(mode="json")


def add_clients(
    session: Session, count: int, execution: Execution = Execution.MANAGED
) -> list[Client]:
    user = add_user(session)
    key = EnrolmentKey(
        secret_hash=str(new_id()),
        label="tests",
        max_uses=count,
        num_uses=count,
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        created_by=user.id,
    )
    session.add(key)
    session.flush()
    clients = [
        Client(
            name=f"client-{new_id()}",
            execution=execution,
            base_model=BaseModelRef(source="builtin", id="tiny_llama").model_dump(),
            architecture=Architecture(family="llama", num_layers=4, hidden_size=128).model_dump(),
            lora_rank=4,
            lora_alpha=8.0,
            task=TaskKind.FILL_IN,
            **(DECLARED if execution is Execution.REMOTE else {"dataset": _dataset(index)}),
            enrolment_key_id=key.id,
        )
        for index in range(count)
    ]
    session.add_all(clients)
    session.flush()
    return clients


def add_run(session: Session, clients: list[Client], status: RunStatus, num_rounds: int = 1) -> Run:
    user = add_user(session)
    federation = Federation(
        name=f"federation-{new_id()}",
        description="",
        global_rank=4,
        visibility=Visibility.PLATFORM,
        created_by=user.id,
        clients=clients,
    )
    session.add(federation)
    session.flush()
    run = Run(
        federation_id=federation.id,
        strategy=LocalOnlyParams().model_dump(mode="json"),
        training=TrainingConfig(local_steps=2, max_eval_examples=2).model_dump(mode="json"),
        num_rounds=num_rounds,
        seed=0,
        status=status,
        created_by=user.id,
    )
    session.add(run)
    session.flush()
    return run


def add_open_run(
    session: Session, num_clients: int = 2, execution: Execution = Execution.MANAGED
) -> OpenRun:
    """A running run in round 1, whose updates all wait; committed."""
    clients = add_clients(session, num_clients, execution)
    run = add_run(session, clients, RunStatus.RUNNING)
    run.round_number = 1
    if session.get(Blob, "0" * 64) is None:
        session.add(Blob(sha256="0" * 64, size_bytes=0, media_type="application/octet-stream"))
    round_ = Round(run_id=run.id, round_number=1, kind=RoundKind.TRAIN, status=RoundStatus.OPEN)
    session.add(round_)
    session.flush()
    updates = [
        ClientUpdate(round_id=round_.id, client_id=client.id, plan_sha256="0" * 64)
        for client in clients
    ]
    session.add_all(updates)
    session.commit()
    return OpenRun(run.id, round_.id, [c.id for c in clients], [u.id for u in updates])
