"""What a run page shows, from top to bottom; every part takes the history and draws it."""

from collections.abc import Callable, Mapping
from datetime import tzinfo
from uuid import UUID

import pandas as pd
import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.enums import EventKind, RoundKind, RunStatus, UpdateStatus
from backend.contracts.metrics import MetricName
from backend.contracts.runs import ClientUpdate, Run
from dashboard.components import charts
from dashboard.components.charts import CONFIG, ClientStyle
from dashboard.components.delivered import Pair, Reached, pairs
from dashboard.components.formatting import (
    NOTHING,
    bytes_text,
    clock_text,
    duration_text,
    escape,
    percent_text,
    points_text,
)
from dashboard.components.labels import EVENT_MARKS, UPDATE_WORDS, queue_text, round_text
from dashboard.components.live_history import LiveHistory, from_round_1, mean, newest
from dashboard.components.run_badge import run_badge
from dashboard.components.server_clock import now

Styles = Mapping[UUID, ClientStyle]
EVENTS_SHOWN = 200
FEW_EVENTS = 11  # all at once; more of them scroll
STEPS_OF_A_ROUND = 3  # reported by a client; with fewer, a line over steps would mislead
CLIENT_COLUMNS = ["Client", "State", "Stage", "Step", "Progress", "Attempts"]


def header(history: LiveHistory, baseline: Reached | None) -> None:
    """Status, progress, time, accuracy and traffic in one row."""
    run = history.run
    accuracy = current_accuracy(history)
    average = mean(accuracy)
    with st.container(horizontal=True, vertical_alignment="center"):
        run_badge(run.status)
        st.markdown(f"**{round_text(run)}**", width="content")
        st.caption(_next_step(run), width="content")
    if run.error:
        st.error(escape(run.error), icon=":material/error:", title="Why the run failed")
    tiles = st.columns(4)
    tiles[0].metric("Elapsed", _elapsed(run), border=True, help="Since the run started")
    tiles[1].metric(
        "Mean test accuracy",
        percent_text(average),
        border=True,
        help="Newest accuracy of each client on its own test split, averaged over the clients",
    )
    tiles[2].metric(
        "Against local only",
        _against(pairs(history, baseline)),
        border=True,
        help="Accuracy minus that of the completed local-only run with the same seed, rounds and "
        "training, at the same round, averaged over the clients; in percentage points (pp)",
    )
    moved = sum(
        sum(history.totals(name).values()) for name in (MetricName.BYTES_UP, MetricName.BYTES_DOWN)
    )
    tiles[3].metric(
        "Sent and received",
        bytes_text(moved),
        border=True,
        help="Payload of all clients since the start, both directions",
    )


def accuracy_section(history: LiveHistory, styles: Styles, baseline: Reached | None) -> None:
    """Accuracy over rounds, and each client against its own baseline."""
    st.subheader("Accuracy")
    before = history.per_round(MetricName.ACCURACY_BEFORE_TRAINING)
    after = history.per_round(MetricName.ACCURACY_AFTER_TRAINING)
    delivered = newest(history.per_round(MetricName.ACCURACY_DELIVERED))
    if not before and not after and not delivered:
        st.caption("The first values appear when a client has evaluated its model in round 1.")
        return
    st.plotly_chart(
        charts.accuracy_figure(
            styles,
            history.run.num_rounds,
            {} if len(styles) > charts.FEW_CLIENTS else before,
            after,
            delivered,
            mean(baseline.delivered) if baseline else None,
        ),
        key="run.accuracy",
        config=CONFIG,
    )
    st.caption(
        "Share of a client's own test split answered correctly. Strong line: after training in "
        "the round. Dotted line: right after loading what was received, before training. "
        "Star: the delivered adapter."
        if len(styles) <= charts.FEW_CLIENTS
        else "Share of a client's own test split answered correctly after training in the round. "
        "Thick grey line: mean over the clients. Star: the delivered adapter."
    )
    every = history.run.training.evaluate_every
    if every > 1:
        st.caption(f"Clients evaluate before round 1 and after every {every} rounds only.")


