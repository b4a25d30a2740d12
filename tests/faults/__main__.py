"""`python -m tests.faults`: injects faults until there are enough, and says what survived."""

import tempfile
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from tests.faults.campaign import Campaign
from tests.faults.site import open_site


def main(
    faults: Annotated[int, typer.Option(min=1, help="At least so many.")] = 200,
    seed: Annotated[int | None, typer.Option(help="Only the faults of this seed.")] = None,
    first_seed: Annotated[int, typer.Option(help="Seeds count up from here.")] = 0,
    logs: Annotated[bool, typer.Option(help="Show the programs' logs at the end.")] = False,
) -> None:
    """Injects faults into a real platform; ends with status 1 unless all are survived."""
    with (
        tempfile.TemporaryDirectory(prefix="fedbraid-") as folder,
        open_site(Path(folder).resolve()) as site,
    ):
        campaign = Campaign(site, typer.echo)
        seeds = count(first_seed) if seed is None else [seed]
        done = campaign.run(seeds, faults)
        if logs:
            typer.echo(site.log())
    failed = [repetition for repetition in done if repetition.problems]
    for repetition in failed:
        typer.echo(f"again: make test-faults ARGS='--seed {repetition.seed} --logs'", err=True)
    injected = sum(repetition.num_injected for repetition in done)
    survived = injected - sum(repetition.num_injected for repetition in failed)
    typer.echo(f"{injected} faults injected, {survived} survived")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
