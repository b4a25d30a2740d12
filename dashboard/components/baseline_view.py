"""How the clients of a run fare against training alone, and what that says."""

import math
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import streamlit as st

from backend.contracts.clients import Client
from backend.contracts.runs import Run
from dashboard.components import charts
from dashboard.components.charts import CONFIG, ClientStyle
from dashboard.components.delivered import Pair, Reached, pairs
from dashboard.components.formatting import escape
from dashboard.components.labels import round_text
from dashboard.components.live_history import LiveHistory

CONTROL_NOTES = {
    "alone": "every client goes on from its own changes and receives nothing from others. What "
    "differs from local only is owed to the adapter's shape and training, and to chance.",
    "permuted": "what clients receive is shuffled and carries no knowledge. What differs from "
    "local only is owed to the adapter's shape and training, to the disturbance and to chance.",
    "noise": "clients receive noise in place of knowledge. What differs from local only is owed to "
    "the adapter's shape and training, to the disturbance and to chance.",
}
"""Why a gain or a loss of a control is no transfer, by its name."""


def baseline_section(
    history: LiveHistory,
    styles: Mapping[UUID, ClientStyle],
    baseline: Reached | None,
    coming: Run | None,
    clients: Sequence[Client],
) -> None:
    """Who gains by working together and who loses.

    Args:
        history: of the run.
        styles: of its clients.
        baseline: what the completed local-only run reached; None: there is none yet.
        coming: the local-only run, completed or on its way; None: there is none.
        clients: of the federation; their test rows decide how large chance is.
    """
    st.subheader("Against local only")
    if baseline is None and coming is not None:
        st.caption(
            f"The local-only run with the same settings is {coming.status.value} "
            f"({round_text(coming)}). The comparison appears here when it has completed."
        )
        return
    if baseline is None:
        st.caption(
            "No local-only run of this federation has the same seed, rounds and training. Start "
            "one on the federation's page to see who gains by working together."
        )
        return
    compared = pairs(history, baseline)
    if not compared:
        st.caption("Waiting for the first accuracies of this run.")
        return
    _judge(history.run, styles, compared)
    st.plotly_chart(charts.gain_figure(styles, compared), key="run.gain", config=CONFIG)
    st.caption(
        "Delivered adapters of both runs where there are any, else both runs after the same round. "
        f"One seed: {chance_text(_test_rows(clients, compared))}"
    )


def chance_text(test_rows: Iterable[int | None]) -> str:
    """How large a client's difference must be to mean something.

    Two standard errors of a difference of two independent shares near one half, the largest that
    chance makes, are sqrt(2 / n) for n test rows. Two runs on the same rows differ by less.

    Args:
        test_rows: of each client; None where the platform does not know them.
    """
    known = {rows for rows in test_rows if rows is not None}
    if not known or None in test_rows:
        return (
            "the fewer test rows a client has, the larger the difference that may be chance: up "
            f"to about {_chance(200)} points with 200 rows, {_chance(50)} with 50."
        )
    fewest, most = min(known), max(known)
    if fewest == most:
        return (
            f"with {most:,} test {'row' if most == 1 else 'rows'}, a client's difference below "
            f"about {_chance(most)} points may be chance."
        )
    return (
        f"a client's difference below about {_chance(fewest)} points with {fewest:,} test "
        f"{'row' if fewest == 1 else 'rows'}, or {_chance(most)} with {most:,}, may be chance."
    )


def _judge(run: Run, styles: Mapping[UUID, ClientStyle], compared: Mapping[UUID, Pair]) -> None:
    control = getattr(run.strategy, "control", "none")
    if control != "none":
        st.info(f"A control: {CONTROL_NOTES[control]}", icon=":material/science:")
        return
    so_far = "" if run.status.is_terminal else " so far"
    worse = [styles[c].name for c in styles if c in compared and compared[c].gain < 0]
    if worse:
        verb = "does" if len(worse) == 1 else "do"
        st.warning(
            f"Negative transfer{so_far}: {escape(', '.join(worse))} {verb} worse than when "
            "training alone.",
            icon=":material/trending_down:",
        )
    else:
        st.success(
            f"No client does worse than when training alone{so_far}.",
            icon=":material/trending_up:",
        )


def _test_rows(clients: Sequence[Client], compared: Mapping[UUID, Pair]) -> list[int | None]:
    return [
        client.dataset.num_test if client.dataset is not None else None
        for client in clients
        if client.id in compared
    ]


def _chance(test_rows: int) -> int:
    """Percentage points."""
    return min(100, round(100 * math.sqrt(2 / test_rows)))
