"""What a remote client's agent calls; needs the client's credential as token."""

import hashlib
from collections.abc import Iterator
from uuid import UUID

from backend.api_client.transport import Transport
from backend.contracts.agent import (
    PIECE_BYTES,
    PIECE_MEDIA_TYPE,
    SHARED_MEDIA_TYPE,
    AgentFailure,
    AgentRelease,
    AgentResult,
    Heartbeat,
    Lease,
    LeaseRequest,
    ResultReceipt,
    SharedReceipt,
    UploadStart,
    UploadState,
    Work,
)
from backend.contracts.secure_aggregation import (
    SecureKeys,
    SecureReveal,
    SecureShares,
    SecureState,
)


class AgentWork:
    """`/agent`: work that is leased, done on the client's premises, and handed in.

    An `ApiError` with the code `contracts.agent.LEASE_LOST` says that an attempt counts no more.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def lease(self, agent: str) -> Work | None:
        """The oldest update that waits for this client, now leased to the caller."""
        return self._transport.post("/agent/lease", Lease, LeaseRequest(agent=agent)).work

    def stream_plan(self, client_update_id: UUID) -> Iterator[bytes]:
        """What the client loads in the round, chunk by chunk."""
        with self._transport.stream(f"/agent/updates/{client_update_id}/plan") as chunks:
            yield from chunks

    def heartbeat(self, client_update_id: UUID, beat: Heartbeat) -> None:
        """Keep the lease, and show how far the work is."""
        self._transport.call("POST", f"/agent/updates/{client_update_id}/heartbeat", beat)

    def upload_shared(self, client_update_id: UUID, fence: int, content: bytes) -> SharedReceipt:
        """Send the shared matrices; they count once `finish` names their hash.

        What is longer than a piece goes to the platform's blob store by itself where it may; else
        piece by piece, from where an earlier call for the same bytes broke off, in this process or
        another. Sending them twice is harmless.
        """
        if len(content) > PIECE_BYTES:
            return self._upload_long(client_update_id, fence, content)
        return self._transport.put_bytes(
            f"/agent/updates/{client_update_id}/shared?fence={fence}",
            SharedReceipt,
            content,
            SHARED_MEDIA_TYPE,
        )

    def _upload_long(self, client_update_id: UUID, fence: int, content: bytes) -> SharedReceipt:
        sha256 = hashlib.sha256(content).hexdigest()
        uploads = f"/agent/updates/{client_update_id}/uploads"
        start = UploadStart(fence=fence, sha256=sha256, size_bytes=len(content))
        state = self._transport.post(uploads, UploadState, start)
        is_sent = (
            state.direct is not None
            and state.offset == 0
            and self._transport.direct.put(state.direct.url, content, SHARED_MEDIA_TYPE)
        )
        while not is_sent and state.offset < len(content):
            piece = content[state.offset : state.offset + state.piece_bytes]
            headers = {"Content-Type": PIECE_MEDIA_TYPE, "Upload-Offset": str(state.offset)}
            state = self._transport.patch_bytes(
                f"{uploads}/content?sha256={sha256}&fence={fence}", UploadState, piece, headers
            )
        return self._transport.post(
            f"{uploads}/complete?sha256={sha256}&fence={fence}", SharedReceipt
        )

    def finish(self, client_update_id: UUID, result: AgentResult) -> ResultReceipt:
        """Hand a result in; doing it again with the same result is harmless."""
        return self._transport.post(
            f"/agent/updates/{client_update_id}/result", ResultReceipt, result
        )

    def secure_state(self, client_update_id: UUID) -> SecureState:
        """How far the session of a masked update is, with what its next message needs."""
        return self._transport.get(f"/agent/updates/{client_update_id}/secure", SecureState)

    def announce_keys(self, client_update_id: UUID, keys: SecureKeys) -> None:
        """Step 1 of a session; the same again is harmless."""
        self._transport.call("POST", f"/agent/updates/{client_update_id}/secure/keys", keys)

    def send_shares(self, client_update_id: UUID, shares: SecureShares) -> None:
        """Step 2 of a session; the same again is harmless."""
        self._transport.call("POST", f"/agent/updates/{client_update_id}/secure/shares", shares)

    def reveal(self, client_update_id: UUID, shares: SecureReveal) -> None:
        """Step 4 of a session; the same again is harmless."""
        self._transport.call("POST", f"/agent/updates/{client_update_id}/secure/reveal", shares)

    def fail(self, client_update_id: UUID, failure: AgentFailure) -> None:
        """Say that the client cannot do its part; this ends the run."""
        self._transport.call("POST", f"/agent/updates/{client_update_id}/failure", failure)

    def release(self, client_update_id: UUID, fence: int) -> None:
        """Give the update back, for a later start or another machine."""
        self._transport.call(
            "POST", f"/agent/updates/{client_update_id}/release", AgentRelease(fence=fence)
        )
