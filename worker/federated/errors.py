"""What can go wrong in the core; every message names the field, the value and the remedy."""


class FederatedError(Exception):
    """Root of all errors that the core raises on purpose; its text may be shown to a user."""


class InvalidConfigError(FederatedError):
    """A setting is out of its range or contradicts another one."""


class ProbeTextError(InvalidConfigError):
    """A public probe text cannot be read; the message quotes it, and nothing of a client's data."""


class UnsupportedModelError(FederatedError):
    """A base model has a shape or family that the core cannot adapt."""


class WireError(FederatedError):
    """Bytes are not a message of FedBraid: broken, truncated, too large or of another kind."""


class InvalidUpdateError(FederatedError):
    """Tensors from the other side are missing, unknown, misshaped or of the wrong type."""


class UpdateTooLargeError(InvalidUpdateError):
    """A client's change is longer than its run allows."""


class NonFiniteError(FederatedError):
    """A tensor or a loss holds NaN or infinity."""


class OutOfMemoryError(FederatedError):
    """The device has too little memory for these settings; the message names smaller ones."""
