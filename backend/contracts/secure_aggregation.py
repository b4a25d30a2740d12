"""What a client and the platform tell each other so that only a sum of updates is ever opened.

Bytes travel as base64. All of it may be read by the platform: public keys, shares that are
encrypted for their recipients, and in the end one share per client of one of its two secrets.
The protocol: `docs/how-to/privacy.md`.
"""

from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field

from backend.contracts.agent import Fence, SessionNumber
from backend.contracts.common import Answer, Request
from backend.contracts.enums import SecureStep

MAX_PARTIES = 10_000

SESSION_OVER = "secure_session_over"
"""Code of the 409 that says: the session asks for this no more; forget its secrets."""

SECURE_REFUSALS = frozenset({"secure_wrong_step", "secure_said_before", "secure_wrong_names"})
"""Codes of refusals that say: this client cannot go on in this session."""

_SOMEBODY = "0192b4c0-7d7a-7c43-9f35-0f6f3f6d2a11"
_KEY = "A" * 43 + "="

PublicKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$", description="32 bytes")]
SealedShares = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=300, description="for one recipient")
]
ShareText = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=100, description="value of a share")
]


class SecureKeys(Request):
    """Step 1: a client's public keys of this session."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"fence": 1, "session": 1, "cipher_key": _KEY, "mask_key": _KEY}]
        }
    )

    fence: Fence
    session: SessionNumber
    cipher_key: PublicKey = Field(description="protects shares on their way")
    mask_key: PublicKey = Field(description="agrees on pairwise masks")


class SecureShares(Request):
    """Step 2: shares of a client's two secrets, one encrypted pair for every other client."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"fence": 1, "session": 1, "ciphertexts": {_SOMEBODY: "AAAA"}}]
        }
    )

    fence: Fence
    session: SessionNumber
    ciphertexts: dict[UUID, SealedShares] = Field(max_length=MAX_PARTIES)


class SecureReveal(Request):
    """Step 4: for every client whose shares came, the share of one of its two secrets."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"session": 1, "own_seeds": {_SOMEBODY: "AAAA"}, "mask_keys": {}}]
        }
    )

    session: SessionNumber
    own_seeds: dict[UUID, ShareText] = Field(
        max_length=MAX_PARTIES, description="of those whose masked update arrived"
    )
    mask_keys: dict[UUID, ShareText] = Field(
        max_length=MAX_PARTIES, description="of those who went missing"
    )


class SecureMember(Answer):
    """One client of the roster."""

    client_id: UUID
    cipher_key: str
    mask_key: str
    num_examples: int = Field(description="its weight in the sum")


class SecureState(Answer):
    """How far the session is, with what this client needs for its next message."""

    session: int
    step: SecureStep
    is_open: bool = Field(description="false: the run has failed, and may be resumed")
    threshold: int
    roster: list[SecureMember] = Field([], description="in step `shares`: who announced keys")
    inbox: dict[UUID, str] = Field({}, description="from step `inputs` on: shares by sender")
    survivors: list[UUID] = Field(
        [], description="in step `unmasking`: whose masked update arrived"
    )


def session_tag(run_id: UUID, round_number: int, session: int) -> str:
    """What binds every key of a session to it."""
    return f"{run_id}\x1f{round_number}\x1f{session}"
