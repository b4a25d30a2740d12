"""How much a federation stores, how much it may, and how long it keeps what."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from backend.contracts.common import Answer, Request

QUOTA_EXCEEDED = "quota_exceeded"
"""Code of the 507 that says: the federation's blobs would take more than it may store."""

MAX_BYTES = 2**60


class BlobUse(StrEnum):
    """What a stored blob is for."""

    STATES = "states"  # of the server, the newest of each run
    PLANS = "plans"  # what clients received
    UPDATES = "updates"  # shared matrices that clients sent
    PRIVATE = "private"  # what managed clients keep between rounds
    ADAPTERS = "adapters"
    UPLOADS = "uploads"  # pieces on their way
    DATASETS = "datasets"  # that members uploaded
    PROBE_SETS = "probe_sets"  # the federation's own, and those that runs were made with


class StoredBytes(Answer):
    """Distinct blobs of one kind."""

    use: BlobUse
    num_blobs: int
    size_bytes: int


class StoragePolicy(Answer):
    """Limits of one federation; null: none."""

    quota_bytes: int | None = Field(description="bytes of all its blobs together")
    retention_days: float | None = Field(
        description="an ended run keeps plans, updates and private factors for so long; null: for "
        "ever"
    )
    retention_rounds: int = Field(description="the last rounds of each run keep theirs for ever")


class FederationStorage(Answer):
    """What a federation stores, and by which rules."""

    used_bytes: int = Field(description="of distinct blobs: one that several runs use counts once")
    uses: list[StoredBytes] = Field(description="by kind; a blob with two uses counts in both")
    policy: StoragePolicy = Field(description="what holds")
    own: "StoragePolicyChange" = Field(
        description="what is set for this federation; null: as the platform's settings say"
    )


class StoragePolicyChange(Request):
    """Limits of its own for a federation; null: as the platform's settings say."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={"examples": [{"quota_bytes": 50_000_000_000, "retention_days": 30}]},
    )

    quota_bytes: int | None = Field(None, ge=0, le=MAX_BYTES)
    retention_days: float | None = Field(None, ge=0, le=100_000, allow_inf_nan=False)
    retention_rounds: int | None = Field(None, ge=0, le=1_000_000)


FederationStorage.model_rebuild()
