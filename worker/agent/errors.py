"""What ends an agent, or a piece of its work, on purpose."""

from worker.federated.errors import FederatedError


class AgentError(Exception):
    """Something that the client's owner has to put right; the text says what."""


class StateMissingError(FederatedError):
    """What the client kept of an earlier round is gone, so it cannot do the next one."""


class PrivacyLimitError(FederatedError):
    """A run protects the client less than its owner demands."""


class MaskingError(FederatedError):
    """This client cannot take part in a sum behind masks; its message quotes none of its data."""


class LeaseLostError(Exception):
    """The run has ended, or another attempt took over: what is being computed counts no more."""


class AgentStoppingError(Exception):
    """This agent was asked to stop; the work goes back."""
