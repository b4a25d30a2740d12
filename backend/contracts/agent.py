"""What a remote client's agent and the platform say to each other.

Data, base model, private factors, optimizer state and adapter have no place in any of these
messages; tensors travel beside them as safetensors.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field

from backend.contracts.common import Answer, Name, Request
from backend.contracts.enums import RoundKind
from backend.contracts.metrics import ClientMetrics
from backend.contracts.privacy import NO_PRIVACY, PrivacySettings
from backend.contracts.signatures import SIGNATURE_INVALID, SIGNATURE_MISSING, Signature
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig

SHARED_MEDIA_TYPE = "application/vnd.safetensors"

PIECE_MEDIA_TYPE = "application/offset+octet-stream"
PIECE_BYTES = 4 * 2**20
"""Longer shared matrices travel in pieces of this size: a broken connection costs one at most."""

UPLOAD_OFFSET = "upload_offset"
"""Code of the 409 that says: another number of bytes is here; ask for the state and go on."""

LEASE_LOST = "lease_lost"
"""Code of the 409 that says: this attempt counts no more, drop it and ask for work again."""

UPDATE_LATE = "update_late"
"""Code of the 409 that says: the round closed without this update; drop it and ask for work."""

UPDATE_REFUSALS = frozenset(
    {
        "shared_refused",
        "update_wrong_kind",
        "update_wrong_client",
        "update_wrong_round",
        "update_wrong_weight",
        SIGNATURE_MISSING,
        SIGNATURE_INVALID,
    }
)
"""Codes of the 422 that says: these bytes are not this client's update of this round."""

MAX_STEPS = 2**31 - 1
MAX_FENCE = 2**31 - 1

Fence = Annotated[
    int, Field(ge=1, le=MAX_FENCE, description="number of the attempt, as the lease gave it")
]
SessionNumber = Annotated[
    int, Field(ge=1, le=2**31 - 1, description="of a round's session of secure aggregation")
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LeaseRequest(Request):
    """An agent asks for work."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"agent": "gpu-box-1"}]})

    agent: Name = Field("agent", description="name of the machine or process, for people")


class SecureTask(Answer):
    """The session of secure aggregation in which an update has to be masked."""

    session: SessionNumber
    threshold: int = Field(description="so many clients must tell shares before the sum opens")


class Work(Answer):
    """One client update to do, and until when it belongs to the agent that asked."""

    client_update_id: UUID
    fence: int
    lease_seconds: float = Field(description="without a heartbeat for this long it is given up")
    run_id: UUID
    round_number: int
    num_rounds: int = Field(description="training rounds of the run")
    kind: RoundKind
    kept_round_number: int = Field(
        0, description="the client's last accepted round, whose private state it goes on from"
    )
    strategy: Params
    training: TrainingConfig
    privacy: PrivacySettings = NO_PRIVACY
    secure: SecureTask | None = Field(
        None, description="set in training rounds with secure aggregation: send a masked update"
    )
    plan_sha256: str
    plan_size_bytes: int


class Lease(Answer):
    """The oldest update that waits for this client, if there is one."""

    work: Work | None


class Heartbeat(Request):
    """A sign of life from within a round."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fence": 1,
                    "stage": "training",
                    "step": 12,
                    "num_steps": 40,
                    "values": {"train_loss": 1.5},
                }
            ]
        }
    )

    fence: Fence
    stage: str = Field(min_length=1, max_length=40, pattern=r"^[a-z_]+$", examples=["training"])
    step: int = Field(ge=0, le=MAX_STEPS)
    num_steps: int = Field(ge=0, le=MAX_STEPS)
    values: ClientMetrics = Field(
        {}, description="measured at this step, such as the loss; empty: nothing new"
    )


class SharedReceipt(Answer):
    """The shared matrices arrived; name them in the result."""

    sha256: str
    size_bytes: int


class UploadStart(Request):
    """Announces shared matrices that come in pieces, or asks how far the same upload got."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"fence": 1, "sha256": "0" * 64, "size_bytes": 20_000_000}]}
    )

    fence: Fence
    sha256: Sha256 = Field(description="of the whole")
    size_bytes: int = Field(ge=1, le=2**40, description="of the whole")


class DirectUpload(Answer):
    """An address of the blob store: PUT the whole there, then complete the upload."""

    url: str = Field(description="needs no credential and is as secret as one; send none with it")
    expires_at: datetime


class UploadState(Answer):
    """How far an upload is; send the next piece from `offset` on."""

    sha256: str
    size_bytes: int
    offset: int = Field(description="bytes that are here; `size_bytes`: only `complete` is missing")
    piece_bytes: int = Field(description="a piece may be this long, or shorter")
    direct: DirectUpload | None = Field(
        None,
        description="instead of pieces, where the platform's blob store takes uploads by itself",
    )


class AgentResult(Request):
    """What a finished attempt hands in, after its shared matrices were uploaded."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"fence": 1, "metrics": {"sparsity": 0.75}, "shared_sha256": "0" * 64}]
        }
    )

    fence: Fence
    metrics: ClientMetrics = Field({}, description="of the whole round")
    shared_sha256: Sha256 | None = Field(
        None, description="of the uploaded matrices; empty in the deliver round, which sends none"
    )
    signature: Signature | None = Field(
        None, description="of the client's key over `update_text`, where it has one"
    )


class AgentFailure(Request):
    """Why the client cannot do its part; another try would end in the same way."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"fence": 1, "reason": "The device has too little memory."}]
        }
    )

    fence: Fence
    reason: str = Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")


class AgentRelease(Request):
    """The agent was told to stop: somebody else, or a later start, may do the update."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"fence": 1}]})

    fence: Fence


class ResultReceipt(Answer):
    """The result counts."""

    is_repeated: bool = Field(description="the same result was taken before; nothing changed")
