"""What every command of the agent needs to speak to the platform."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError

from backend.api_client import ApiClientError
from worker.agent.errors import AgentError, AgentStoppingError
from worker.federated.errors import FederatedError

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

ApiUrl = Annotated[str, typer.Option(help="Root of the platform, such as https://fedbraid.org.")]
CredentialFile = Annotated[
    Path, typer.Option(help="Holds the client's credential; written by `register`.")
]
PlainHttp = Annotated[
    bool, typer.Option("--allow-http", help="Send the credential without TLS to another machine.")
]


def check_url(api_url: str, allow_http: bool) -> None:
    """Passes addresses to which a credential may be sent.

    Raises:
        AgentError: it is none, or would send the credential in clear to another machine.
    """
    address = urlsplit(api_url)
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise AgentError(f"--api-url {api_url!r} is no address such as https://fedbraid.org.")
    if address.scheme == "http" and address.hostname not in _LOOPBACK and not allow_http:
        raise AgentError(
            f"--api-url {api_url!r} would send the client's credential in clear. Use https://, or "
            "--allow-http on a network that you trust."
        )


def read_credential(path: Path) -> str:
    """The client's credential.

    Raises:
        AgentError: the file cannot be read or holds none.
    """
    try:
        credential = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise AgentError(
            f"--credential-file {path} cannot be read: {error.strerror}. Make it with `register`."
        ) from error
    if not credential.isascii() or not credential.startswith("fbc_"):
        raise AgentError(
            f"--credential-file {path} holds no credential (fbc_...). Make it with `register`."
        )
    return credential


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors that people can put right end the program with a sentence."""
    try:
        yield
    except AgentStoppingError:
        return
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        typer.echo(f"error: {where}: {first['msg']}", err=True)
        raise typer.Exit(1) from error
    except (AgentError, ApiClientError, FederatedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
