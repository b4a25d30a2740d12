"""The server's side of one round of secure aggregation: it carries messages, and opens one sum."""

from collections.abc import Mapping

import numpy as np

from worker.federated.privacy.keystream import KEY_BYTES
from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_aggregation.fixed_point import Residues
from worker.federated.privacy.secure_aggregation.masks import expand, pairwise_mask, public_half
from worker.federated.privacy.secure_aggregation.messages import (
    EncryptedShares,
    MaskedInput,
    PublicKeys,
    RevealedShares,
)
from worker.federated.privacy.secure_aggregation.shamir import Share, combine


class SecureServer:
    """Takes messages in, in the order of `messages`, and never holds more than their sum.

    Args:
        threshold: how many clients must answer in every step.
        round_tag: of run and round.
        num_values: length of every input.
    """

    def __init__(self, threshold: int, round_tag: str, num_values: int) -> None:
        self._threshold = threshold
        self._tag = round_tag
        self._keys: dict[str, PublicKeys] = {}
        self._shares: dict[str, Mapping[str, bytes]] = {}
        self._survivors: list[str] = []
        self._revealed: dict[str, RevealedShares] = {}
        self._sum: Residues = np.zeros(num_values, np.uint32)

    def add_keys(self, keys: PublicKeys) -> None:
        """Step 1.

        Raises:
            ProtocolError: this client's keys came before.
        """
        _once(keys.client_id, self._keys, "keys")
        self._keys[keys.client_id] = keys

    def roster(self) -> list[PublicKeys]:
        """What goes down after step 1: all keys, in order of client id."""
        return [self._keys[client_id] for client_id in sorted(self._keys)]

    def add_shares(self, shares: EncryptedShares) -> None:
        """Step 2.

        Raises:
            ProtocolError: from outside, for the second time, or not one for every other client.
        """
        _once(shares.client_id, self._shares, "shares")
        if shares.ciphertexts.keys() != self._keys.keys() - {shares.client_id}:
            raise ProtocolError(
                f"The shares of {shares.client_id!r} are not one for every other client of the "
                "round: start the round anew."
            )
        self._shares[shares.client_id] = shares.ciphertexts

    def inbox(self, client_id: str) -> dict[str, bytes]:
        """What goes down to a client after step 2: ciphertexts by sender."""
        return {
            sender: ciphertexts[client_id]
            for sender, ciphertexts in self._shares.items()
            if sender != client_id
        }

    def add_masked(self, masked: MaskedInput) -> None:
        """Step 3: adds one input to the running sum.

        Raises:
            ProtocolError: from a client that sent no shares, for the second time, or misshaped.
        """
        _once(masked.client_id, self._survivors, "masked input")
        if masked.client_id not in self._shares or masked.values.shape != self._sum.shape:
            raise ProtocolError(
                f"The masked input of {masked.client_id!r} is of shape {masked.values.shape} "
                f"instead of {self._sum.shape}, or it sent no shares before: refused."
            )
        self._sum += masked.values
        self._survivors.append(masked.client_id)

    def survivors(self) -> list[str]:
        """What goes down after step 3: whose input is in the sum.

        Raises:
            ProtocolError: fewer than the threshold.
        """
        if len(self._survivors) < self._threshold:
            raise ProtocolError(
                f"Inputs of {len(self._survivors)} clients arrived, the threshold is "
                f"{self._threshold}: the sum stays closed. Start the round anew."
            )
        return sorted(self._survivors)

    def add_revealed(self, revealed: RevealedShares) -> None:
        """Step 4.

        Raises:
            ProtocolError: this client told its shares before.
        """
        _once(revealed.client_id, self._revealed, "revealed shares")
        self._revealed[revealed.client_id] = revealed

    def total(self) -> Residues:
        """The sum of the survivors' values, (num_values,).

        Raises:
            ProtocolError: fewer than the threshold answered, or what they told opens nothing.
        """
        survivors = self.survivors()
        total = self._sum.copy()
        for client_id in survivors:
            told = [reply.own_seeds.get(client_id) for reply in self._revealed.values()]
            total -= expand(self._secret(client_id, told), len(total))
        for client_id in sorted(self._shares.keys() - set(survivors)):
            told = [reply.mask_keys.get(client_id) for reply in self._revealed.values()]
            mask_key = self._secret(client_id, told)
            if public_half(mask_key) != self._keys[client_id].mask_key:
                raise ProtocolError(
                    f"The shares of the missing {client_id!r} give another key than it announced: "
                    "start the round anew."
                )
            for other_id in survivors:
                total += pairwise_mask(
                    mask_key,
                    self._keys[other_id].mask_key,
                    own_id=client_id,
                    other_id=other_id,
                    tag=self._tag,
                    count=len(total),
                )
        return total

    def _secret(self, client_id: str, told: list[Share | None]) -> bytes:
        shares = [share for share in told if share is not None]
        if len(shares) < self._threshold:
            raise ProtocolError(
                f"{len(shares)} clients told their share for {client_id!r}, the threshold is "
                f"{self._threshold}: the sum stays closed. Start the round anew."
            )
        return combine(shares[: self._threshold], KEY_BYTES)


def _once(client_id: str, known: Mapping[str, object] | list[str], what: str) -> None:
    if client_id in known:
        raise ProtocolError(f"{client_id!r} sent its {what} twice in one round: keep the first.")
