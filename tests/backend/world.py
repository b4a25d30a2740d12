"""Two tenants with everything that an address can name, and people inside and outside of one."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from backend.auth.service import issue_credential, issue_session
from backend.contracts.agent import SHARED_MEDIA_TYPE
from backend.contracts.enums import Execution, Role
from backend.contracts.federations import Visibility
from backend.db.models import (
    Client,
    ClientUpdate,
    Comparison,
    EnrolmentKey,
    Federation,
    FederationMember,
    Run,
    User,
)
from backend.storage import BlobStore, save_blob
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller, add_user


@dataclass
class World:
    """One tenant with everything that an address can name, and people inside and outside."""

    session: Session
    ids: dict[str, UUID]
    users: dict[str, User]
    clients: dict[str, Client]

    def caller(self, http: Caller, name: str) -> Caller:
        """With a fresh token: some calls end the one that they are made with."""
        if name == "anonymous":
            return http
        if name in self.clients:
            token = issue_credential(self.session, self.clients[name])
        else:
            until = datetime.now(UTC) + timedelta(hours=1)
            token = issue_session(self.session, self.users[name], until)[1]
        self.session.commit()
        return http.with_token(token)


def make_world(session: Session, blob_store: BlobStore) -> World:
    """Adds the rows; committed."""
    own = add_open_run(session, 1, Execution.REMOTE)
    other = add_open_run(session, 1, Execution.REMOTE)
    users = {role.value: add_user(session, role) for role in Role}
    users |= {
        f"foreign {role.value}": add_user(session, role) for role in (Role.VIEWER, Role.OPERATOR)
    }
    run = session.get_one(Run, own.run_id)
    federation = session.get_one(Federation, run.federation_id)
    federation.visibility = Visibility.MEMBERS
    session.add_all(
        FederationMember(federation_id=federation.id, user_id=users[role.value].id, role=role)
        for role in (Role.VIEWER, Role.OPERATOR)
    )
    plan = save_blob(session, blob_store, b"a plan", SHARED_MEDIA_TYPE)
    session.get_one(ClientUpdate, own.update_ids[0]).plan_sha256 = plan.sha256
    arm = {"name": "local", "strategy": run.strategy}
    comparison = Comparison(
        federation_id=federation.id, name="c", arms=[arm], seeds=[0], training=run.training,
        num_rounds=1, created_by=users["operator"].id,
    )  # fmt: skip
    key = EnrolmentKey(
        secret_hash="-", label="k", max_uses=1, created_by=users["operator"].id,
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    session.add_all([comparison, key])
    session.flush()
    session.add(
        Run(
            federation_id=federation.id, comparison_id=comparison.id, arm="local", seed=0,
            strategy=run.strategy, training=run.training, num_rounds=1, created_by=key.created_by,
        )
    )  # fmt: skip
    session.commit()
    ids = {
        "federation_id": federation.id,
        "run_id": own.run_id,
        "comparison_id": comparison.id,
        "client_id": own.client_ids[0],
        "update_id": own.update_ids[0],
        "key_id": key.id,
    }
    return World(session, ids, users, _clients(session, own, other))


def _clients(session: Session, own: OpenRun, other: OpenRun) -> dict[str, Client]:
    return {
        "client": session.get_one(Client, own.client_ids[0]),
        "foreign client": session.get_one(Client, other.client_ids[0]),
    }
