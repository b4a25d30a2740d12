"""`refuse` and `take-part`: what the client's owner says about one run."""

from typing import Annotated
from uuid import UUID

import typer

from backend.api_client import ApiClient
from worker.agent.connection import (
    ApiUrl,
    CredentialFile,
    PlainHttp,
    check_url,
    one_line_errors,
    read_credential,
)
from worker.agent.errors import AgentError

RunId = Annotated[UUID, typer.Option("--run", help="Id of the run; its page's address has it.")]


def refuse(
    api_url: ApiUrl,
    credential_file: CredentialFile,
    run: RunId,
    reason: Annotated[str, typer.Option(help="A sentence that everybody on the run page reads.")],
    allow_http: PlainHttp = False,
) -> None:
    """Stay out of one run from now on; what was handed in before counts."""
    with one_line_errors():
        check_url(api_url, allow_http)
        with ApiClient(api_url, read_credential(credential_file)) as api:
            refusal = api.clients.refuse(api.clients.me().id, run, reason)
    typer.echo(f"{refusal.client_name} does not take part in run {run}: {refusal.reason}")


def take_part(
    api_url: ApiUrl, credential_file: CredentialFile, run: RunId, allow_http: PlainHttp = False
) -> None:
    """Withdraw a refusal: before the run begins, or while it is paused or has failed."""
    with one_line_errors():
        check_url(api_url, allow_http)
        with ApiClient(api_url, read_credential(credential_file)) as api:
            client = api.clients.me()
            mine = api.clients.refusals(client.id)
            refusal = next((one for one in mine if one.run_id == run), None)
            if refusal is None:
                raise AgentError(f"--run {run}: {client.name} does not refuse this run.")
            api.clients.withdraw_refusal(client.id, refusal.id)
    typer.echo(f"{client.name} takes part in run {run} again.")
