"""`python -m worker.merge`: base model and adapter as one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from worker.federated.adapters.merging import Precision, merge_adapter
from worker.federated.base_models import named_model
from worker.federated.errors import FederatedError

app = typer.Typer(add_completion=False)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder or downloaded archive of an adapter.")],
    model: Annotated[
        str,
        typer.Option(help="The client's base model: folder, builtin:NAME, or Hugging Face id."),
    ],
    output: Annotated[Path, typer.Option(help="Empty or new folder for the merged model.")],
    precision: Annotated[Precision, typer.Option(help="Of the written weights.")] = "as_stored",
) -> None:
    """Write the full weights W + (alpha / r) B A as safetensors; they load without PEFT."""
    try:
        merge_adapter(named_model(model), adapter, output, precision)
    except FederatedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"The merged model lies in {output}.")


if __name__ == "__main__":
    app(prog_name="fedbraid merge")
