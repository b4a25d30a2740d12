"""TCP ports: whether one is free, and any that is."""

import socket
from collections.abc import Collection
from contextlib import ExitStack, closing

from backend.local.errors import PortInUseError


def require_port(host: str, port: int, setting: str) -> int:
    """The port, or any free one for 0.

    Args:
        host: address to listen on.
        port: 0 to 65535.
        setting: the environment variable that chooses the port, for the message.

    Raises:
        PortInUseError: something listens there, or this address is not of this machine.
    """
    try:
        return _bind(host, port)
    except OSError as error:
        raise PortInUseError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop what uses it, "
            f"or choose another port with {setting} (0: any free one)"
        ) from None


def prefer_port(host: str, port: int, setting: str) -> int:
    """The port when it is free, else any that is."""
    try:
        return require_port(host, port, setting)
    except PortInUseError:
        return require_port(host, 0, setting)


def free_port(host: str, avoid: Collection[int] = ()) -> int:
    """Any free port but those to avoid: free now, and soon to be listened on by others."""
    with ExitStack() as held:
        while True:
            # What was drawn and is to be avoided stays bound, so that it is not drawn again.
            drawn = held.enter_context(socket.create_server((host, 0)))
            port: int = drawn.getsockname()[1]
            if port not in avoid:
                return port


def _bind(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        # As servers do: connections of an earlier one that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        bound: int = probe.getsockname()[1]
    return bound
