"""The agent as it is, but less patient, so that a test does not wait for it."""

from worker.agent import agent, patience
from worker.agent.cli import app

if __name__ == "__main__":
    agent.POLL_SECONDS = 0.2
    patience.FIRST_WAIT_SECONDS = 0.2
    patience.LONGEST_WAIT_SECONDS = 1.0
    app(prog_name="agent")
