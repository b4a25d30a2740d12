"""One federation as one file: what the platform says of it."""

from uuid import UUID

from pydantic import Field

from backend.contracts.common import Answer

ARCHIVE_MEDIA_TYPE = "application/zip"


class ImportedFederation(Answer):
    """What an archive has become on this platform."""

    federation_id: UUID
    name: str
    is_copy: bool = Field(
        description="something of it is here already, so everything got new ids: its runs can be "
        "looked at and cloned, but not resumed"
    )
    num_clients: int = Field(description="each needs a new credential before it can do anything")
    num_runs: int
    num_blobs: int
    size_bytes: int = Field(description="of its blobs")
