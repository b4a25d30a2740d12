"""What can go wrong between clients and server."""

from worker.federated.errors import FederatedError


class ProtocolError(FederatedError):
    """A message does not follow the protocol, or too few clients stayed: the round opens nothing.

    No message of the protocol is ever sent twice with another content: after an error the round
    starts anew, with fresh keys.
    """


class ValueRangeError(ProtocolError):
    """A number is larger than clients and server have agreed on."""
