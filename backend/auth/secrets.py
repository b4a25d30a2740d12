"""Bearer secrets: 32 random bytes with a prefix that tells people (and scanners) what they hold.

Only their SHA-256 is stored. A plain hash is enough for 256 random bits, and looking the hash up
tells an attacker nothing through timing, since he cannot choose the hash of a guess.
"""

import hashlib
import secrets
from enum import StrEnum


class SecretKind(StrEnum):
    """The prefix of a secret."""

    SESSION = "fbs"  # a signed-in user
    PERSONAL = "fbp"  # a program that acts for a user
    CREDENTIAL = "fbc"  # a registered client
    TICKET = "fbt"  # becomes a session once, after a sign-in service confirmed who it is
    ENROLMENT = "fbe"  # allows clients to register


def new_secret(kind: SecretKind) -> str:
    """A fresh secret such as `fbs_...`; show it once and store `hash_secret` of it."""
    return f"{kind.value}_{secrets.token_urlsafe(32)}"


def hash_secret(secret: str) -> str:
    """What is stored and looked up: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