def training_section(history: LiveHistory, styles: Styles) -> None:
    """Loss and sparsity side by side."""
    left, right = st.columns(2)
    with left:
        st.subheader("Training loss")
        losses, x_title = _losses(history)
        if losses:
            st.plotly_chart(
                charts.loss_figure(styles, losses, x_title), key="run.loss", config=CONFIG
            )
        else:
            st.caption("Appears with the first training steps.")
    with right:
        st.subheader("Sparsity of the shared matrices")
        sparsity = history.per_round(MetricName.SPARSITY)
        if sparsity:
            st.plotly_chart(
                charts.sparsity_figure(styles, history.run.num_rounds, sparsity),
                key="run.sparsity",
                config=CONFIG,
            )
        else:
            st.caption("Appears with the first update that holds shared matrices.")


def traffic_section(history: LiveHistory, styles: Styles) -> None:
    """What crossed the line, per round and since the start."""
    st.subheader("Communication")
    up = history.per_round(MetricName.BYTES_UP)
    down = history.per_round(MetricName.BYTES_DOWN)
    if not up and not down:
        st.caption("Appears with the first update that a client sends.")
        return
    if not history.train_rounds():
        st.caption(_sent_before_round_1(history))
        return
    left, right = st.columns([3, 2])
    left.plotly_chart(
        charts.traffic_figure(styles, from_round_1(up), from_round_1(down)),
        key="run.traffic",
        config=CONFIG,
    )
    trained = set(history.train_rounds())
    lora = {
        number: value
        for number, value in history.totals(MetricName.BYTES_LORA).items()
        if number in trained
    }
    right.plotly_chart(
        charts.cumulative_traffic_figure(
            history.totals(MetricName.BYTES_UP), history.totals(MetricName.BYTES_DOWN), lora
        ),
        key="run.cumulative",
        config=CONFIG,
    )
    st.caption(
        "Encoded payload bytes. The reference is what the same clients would have sent up with "
        f"their full LoRA factors A and B. {_sent_before_round_1(history)}"
    )


def _sent_before_round_1(history: LiveHistory) -> str:
    """What agreeing on codes has cost, in a sentence; empty where there was none."""
    sent = history.totals(MetricName.BYTES_UP).get(0)
    if sent is None:
        return ""
    return (
        "To agree on common codes before round 1, all clients together sent "
        f"{bytes_text(int(sent))} once; that is in the sums since the start."
    )


def clients_section(history: LiveHistory) -> None:
    """What every client is doing in the newest round."""
    current = history.current_round
    if current is None:
        return
    match current.kind:
        case RoundKind.GAUGE:
            st.subheader("Clients agreeing on common codes")
            st.caption(
                "Before round 1 every client's model reads the same public probe texts, and sends "
                "once which of them it takes to be alike. No training data is used."
            )
        case RoundKind.TRAIN:
            st.subheader(f"Clients in round {current.round_number}")
        case RoundKind.DELIVER:
            st.subheader("Clients in delivery")
    updates = sorted(current.client_updates, key=lambda item: item.client_name.lower())
    st.dataframe(
        pd.DataFrame([_client_row(update) for update in updates]),
        hide_index=True,
        column_order=[
            *CLIENT_COLUMNS,
            *(["Signed by"] if any(item.key_fingerprint for item in updates) else []),
            *(["Error"] if any(item.error for item in updates) else []),
        ],
        key="run.clients",
        column_config={
            "Progress": st.column_config.ProgressColumn(
                format="percent", min_value=0.0, max_value=1.0, width="medium"
            ),
            "Attempts": st.column_config.NumberColumn(
                help="Tries so far; a lost worker costs a try, not the run", format="%d"
            ),
            "Signed by": st.column_config.TextColumn(
                help="Begin of the fingerprint of the client's key; its page has the whole"
            ),
            "Error": st.column_config.TextColumn(width="large"),
        },
    )


def adapters_section(history: LiveHistory, api: ApiClient) -> None:
    """Downloads, as soon as there are any."""
    ready = any(event.kind is EventKind.ADAPTER_READY for event in history.events.values())
    if not ready and history.run.status is not RunStatus.COMPLETED:
        return
    adapters = sorted(api.runs.adapters(history.run.id), key=lambda item: item.client_name.lower())
    if not adapters:
        return
    st.subheader("Adapters")
    st.caption("Each client's own result as a PEFT LoRA folder (zip).")
    run_id = history.run.id
    with st.container(horizontal=True):
        for adapter in adapters:
            st.download_button(
                f"{escape(adapter.client_name)} ({bytes_text(adapter.size_bytes)})",
                data=_download(api, run_id, adapter.client_id),
                file_name=f"{adapter.client_name}.zip",
                mime="application/zip",
                icon=":material/download:",
                on_click="ignore",
                key=f"run.adapter.{adapter.client_id}",
            )


