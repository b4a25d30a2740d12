"""`python -m worker.agent`."""

from worker.agent.cli import app

app(prog_name="python -m worker.agent")
