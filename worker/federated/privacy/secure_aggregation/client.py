"""One client's side of one round of secure aggregation.

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017,
figure 4, semi-honest: without signatures and consistency check. With x the encoded values and U the
clients that sent shares, a client sends

    y_i = x_i + PRG(b_i) + sum over j in U, j > i of PRG(s_ij) - sum over j < i of PRG(s_ij)

The pairwise masks cancel in the sum. If a client goes missing, the others give shares of its mask
key; the own mask b_i makes sure that a late y_i is still hidden from who then knows that key.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from worker.federated.privacy.keystream import KEY_BYTES
from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_aggregation.fixed_point import Residues
from worker.federated.privacy.secure_aggregation.masks import (
    agree,
    expand,
    pairwise_mask,
    public_half,
)
from worker.federated.privacy.secure_aggregation.messages import (
    EncryptedShares,
    MaskedInput,
    PublicKeys,
    RevealedShares,
)
from worker.federated.privacy.secure_aggregation.shamir import (
    SHARE_BYTES,
    RandomBytes,
    Share,
    split,
)

_NONCE = bytes(12)  # every key encrypts one message


class SecureClient:
    """Call `keys`, `share`, `mask` and `reveal` once each, in this order.

    A client that was stopped in between may be made again with the same `random` from its start,
    and called again with what came before; with `receive` in place of `mask` where that was sent.

    Args:
        client_id: of this client.
        threshold: how many clients must answer at the end; equal for all.
        round_tag: of run and round; keys of another round do not fit.
        random: where secrets come from; only tests replace it.
    """

    def __init__(
        self,
        client_id: str,
        threshold: int,
        round_tag: str,
        random: RandomBytes = secrets.token_bytes,
    ) -> None:
        self._id = client_id
        self._threshold = threshold
        self._tag = round_tag
        self._random = random
        self._cipher_key = random(KEY_BYTES)
        self._mask_key = random(KEY_BYTES)
        self._own_seed = random(KEY_BYTES)
        self._roster: dict[str, PublicKeys] = {}
        self._received: dict[str, tuple[Share, Share]] = {}
        self._revealed = False

    def keys(self) -> PublicKeys:
        """Step 1: the public keys of this round."""
        return PublicKeys(self._id, public_half(self._cipher_key), public_half(self._mask_key))

    def share(self, roster: Sequence[PublicKeys]) -> EncryptedShares:
        """Step 2: shares of the mask key and the own seed, one of each for every client.

        Raises:
            ProtocolError: too few clients, a name or key that comes twice, or this client's own
                keys are missing or changed.
        """
        by_id = {keys.client_id: keys for keys in roster}
        distinct = {key for keys in roster for key in (keys.cipher_key, keys.mask_key)}
        if len(by_id) < self._threshold:
            raise ProtocolError(
                f"{len(by_id)} clients take part, the threshold is {self._threshold}: wait for "
                "more clients, or lower the threshold."
            )
        if len(by_id) < len(roster) or len(distinct) < 2 * len(roster):
            raise ProtocolError("A client or a key came twice among the keys of this round.")
        if by_id.get(self._id) != self.keys():
            raise ProtocolError(f"The keys of {self._id!r} did not come back as they were sent.")
        self._roster = dict(sorted(by_id.items()))
        pieces = zip(
            self._roster,
            split(self._mask_key, self._threshold, len(by_id), self._random),
            split(self._own_seed, self._threshold, len(by_id), self._random),
            strict=True,
        )
        ciphertexts: dict[str, bytes] = {}
        for recipient, of_key, of_seed in pieces:
            if recipient == self._id:
                self._received[self._id] = (of_key, of_seed)
                continue
            text = of_key.value.to_bytes(SHARE_BYTES) + of_seed.value.to_bytes(SHARE_BYTES)
            cipher = self._cipher(recipient, sender=self._id, recipient=recipient)
            ciphertexts[recipient] = cipher.encrypt(_NONCE, text, None)
        return EncryptedShares(self._id, ciphertexts)

    def receive(self, inbox: Mapping[str, bytes]) -> None:
        """Opens the shares of the others; `mask` begins with it.

        Args:
            inbox: ciphertexts for this client, by sender.

        Raises:
            ProtocolError: too few senders, an unknown one, or shares that are not theirs.
        """
        senders = {self._id, *inbox}
        if len(senders) < self._threshold or not self._roster.keys() >= senders:
            raise ProtocolError(
                f"Shares came from {len(senders)} clients of {len(self._roster)}, the threshold is "
                f"{self._threshold}: the round has to start anew with more clients."
            )
        index = list(self._roster).index(self._id) + 1
        for sender in sorted(senders - {self._id}):
            self._received[sender] = self._open(sender, inbox[sender], index)

    def mask(self, values: Residues, inbox: Mapping[str, bytes]) -> MaskedInput:
        """Step 3: the values behind the own mask and one mask for each client that sent shares.

        Args:
            values: encoded, (num_values,).
            inbox: ciphertexts for this client, by sender.

        Raises:
            ProtocolError: too few senders, an unknown one, or shares that are not theirs.
        """
        self.receive(inbox)
        masked = values + expand(self._own_seed, len(values))
        for sender in sorted(self._received.keys() - {self._id}):
            masked += pairwise_mask(
                self._mask_key,
                self._roster[sender].mask_key,
                own_id=self._id,
                other_id=sender,
                tag=self._tag,
                count=len(values),
            )
        return MaskedInput(self._id, masked.astype(np.uint32, copy=False))

    def reveal(self, survivors: Collection[str]) -> RevealedShares:
        """Step 4: for each client one share, of its seed or, if it went missing, of its mask key.

        Never both, and never twice: with both, a single client's values could be opened.

        Raises:
            ProtocolError: asked again, too few survivors, or unknown ones.
        """
        if self._revealed:
            raise ProtocolError(f"{self._id!r} was asked for shares twice in one round: refused.")
        alive = set(survivors)
        if len(alive) < self._threshold or not self._received.keys() >= alive:
            raise ProtocolError(
                f"{len(alive)} inputs arrived, the threshold is {self._threshold}: the sum of so "
                "few clients stays closed. Start the round anew."
            )
        self._revealed = True
        return RevealedShares(
            self._id,
            own_seeds={c: seed for c, (_, seed) in self._received.items() if c in alive},
            mask_keys={c: key for c, (key, _) in self._received.items() if c not in alive},
        )

    def _open(self, sender: str, ciphertext: bytes, index: int) -> tuple[Share, Share]:
        cipher = self._cipher(sender, sender=sender, recipient=self._id)
        try:
            text = cipher.decrypt(_NONCE, ciphertext, None)
        except InvalidTag as error:
            raise ProtocolError(
                f"The shares of {sender!r} for {self._id!r} were changed on the way: start the "
                "round anew."
            ) from error
        of_key, of_seed = text[:SHARE_BYTES], text[SHARE_BYTES:]
        return Share(index, int.from_bytes(of_key)), Share(index, int.from_bytes(of_seed))

    def _cipher(self, other: str, *, sender: str, recipient: str) -> ChaCha20Poly1305:
        """One key per direction, so that a zero nonce never repeats under a key."""
        purpose = f"fedbraid shares\x1f{self._tag}\x1f{sender}\x1f{recipient}"
        return ChaCha20Poly1305(agree(self._cipher_key, self._roster[other].cipher_key, purpose))
