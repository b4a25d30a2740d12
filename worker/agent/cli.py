"""`python -m worker.agent`: joins a federation with a machine of one's own.

Only outbound calls, and over TLS unless the platform is on the same machine.
"""

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from pydantic import SecretStr

from backend.api_client import ApiClient, ApiClientError
from backend.contracts.clients import ClientRegister
from backend.contracts.enums import Execution, TaskKind
from worker.agent.agent import Agent
from worker.agent.connection import (
    ApiUrl,
    CredentialFile,
    PlainHttp,
    check_url,
    one_line_errors,
    read_credential,
)
from worker.agent.errors import AgentError
from worker.agent.keys import registered_signer, rotate_key
from worker.agent.patience import patiently
from worker.agent.premises import open_premises
from worker.agent.refusing import refuse, take_part
from worker.agent.store import StateFolder
from worker.devices import configure_torch
from worker.private_files import write_file

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Take part in a federation with your own machine: data, model and adapter stay here.",
)
app.command()(refuse)
app.command()(take_part)
app.command()(rotate_key)

Model = Annotated[
    str, typer.Option(help="Folder of a checkpoint, builtin:NAME, or id of the Hugging Face hub.")
]
Data = Annotated[
    str,
    typer.Option(
        help="A .jsonl, .csv or .parquet file, a folder of pictures, hub:ID, or "
        "builtin:TASK[,seed=0][,num_train=64][,num_validation=32][,num_test=128]."
    ),
]


@app.command()
def register(
    api_url: ApiUrl,
    credential_file: CredentialFile,
    name: Annotated[str, typer.Option(help="Of the client, as everybody will see it.")],
    model: Model,
    data: Data,
    task: Annotated[TaskKind, typer.Option(help="What the model learns to do.")],
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")],
    enrolment_key: Annotated[
        str,
        typer.Option(
            envvar="FEDBRAID_ENROLMENT_KEY",
            prompt="Enrolment key",
            hide_input=True,
            help="From an operator; asked for when it is not given.",
        ),
    ],
    lora_alpha: Annotated[
        float | None, typer.Option(help="Scale of the adapter; default: twice the rank.")
    ] = None,
    allow_http: PlainHttp = False,
) -> None:
    """Join the platform: tells it shapes and the number of training rows, nothing else."""
    with one_line_errors():
        check_url(api_url, allow_http)
        if credential_file.exists():
            raise AgentError(
                f"--credential-file {credential_file} exists already. Choose another name, so that "
                "no credential is lost."
            )
        premises = open_premises(model, data, task)
        request = ClientRegister(
            enrolment_key=SecretStr(enrolment_key),
            name=name,
            execution=Execution.REMOTE,
            base_model=premises.public_model(),
            architecture=premises.architecture,
            modules=premises.declared_modules(),
            num_examples=len(premises.data.train),
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            task=task,
        )
        write_file(credential_file, b"")  # an unwritable place is found before the key is used
        try:
            with ApiClient(api_url) as api:
                registered = api.clients.register(request)
        except ApiClientError:
            credential_file.unlink()
            raise
        write_file(credential_file, registered.credential.encode() + b"\n")
        typer.echo(
            f"{registered.client.name} is registered ({registered.client.id}); its credential is "
            f"in {credential_file}. Now start: python -m worker.agent run --help"
        )


@app.command()
def run(
    api_url: ApiUrl,
    credential_file: CredentialFile,
    model: Model,
    data: Data,
    state: Annotated[
        Path, typer.Option(help="Folder for private factors and adapters. Keep it between rounds.")
    ],
    threads: Annotated[int, typer.Option(min=1, help="CPU cores that training may use.")] = 1,
    name: Annotated[
        str, typer.Option(help="Of this agent, as the run page shows it to everybody.")
    ] = "agent",
    checkpoint_seconds: Annotated[
        float,
        typer.Option(min=0, help="How often to save how far a round is, to go on after a crash."),
    ] = 60.0,
    max_epsilon: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Take part only in runs with differential privacy whose whole epsilon is at most "
            "this. Without it: in any run.",
        ),
    ] = None,
    only_masked: Annotated[
        bool,
        typer.Option(
            "--only-masked",
            help="Take part only in runs with secure aggregation, where nobody sees an update of "
            "this client alone.",
        ),
    ] = False,
    sign: Annotated[
        bool,
        typer.Option(
            "--sign",
            help="Sign what is handed in, with a key that is made in the state folder. From then "
            "on the platform takes nothing unsigned of this client.",
        ),
    ] = False,
    allow_http: PlainHttp = False,
) -> None:
    """Train for the client whenever a run asks, until Ctrl-C."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every heartbeat
    with one_line_errors():
        check_url(api_url, allow_http)
        os.umask(0o077)
        configure_torch(threads)
        stop = _stop_on_signals()
        with ApiClient(api_url, read_credential(credential_file)) as api:
            client = patiently(stop, api.clients.me)
            store = StateFolder(state, client.id)
            with store.locked():
                premises = open_premises(model, data, client.task)
                sign = sign or store.signing_key.exists()
                agent = Agent(
                    api=api,
                    name=name,
                    spec=premises.spec(client),
                    premises=premises,
                    store=store,
                    stop=stop,
                    checkpoint_seconds=checkpoint_seconds,
                    max_epsilon=max_epsilon,
                    only_masked=only_masked,
                    signer=registered_signer(api, store.signing_key) if sign else None,
                )
                logging.getLogger(__name__).info("%s waits for work", client.name)
                agent.run()


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return stop
