"""`run --sign` and `rotate-key`: a client's signing key, here and at the platform."""

from pathlib import Path
from typing import Annotated

import typer

from backend.api_client import ApiClient
from backend.contracts.signatures import SigningKeyPut, rotation_text
from worker.agent.connection import (
    ApiUrl,
    CredentialFile,
    PlainHttp,
    check_url,
    one_line_errors,
    read_credential,
)
from worker.agent.errors import AgentError
from worker.agent.signing import Signer
from worker.agent.store import StateFolder


def registered_signer(api: ApiClient, path: Path) -> Signer:
    """The key in this file, made where there is none, and known to the platform.

    Raises:
        ApiClientError: the platform knows another key of this client.
    """
    signer = Signer.load(path)
    if signer is None:
        signer = Signer.fresh()
        signer.save(path)  # before the platform demands it
    api.clients.put_signing_key(SigningKeyPut(public_key=signer.public_key))
    return signer


def rotate_key(
    api_url: ApiUrl,
    credential_file: CredentialFile,
    state: Annotated[Path, typer.Option(help="The agent's state folder.")],
    allow_http: PlainHttp = False,
) -> None:
    """Replace the signing key by a new one, which the present one signs."""
    with one_line_errors():
        check_url(api_url, allow_http)
        with ApiClient(api_url, read_credential(credential_file)) as api:
            client = api.clients.me()
            store = StateFolder(state, client.id)
            with store.locked():
                present = Signer.load(store.signing_key)
                if present is None:
                    raise AgentError(
                        f"{store.signing_key} does not exist: there is no key to rotate. Start "
                        "the agent with --sign to make one."
                    )
                following = Signer.load(store.next_signing_key) or Signer.fresh()
                following.save(store.next_signing_key)  # kept if the answer is lost
                text = rotation_text(client.id, following.fingerprint)
                api.clients.put_signing_key(
                    SigningKeyPut(public_key=following.public_key, signature=present.sign(text))
                )
                store.next_signing_key.replace(store.signing_key)
    typer.echo(f"{client.name} signs with {following.fingerprint[:16]} from now on.")
