"""What an agent keeps of a session of secure aggregation, in the client's own folder."""

from uuid import UUID

from pydantic import BaseModel, ConfigDict

from backend.contracts.secure_aggregation import SecureMember


class PartyFile(BaseModel):
    """Everything from which a killed agent says the same words again.

    Attributes:
        root: hexadecimal; every secret of the session follows from it. Empty once the shares are
            told: nobody needs it any more.
        roster: as it came first.
        inbox: as it came first.
        survivors: for which sum the shares are told; never for another one in this round.
    """

    model_config = ConfigDict(frozen=True)

    client_update_id: UUID
    run_id: UUID
    round_number: int
    fence: int
    session: int
    threshold: int
    root: str
    roster: list[SecureMember] | None = None
    inbox: dict[UUID, str] | None = None
    survivors: list[UUID] | None = None
