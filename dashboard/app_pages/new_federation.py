"""Choose members and settings, see how they fit, and start."""

from typing import Any

import pandas as pd
import streamlit as st
from pydantic import ValidationError

from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.clients import Client
from backend.contracts.enums import StrategyName
from backend.contracts.federations import FederationCreate, FederationDetail
from backend.contracts.runs import RunCreate
from backend.contracts.strategies import StrategyInfo, info_of
from dashboard import pages, session
from dashboard.components import run_form
from dashboard.components.charts import client_styles, layer_map_figure
from dashboard.components.compatibility import (
    Fit,
    fits,
    num_slots,
    smallest_global_rank,
    verdict,
)
from dashboard.components.form_errors import validation_errors
from dashboard.components.formatting import escape
from dashboard.components.labels import TASK_WORDS
from dashboard.components.run_start import start_runs

KEY = "new"
ERRORS = "new.errors"
MADE = "new.made"  # the federation that exists already because only its run was refused


def main() -> None:
    """Show the form, or what is missing before there can be one."""
    st.title("New federation")
    api = session.current_api()
    clients = sorted(api.clients.list(), key=lambda client: client.name.lower())
    if not clients:
        st.info(
            "A federation needs clients and there are none yet. Register one, or add built-in "
            "clients to try things out.",
            icon=":material/devices:",
        )
        if st.button("Go to clients", type="primary"):
            st.switch_page(pages.CLIENTS)
        return
    errors: dict[str, str] = st.session_state.get(ERRORS, {})
    st.subheader("1 · Who works together")
    federation, members = _federation_form(clients, errors)
    st.subheader("2 · What they do")
    values = run_form.run_form(api.catalogue.strategies(), KEY, errors)
    baseline = run_form.baseline_toggle(values, KEY)
    st.subheader("3 · How they fit")
    concerns = _compatibility(members, int(federation["global_rank"]), values["strategy"])
    _leftover_errors(errors)
    if st.button(
        "Create and start", type="primary", icon=":material/play_arrow:",
        disabled=bool(concerns) or not members,
    ):  # fmt: skip
        _create(federation, values, baseline)


def _federation_form(
    clients: list[Client], errors: dict[str, str]
) -> tuple[dict[str, Any], list[Client]]:
    left, right = st.columns([3, 1])
    name = left.text_input("Name", key=f"{KEY}.name", max_chars=100, placeholder="Three clinics")
    _error_below(left, errors.get("name"))
    members = st.multiselect(
        "Members",
        clients,
        format_func=lambda client: (
            f"{client.name} ({client.architecture.family}, rank {client.lora_rank})"
        ),
        key=f"{KEY}.members",
        placeholder="Choose one or more clients",
    )
    _error_below(st, errors.get("client_ids"))
    smallest = smallest_global_rank(members)
    global_rank = right.number_input(
        "Global rank R", 1, 4096, 16, key=f"{KEY}.global_rank",
        help="Shared matrices are R x R. At least the largest LoRA rank of a member"
        + (f", here {smallest}." if members else "."),
    )  # fmt: skip
    _error_below(right, errors.get("global_rank"))
    description = st.text_input("Description (optional)", key=f"{KEY}.description", max_chars=2000)
    return {
        "name": name,
        "description": description,
        "global_rank": global_rank,
        "client_ids": [client.id for client in members],
    }, members


def _compatibility(members: list[Client], global_rank: int, strategy: dict[str, Any]) -> list[str]:
    """Show how the members fit, and give the reasons why they cannot start."""
    if not members:
        st.caption("Choose members above to see what each of them shares.")
        return []
    aligns = strategy["name"] == StrategyName.H2TUNE
    found = fits(members, global_rank, strategy.get("sparsity"))
    st.dataframe(
        _fit_table(found, info_of(strategy["name"])), hide_index=True, column_config=_FIT_COLUMNS
    )
    if aligns:
        slots = num_slots(members)
        st.caption(
            f"{slots} common slots, as many as the deepest model has layers. Each holds one "
            f"{global_rank} x {global_rank} matrix per module role; a client's layers start at the "
            "slots of the same relative depth and learn their own mixture from there."
        )
        styles = client_styles({client.id: client.name for client in members})
        st.plotly_chart(
            layer_map_figure(styles, {fit.client.id: fit.layer_slots for fit in found}, slots),
            key="new.layers",
            config={"displayModeBar": False},
        )
    judged = verdict(strategy, members)
    concerns = [fit.concern for fit in found if fit.concern] + judged.refusals
    for concern in concerns:
        st.warning(escape(concern), icon=":material/warning:")
    for caution in judged.cautions:
        st.info(escape(caution), icon=":material/info:")
    return concerns


_FIT_COLUMNS = {
    "r / R": st.column_config.NumberColumn(format="%.3g", help="LoRA rank by global rank"),
    "Expected zeros": st.column_config.NumberColumn(
        format="percent",
        help="Share of zeros in the client's R x R matrices: 1 - (r/R)² unless the strategy "
        "sets it for all clients.",
    ),
}


def _fit_table(found: list[Fit], info: StrategyInfo) -> pd.DataFrame:
    aligns = info.name is StrategyName.H2TUNE
    return pd.DataFrame(
        [
            {
                "Client": fit.client.name,
                "Family": fit.client.architecture.family,
                "Layers": fit.client.architecture.num_layers,
                "Width": fit.client.architecture.hidden_size,
                "Task": TASK_WORDS[fit.client.task],
                "Rank r": fit.client.lora_rank,
                **(
                    {"r / R": fit.rank_share, "Expected zeros": fit.expected_sparsity}
                    if aligns
                    else {}
                ),
                "Leaves the client": info.shares,
            }
            for fit in found
        ]
    )


def _create(federation: dict[str, Any], values: dict[str, Any], baseline: bool) -> None:
    st.session_state[ERRORS] = {}
    try:
        request = FederationCreate.model_validate(federation)
        run = RunCreate.model_validate(values)
    except ValidationError as error:
        st.session_state[ERRORS] = validation_errors(error)
        st.rerun()
    api = session.current_api()
    try:
        made = _made(request) or api.federations.create(request)
        st.session_state[MADE] = (request, made)
        started = start_runs(api, made.id, run, baseline=baseline)
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.session_state[ERRORS] = {"": str(error)} | run_form.api_errors(error)
        st.rerun()
    st.session_state.pop(MADE, None)
    st.session_state.pop(ERRORS, None)
    st.switch_page(pages.RUN, query_params={"id": str(started.id)})


def _made(request: FederationCreate) -> FederationDetail | None:
    """The federation made by an earlier press of the button, if nothing about it changed."""
    known: tuple[FederationCreate, FederationDetail] | None = st.session_state.get(MADE)
    return known[1] if known and known[0] == request else None


def _leftover_errors(errors: dict[str, str]) -> None:
    """Sentences for what has no place in the form."""
    placed = ("name", "client_ids", "global_rank", "strategy.", "training.")
    sentences = [
        message if not path else f"{path}: {message}"
        for path, message in errors.items()
        if not path.startswith(placed)
    ]
    for sentence in sentences:
        st.error(escape(sentence), icon=":material/error:")
    if errors and not sentences:
        st.error("Some fields need another value; see the red notes.", icon=":material/error:")


def _error_below(place: Any, message: str | None) -> None:
    if message:
        place.caption(f":red[:material/error: {escape(message)}]")


main()
