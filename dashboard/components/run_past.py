"""What became of a run after its end: given up by retention, or brought here in an archive."""

from backend.contracts.runs import Run
from dashboard import session
from dashboard.components.formatting import moment_text


def may_resume(run: Run) -> bool:
    """False for imported copies: their states name the clients of the original."""
    return run.copied_from is None


def past_text(run: Run) -> str:
    """One or two sentences; empty: nothing became of it."""
    sentences = []
    if run.copied_from is not None:
        sentences.append(
            "This is an imported copy: it can be looked at, compared and copied, but not resumed."
        )
    if run.cleared_at is not None:
        moment = moment_text(run.cleared_at, session.viewer_zone())
        sentences.append(
            f"What its clients received and sent was given up on {moment}; its state, adapters and "
            "measured values stay."
        )
    return " ".join(sentences)