def events_section(history: LiveHistory, zone: tzinfo) -> None:
    """What happened, newest first."""
    st.subheader("Events")
    if not history.events:
        st.caption("Nothing has happened yet.")
        return
    names = history.client_names()
    shown = sorted(history.events.values(), key=lambda event: event.id, reverse=True)
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Time": clock_text(event.created_at, zone),
                    "What": f"{EVENT_MARKS.get(event.kind, '')} {event.message}".strip(),
                    "Round": "" if event.round_number is None else str(event.round_number),
                    "Client": names.get(event.client_id, "") if event.client_id else "",
                }
                for event in shown[:EVENTS_SHOWN]
            ]
        ),
        hide_index=True,
        key="run.events",
        height="content" if len(shown) <= FEW_EVENTS else 420,
        column_config={
            "Time": st.column_config.TextColumn(width="small", help=f"In your zone ({zone})"),
            "What": st.column_config.TextColumn(width="large"),
            "Round": st.column_config.TextColumn(width="small"),
        },
    )
    if len(shown) > EVENTS_SHOWN:
        st.caption(f"The newest {EVENTS_SHOWN} of {len(shown)} events.")


def current_accuracy(history: LiveHistory) -> dict[UUID, float]:
    """Each client's newest accuracy: of its delivered adapter, else after training."""
    return newest(history.per_round(MetricName.ACCURACY_AFTER_TRAINING)) | newest(
        history.per_round(MetricName.ACCURACY_DELIVERED)
    )


def _client_row(update: ClientUpdate) -> dict[str, object]:
    done = update.status is UpdateStatus.ACCEPTED
    working = update.status is UpdateStatus.TRAINING
    share = update.step / update.num_steps if update.num_steps else 0.0
    return {
        "Client": update.client_name,
        "State": UPDATE_WORDS[update.status],
        "Stage": (update.stage or "starting") if working else "",
        "Step": f"{update.step} of {update.num_steps}" if update.num_steps and working else "",
        "Progress": 1.0 if done else min(1.0, share) if working else 0.0,
        "Attempts": update.num_attempts,
        "Signed by": (update.key_fingerprint or "")[:16],
        "Error": update.error or "",
    }


def _download(api: ApiClient, run_id: UUID, client_id: UUID) -> Callable[[], bytes]:
    """Fetches the zip when the button is pressed, not before."""
    return lambda: b"".join(api.runs.stream_adapter(run_id, client_id))


def _losses(history: LiveHistory) -> tuple[dict[UUID, list[tuple[int, float]]], str]:
    """Losses and what they stand over: single steps, or rounds too short to tell of their steps."""
    by_step, by_round = history.loss_by_step(), history.loss_by_round()
    if sum(map(len, by_step.values())) < STEPS_OF_A_ROUND * sum(map(len, by_round.values())):
        return by_round, "Round (mean over its steps)"
    return by_step, "Optimizer step since the start"


def _elapsed(run: Run) -> str:
    if run.started_at is None:
        return NOTHING
    return duration_text((run.ended_at or now()) - run.started_at)


def _against(compared: Mapping[UUID, Pair]) -> str:
    """Over the clients that have both values, so that a late client does not tilt the mean."""
    average = mean({client: pair.gain for client, pair in compared.items()})
    return NOTHING if average is None else points_text(average)


_NEXT_STEPS: dict[RunStatus, str] = {
    RunStatus.CREATED: "Prepared. Press Start to begin.",
    RunStatus.QUEUED: "Waiting for a worker. If this lasts, check that `fedbraid up` is running.",
    RunStatus.RUNNING: "This page refreshes by itself.",
    RunStatus.PAUSED: "Clients at work finish; nothing else begins until somebody resumes it.",
    RunStatus.COMPLETED: "The adapters are ready below.",
    RunStatus.FAILED: "Fix the cause below, then resume it: it goes on where it failed.",
    RunStatus.CANCELLED: "Cancelled by a person. Start another run on the federation's page.",
}


def _next_step(run: Run) -> str:
    return queue_text(run) or _NEXT_STEPS[run.status]
