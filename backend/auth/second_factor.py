"""Time-based one-time codes (RFC 6238) and recovery codes."""

import secrets
import time

import pyotp

from backend.auth.secrets import hash_secret

STEP_SECONDS = 30
TOLERATED_STEPS = 1  # clocks differ, and people type slowly
NUM_RECOVERY_CODES = 8


def new_secret() -> str:
    """A fresh secret, base32."""
    return pyotp.random_base32()


def address_of(secret: str, username: str) -> str:
    """The otpauth:// address that authenticator apps read as a QR code."""
    return pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name="FedBraid")


def matching_step(
    secret: str, code: str, last_step: int | None, now: float | None = None
) -> int | None:
    """The time step whose code this is; None for a wrong, an old or an already used one.

    Args:
        secret: base32.
        code: six digits.
        last_step: the step of the last code that was taken; it and older ones are refused, so
            that nobody who watched a code being typed can use it again.
        now: seconds since 1970; None: now.
    """
    current = int((time.time() if now is None else now) // STEP_SECONDS)
    totp = pyotp.TOTP(secret, interval=STEP_SECONDS)
    for step in range(current - TOLERATED_STEPS, current + TOLERATED_STEPS + 1):
        is_new = last_step is None or step > last_step
        if is_new and secrets.compare_digest(totp.at(step * STEP_SECONDS), code):
            return step
    return None


def new_recovery_codes() -> tuple[list[str], list[str]]:
    """Codes to show once, and the hashes to keep."""
    codes = [f"{secrets.token_hex(4)}-{secrets.token_hex(4)}" for _ in range(NUM_RECOVERY_CODES)]
    return codes, [hash_secret(code) for code in codes]
