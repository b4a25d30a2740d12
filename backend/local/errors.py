"""What a person at the terminal can put right; each message is one line with its remedy."""


class LocalError(RuntimeError):
    """The platform cannot do this on this machine as things are."""


class EmbeddedServiceError(LocalError):
    """An embedded service cannot run here."""


class FolderInUseError(LocalError):
    """Another process works in this folder."""


class PortInUseError(LocalError):
    """Something else listens there."""


class ProgramFailedError(LocalError):
    """A program did not come up."""


class DemoError(LocalError):
    """The demo cannot go on."""
