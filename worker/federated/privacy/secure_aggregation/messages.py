"""What clients and server tell each other in one round of secure aggregation, in this order.

1. `PublicKeys` up; all of them go down to everybody.
2. `EncryptedShares` up; each client gets those that are for it. The server cannot read them.
3. `MaskedInput` up, which looks uniformly random.
4. The names of those whose input arrived go down; `RevealedShares` up.

A client that stays away before step 3 is left out of the sum; one that leaves after step 3 is in
it, as long as a threshold of clients answers in step 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.federated.privacy.secure_aggregation.fixed_point import Residues
from worker.federated.privacy.secure_aggregation.shamir import Share


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """One client's public halves of two X25519 pairs, fresh in every round, 32 bytes each."""

    client_id: str
    cipher_key: bytes  # protects shares on their way through the server
    mask_key: bytes  # agrees on pairwise masks


@dataclass(frozen=True, slots=True)
class EncryptedShares:
    """Shares of one client's two secrets, each readable by its recipient only."""

    client_id: str
    ciphertexts: Mapping[str, bytes]  # by recipient


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """One client's values behind its masks."""

    client_id: str
    values: Residues  # (num_values,)


@dataclass(frozen=True, slots=True)
class RevealedShares:
    """What one client tells so that the sum can be opened: for each other, one of two shares."""

    client_id: str
    own_seeds: Mapping[str, Share]  # of those whose input arrived
    mask_keys: Mapping[str, Share]  # of those who went missing
