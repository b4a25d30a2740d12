"""Enrolment keys, registration, and what is known of a client."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr

from backend.contracts.base_models import Architecture, BaseModelRef, Modules
from backend.contracts.common import Answer, Name, Request
from backend.contracts.datasets import BuiltinDataset, DatasetRef
from backend.contracts.enums import Execution, TaskKind
from backend.contracts.signatures import PublicKey


class EnrolmentKeyCreate(Request):
    """A key with which clients may register."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"label": "autumn pilot", "max_uses": 3}]}
    )

    label: Name
    max_uses: int = Field(1, ge=1, le=10_000)
    expires_in_hours: float = Field(24.0, gt=0, le=24 * 365)
    federation_id: UUID | None = Field(
        None, description="the federation that clients with this key join; empty: none yet"
    )
    requires_approval: bool = Field(
        False, description="clients wait until an operator approves each of them"
    )


class EnrolmentKey(Answer):
    """An enrolment key as listed; the secret is never shown again."""

    id: UUID
    label: str
    max_uses: int
    num_uses: int
    federation_id: UUID | None = None
    requires_approval: bool = False
    expires_at: datetime
    revoked_at: datetime | None
    created_at: datetime


class EnrolmentKeyCreated(Answer):
    """A fresh enrolment key with its secret, shown once."""

    key: EnrolmentKey
    secret: str


class ClientRegister(Request):
    """How a client joins the platform."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "enrolment_key": "fbe_...",
                    "name": "north-clinic",
                    "base_model": {"source": "builtin", "id": "tiny_llama"},
                    "lora_rank": 8,
                    "task": "fill_in",
                    "dataset": {"source": "builtin", "task": "arithmetic_fill_in", "num_train": 64},
                }
            ]
        }
    )

    enrolment_key: SecretStr
    name: Name
    execution: Execution = Execution.MANAGED
    base_model: BaseModelRef
    architecture: Architecture | None = Field(
        None,
        description="Shape of the base model. Filled in by the platform for built-in models and "
        "for folders it can read; required for hub ids.",
    )
    lora_rank: int = Field(ge=1, le=4096)
    lora_alpha: float | None = Field(
        None, gt=0, le=65536, description="Scale of the adapter; empty: twice the rank."
    )
    task: TaskKind
    dataset: BuiltinDataset | None = Field(
        None,
        description="A built-in data set; or upload one after registration. Not for remote "
        "clients: their data stay where they are.",
    )
    modules: Modules | None = Field(
        None,
        description="Remote clients only: shape of each adapted module by its role, such as "
        "`q` or `down`.",
    )
    num_examples: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="Remote clients only: number of training rows, the client's weight.",
    )
    public_key: PublicKey | None = Field(
        None,
        description="Remote clients only: Ed25519 key (base64 of 32 bytes) that signs its updates. "
        "Empty: unsigned, until one is registered with PUT /clients/me/signing-key.",
    )


class Client(Answer):
    """A participant as everyone may see it."""

    id: UUID
    name: str
    execution: Execution
    base_model: BaseModelRef
    architecture: Architecture
    lora_rank: int
    lora_alpha: float
    task: TaskKind
    dataset: DatasetRef | None = Field(description="empty for remote clients")
    modules: Modules | None = Field(None, description="as a remote client declared them")
    num_examples: int | None = Field(
        None, description="training rows, as a remote client declared them"
    )
    is_pending: bool = Field(
        False, description="waits for an operator's approval and takes part in nothing"
    )
    created_at: datetime
    last_seen_at: datetime | None


class ClientRegistered(Answer):
    """A new client with its own credential, shown once."""

    client: Client
    credential: str = Field(description="send it as `Authorization: Bearer ...`")
