from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest

from backend.contracts.common import FieldError
from backend.contracts.enums import EventKind, Role, RunStatus, StrategyName, UpdateStatus
from backend.contracts.metrics import MetricName
from backend.contracts.params.colora import CoLoraParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.runs import RunCreate
from backend.contracts.strategies import info_of
from backend.contracts.training import TrainingConfig
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform, RefusalError, three_clinics
from tests.dashboard.reading import Open, text_of


def button(app: AppTest, label: str):
    return next(item for item in app.button if item.label == label)


def by_label(items, label: str):
    return next(item for item in items if item.label == label)


# --- federations -------------------------------------------------------------------------


def test_no_federation_says_what_to_do_first(open_page: Open) -> None:
    app = open_page()
    assert "No federation yet" in text_of(app)
    assert "enrolment key" in text_of(app)


def test_a_federation_is_listed_with_its_newest_run(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    platform.play_round(run, 2)
    text = text_of(open_page())
    assert "Three clinics" in text
    assert "3 clients · global rank 16 · 1 run" in text
    assert "round 2 of 5" in text
    assert "Newest run: H2Tune, seed 0, 5 rounds" in text


def test_names_cannot_inject_markdown(platform: FakePlatform, open_page: Open) -> None:
    client = platform.add_client("north")
    platform.add_federation("[x](http://evil.test) **bold**", [client])
    values = [item.value for item in open_page().markdown]
    assert not any("[x](http" in value for value in values)
    assert any("evil" in value for value in values)


# --- clients -----------------------------------------------------------------------------


def test_no_client_says_how_one_joins(open_page: Open) -> None:
    assert "enrolment key" in open_page(pages.CLIENTS).info[0].value


def test_clients_are_shown_with_shape_data_and_last_sign_of_life(
    platform: FakePlatform, open_page: Open
) -> None:
    three_clinics(platform)
    table = open_page(pages.CLIENTS).dataframe[0].value
    row = table.set_index("Client").loc["city-hospital"]
    assert row["Model"] == "tiny_gemma (gemma)"
    assert row["Layers × width"] == "6 × 96"
    assert row["Rank"] == 16
    assert row["Rows"] == "64 / 32 / 128"
    assert row["Last seen"] == "3 min ago"


def test_a_key_is_shown_once_with_a_call_to_paste(platform: FakePlatform, open_page: Open) -> None:
    app = open_page(pages.CLIENTS)
    by_label(app.text_input, "Label").input("autumn")
    button(app, "Make key").click().run()
    secret = f"fbe_{platform.keys[0].id.hex}"
    codes = [item.value for item in app.code]
    assert secret in codes
    assert any("curl" in code and secret in code for code in codes)
    button(app, "I have copied it").click().run()
    assert not any(secret in item.value for item in app.code)


def test_a_key_without_label_is_refused(platform: FakePlatform, open_page: Open) -> None:
    app = open_page(pages.CLIENTS)
    button(app, "Make key").click().run()
    assert "label" in app.error[0].value
    assert not platform.keys


def test_a_builtin_client_is_registered(platform: FakePlatform, open_page: Open) -> None:
    app = open_page(pages.CLIENTS)
    by_label(app.text_input, "Name").input("lab")
    by_label(app.number_input, "LoRA rank").set_value(4)
    button(app, "Add client").click().run()
    assert "lab is ready" in text_of(app)
    [client] = platform.clients
    assert (client.name, client.lora_rank, client.dataset.num_train) == ("lab", 4, 64)


def test_a_taken_client_name_is_a_sentence(platform: FakePlatform, open_page: Open) -> None:
    platform.add_client("lab")
    app = open_page(pages.CLIENTS)
    by_label(app.text_input, "Name").input("lab")
    button(app, "Add client").click().run()
    assert "There is a client named 'lab' already." in text_of(app)


# --- new federation ----------------------------------------------------------------------


def test_without_clients_there_is_a_way_to_them(open_page: Open) -> None:
    app = open_page(pages.NEW_FEDERATION)
    assert "there are none yet" in app.info[0].value
    assert button(app, "Go to clients")


def filled(platform: FakePlatform, open_page: Open) -> AppTest:
    app = open_page(pages.NEW_FEDERATION)
    by_label(app.text_input, "Name").input("Two clinics")
    app.multiselect[0].set_value(platform.clients)
    return app.run()


def test_federation_run_and_baseline_are_created_and_started(
    platform: FakePlatform, open_page: Open
) -> None:
    platform.add_client("north")
    platform.add_client("south", "tiny_gemma", 4)
    app = filled(platform, open_page)
    by_label(app.number_input, "Seed").set_value(3)
    by_label(app.number_input, "Local steps per round").set_value(7)
    by_label(app.number_input, "Joint rounds").set_value(2)
    button(app, "Create and start").click().run()
    assert not app.exception
    [federation] = platform.federations
    assert [client.name for client in federation.clients] == ["north", "south"]
    run, baseline = platform.runs
    assert run.strategy == H2TuneParams(joint_rounds=2)
    assert baseline.strategy == LocalOnlyParams()
    assert run.seed == baseline.seed == 3
    assert run.training.local_steps == 7
    assert run.training == baseline.training
    assert {run.status, baseline.status} == {RunStatus.QUEUED}
    assert app.title[0].value == "H2Tune"


def test_the_compatibility_view_tells_shapes_and_sparsity(
    platform: FakePlatform, open_page: Open
) -> None:
    platform.add_client("north", "tiny_llama", 8)
    platform.add_client("south", "tiny_gemma", 16)
    app = filled(platform, open_page)
    table = app.dataframe[0].value.set_index("Client")
    assert table.loc["north", "Expected zeros"] == pytest.approx(0.75)
    assert table.loc["south", "Expected zeros"] == 0
    assert "6 common slots" in text_of(app)


def test_a_client_without_data_or_with_too_large_a_rank_stops_the_start(
    platform: FakePlatform, open_page: Open
) -> None:
    platform.add_client("north", rank=32)
    platform.add_client("south", dataset=None)
    app = filled(platform, open_page)
    text = text_of(app)
    assert "north has LoRA rank 32, more than the global rank 16" in text
    assert "south has no data set yet" in text
    assert button(app, "Create and start").disabled


def test_a_strategy_that_cannot_serve_a_member_says_so_before_the_start(
    platform: FakePlatform, open_page: Open
) -> None:
    platform.add_client("north")
    platform.add_client("south", "tiny_gemma", 4)
    app = filled(platform, open_page)
    assert not button(app, "Create and start").disabled
    strategy = by_label(app.selectbox, "Strategy")
    strategy.set_value(info_of(StrategyName.FEDIT)).run()
    [warning] = [item.value for item in app.warning]
    assert "differs from" in warning
    assert "FedIT needs equal ones" in warning
    assert button(app, "Create and start").disabled
    by_label(app.selectbox, "Groups").set_value("architecture").run()
    assert not app.warning
    assert "'north' has no other client of its shape" in text_of(app)
    assert not button(app, "Create and start").disabled
    button(app, "Create and start").click().run()
    assert app.title[0].value == "FedIT, in groups of equal architecture and rank"
    [groups] = [line for line in text_of(app).splitlines() if line.startswith("Groups: ")]
    assert {"north alone", "south alone"} == set(groups.removeprefix("Groups: ").split(" · "))


def test_another_run_that_cannot_be_served_is_not_offered(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    app = open_page(pages.FEDERATION, id=str(federation.id))
    by_label(app.selectbox, "Strategy").set_value(info_of(StrategyName.FLEXLORA)).run()
    assert len(app.warning) == 2
    assert all("FlexLoRA needs equal ones" in item.value for item in app.warning)
    assert button(app, "Start run").disabled


def test_a_missing_name_is_told_at_its_field(platform: FakePlatform, open_page: Open) -> None:
    platform.add_client("north")
    app = filled(platform, open_page)
    by_label(app.text_input, "Name").input("")
    button(app, "Create and start").click().run()
    assert any("at least 1 character" in item.value for item in app.caption)
    assert not platform.federations


def test_a_refused_run_keeps_the_federation_and_the_form(
    platform: FakePlatform, open_page: Open
) -> None:
    platform.add_client("north")
    platform.run_refusal = RefusalError(
        422, "invalid", "The run has a wrong value.",
        [FieldError(field="training.learning_rate", message="too large for this model")],
    )  # fmt: skip
    app = filled(platform, open_page)
    button(app, "Create and start").click().run()
    assert "The run has a wrong value." in text_of(app)
    assert any("too large for this model" in item.value for item in app.caption)
    platform.run_refusal = None
    button(app, "Create and start").click().run()
    assert len(platform.federations) == 1
    assert len(platform.runs) == 2


# --- federation --------------------------------------------------------------------------


def test_an_address_without_id_offers_a_way_back(open_page: Open) -> None:
    assert "names no federation" in text_of(open_page(pages.FEDERATION, id="nonsense"))


def test_an_unknown_federation_is_a_sentence(open_page: Open) -> None:
    assert "There is nothing with id" in text_of(open_page(pages.FEDERATION, id=str(uuid4())))


def test_a_fresh_federation_offers_its_first_run(platform: FakePlatform, open_page: Open) -> None:
    federation = three_clinics(platform)
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert "No run yet" in text_of(app)
    button(app, "Start run").click().run()
    assert [run.strategy.name for run in platform.runs] == [
        StrategyName.H2TUNE,
        StrategyName.LOCAL_ONLY,
    ]


def test_completed_runs_are_compared_by_mean_and_client(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    for params in (LocalOnlyParams(), H2TuneParams()):
        run = platform.add_run(federation, RunCreate(strategy=params), RunStatus.RUNNING)
        platform.play_to_end(run)
    app = open_page(pages.FEDERATION, id=str(federation.id))
    table = next(item.value for item in app.dataframe if "Mean over clients" in item.value)
    assert len(table) == 2
    names = [client.name for client in federation.clients]
    for _, row in table.iterrows():
        assert row["Mean over clients"] == pytest.approx(row[names].astype(float).mean())


# --- run ---------------------------------------------------------------------------------


def run_page(platform: FakePlatform, open_page: Open, rounds: int) -> AppTest:
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    for number in range(1, rounds + 1):
        platform.play_round(run, number)
    return open_page(pages.RUN, id=str(run.id))


def test_a_live_run_shows_where_it_stands(platform: FakePlatform, open_page: Open) -> None:
    app = run_page(platform, open_page, 2)
    text = text_of(app)
    assert "round 2 of 5" in text
    assert "Clients in round 2" in text
    assert "No local-only run" in text
    tables = [item.value for item in app.dataframe]
    assert list(tables[0]["Client"]) == ["city-hospital", "north-clinic", "south-practice"]
    events = next(table for table in tables if "What" in table)
    assert events["What"].iloc[0] == "south-practice sent its update of round 2."


def test_polling_asks_only_for_what_is_new(platform: FakePlatform, open_page: Open) -> None:
    app = run_page(platform, open_page, 1)
    platform.play_round(platform.runs[0], 2)
    app.run()
    assert platform.live_calls[0] == 0
    assert platform.live_calls[-1] > 0
    assert "round 2 of 5" in text_of(app)


def test_attempts_and_errors_of_clients_are_shown(platform: FakePlatform, open_page: Open) -> None:
    app = run_page(platform, open_page, 1)
    run = platform.runs[0]
    client = platform.clients[0]
    platform.rounds[run.id][-1].client_updates[0] = platform.update(
        client, UpdateStatus.TRAINING, 10, 40, num_attempts=2, error="the worker went away"
    )
    app.run()
    table = app.dataframe[0].value.set_index("Client")
    row = table.loc[client.name]
    assert (row["State"], row["Step"], row["Attempts"]) == ("working", "10 of 40", 2)
    assert row["Error"] == "the worker went away"
    assert row["Progress"] == pytest.approx(0.25)


def test_a_failed_run_says_why_and_what_next(platform: FakePlatform, open_page: Open) -> None:
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    platform.change(run, status=RunStatus.FAILED, error="north-clinic failed 3 times.")
    platform.event(run, EventKind.RUN_FAILED, "The run failed.")
    app = open_page(pages.RUN, id=str(run.id))
    assert "north-clinic failed 3 times." in text_of(app)
    assert "then resume it: it goes on where it failed" in text_of(app)
    assert not [item for item in app.button if item.label == "Yes, cancel it"]


def test_a_completed_run_is_compared_and_offers_adapters(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    for params in (LocalOnlyParams(), H2TuneParams()):
        run = platform.add_run(federation, RunCreate(strategy=params), RunStatus.RUNNING)
        platform.play_to_end(run)
    app = open_page(pages.RUN, id=str(run.id))
    text = text_of(app)
    assert "No client does worse" in text
    assert [item.label for item in app.get("download_button")] == [
        f"{name} ({size} KiB)".replace("-", "\\-").replace("(", "(")
        for name, size in (("city-hospital", "38.1"), ("north-clinic", "35.2"),
                           ("south-practice", "41.0"))
    ]  # fmt: skip


def test_losses_of_short_rounds_are_means_of_rounds(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    run = platform.play_to_end(
        platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    )
    kept = [point for point in platform.metrics[run.id] if point.scope == "round"]
    platform.metrics[run.id] = kept
    assert "Appears with the first training steps" in text_of(open_page(pages.RUN, id=str(run.id)))
    for number in (1, 2):
        for client in federation.clients:
            platform.measure(run, client, number, MetricName.TRAIN_LOSS, 3.0 - number)
            platform.measure(run, client, number, MetricName.TRAIN_LOSS, 2.0, step=5)
    assert "Round (mean over its steps)" in loss_chart(open_page(pages.RUN, id=str(run.id)))


def test_losses_of_long_rounds_are_those_of_their_steps(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    run = platform.play_to_end(
        platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    )
    for client in federation.clients:
        platform.measure(run, client, 1, MetricName.TRAIN_LOSS, 2.0)
    app = open_page(pages.RUN, id=str(run.id))
    assert "Optimizer step since the start" in loss_chart(app)


def loss_chart(app: AppTest) -> str:
    """The specification of the chart of losses."""
    [spec] = [
        item.proto.spec for item in app.get("plotly_chart") if "nats per token" in item.proto.spec
    ]
    return spec


def test_a_run_that_evaluates_seldom_says_so(platform: FakePlatform, open_page: Open) -> None:
    federation = three_clinics(platform)
    seldom = RunCreate(strategy=H2TuneParams(), training=TrainingConfig(evaluate_every=5))
    run = platform.play_to_end(platform.add_run(federation, seldom, RunStatus.RUNNING))
    assert "after every 5 rounds only" in text_of(open_page(pages.RUN, id=str(run.id)))


def test_who_learns_from_whom_is_a_matrix_of_a_round_one_chooses(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    run = platform.play_to_end(
        platform.add_run(federation, RunCreate(strategy=CoLoraParams(), num_rounds=2))
    )
    ids = [client.id for client in federation.clients]
    for item in platform.rounds[run.id][:2]:
        item.report.update({f"mixing_weight/{a}/{b}": 0.5 for a in ids for b in ids if a != b})
    app = open_page(pages.RUN, id=str(run.id))
    text = text_of(app)
    assert "Who learns from whom" in text
    assert "every cell would say 50" in text
    [choice] = [box for box in app.selectbox if box.label == "Round"]
    assert choice.options == ["2", "1"]
    choice.set_value(1).run()
    assert not app.exception
    assert not any(str(ids[0]) in str(table.value) for table in app.dataframe)


def test_the_page_waits_for_a_baseline_that_is_on_its_way(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    local = platform.add_run(federation, RunCreate(strategy=LocalOnlyParams()), RunStatus.RUNNING)
    platform.play_round(local, 1)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    platform.play_to_end(run)
    app = open_page(pages.RUN, id=str(run.id))
    assert "with the same settings is running (round 1 of 5)" in text_of(app)
    platform.play_to_end(local)
    app.run()
    assert "No client does worse than when training alone." in text_of(app)


def test_cancelling_asks_the_platform(platform: FakePlatform, open_page: Open) -> None:
    app = run_page(platform, open_page, 1)
    button(app, "Yes, cancel it").click().run()
    assert platform.runs[0].status is RunStatus.CANCELLED
    assert "Cancelled by a person" in text_of(app)


def test_a_prepared_run_can_be_started(platform: FakePlatform, open_page: Open) -> None:
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()))
    app = open_page(pages.RUN, id=str(run.id))
    button(app, "Start").click().run()
    assert platform.runs[0].status is RunStatus.QUEUED


# --- roles ---------------------------------------------------------------------------------


def test_a_viewer_looks_and_is_offered_nothing_that_would_be_refused(
    platform: FakePlatform, open_page: Open
) -> None:
    platform.user = platform.user.model_copy(update={"role": Role.VIEWER})
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    platform.play_round(run, 1)
    for page, query in (
        (pages.FEDERATIONS, {}),
        (pages.CLIENTS, {}),
        (pages.FEDERATION, {"id": str(federation.id)}),
        (pages.RUN, {"id": str(run.id)}),
    ):
        app = open_page(page, **query)
        assert not app.error
        offered = {"Open"} if page == pages.CLIENTS else set()  # looks at one client
        assert {item.label for item in app.button} - offered == {"Sign out"}


# --- users -------------------------------------------------------------------------------


def test_a_user_is_added(platform: FakePlatform, open_page: Open) -> None:
    app = open_page(pages.USERS)
    app.text_input[0].input("grace")
    app.text_input[1].input("a long enough password")
    button(app, "Add user").click().run()
    assert [user.username for user in platform.users] == ["admin", "grace"]


def test_a_short_password_is_refused_without_showing_it(
    platform: FakePlatform, open_page: Open
) -> None:
    app = open_page(pages.USERS)
    app.text_input[0].input("grace")
    app.text_input[1].input("hunter2")
    button(app, "Add user").click().run()
    assert "password" in text_of(app)
    assert "hunter2" not in text_of(app)
    assert len(platform.users) == 1
