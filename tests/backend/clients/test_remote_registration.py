from typing import Any

import pytest
from sqlalchemy import Engine

from tests.factories import (
    NDJSON,
    ROWS,
    Caller,
    make_client,
    make_federation,
    make_key,
    make_run,
    problem,
    registration,
    unchanged,
)

MODULES = {"q": {"in_features": 128, "out_features": 64}}
REMOTE = {"execution": "remote", "dataset": None, "modules": MODULES, "num_examples": 12}


def test_a_remote_client_is_known_by_what_it_declares(operator: Caller) -> None:
    client, _ = make_client(operator, **REMOTE)
    assert (client["execution"], client["dataset"]) == ("remote", None)
    assert (client["modules"], client["num_examples"]) == (MODULES, 12)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"modules": None}, "modules", "worker.agent register"),
        ({"num_examples": None}, "num_examples", "worker.agent register"),
        (
            {"dataset": {"source": "builtin", "task": "arithmetic_fill_in"}},
            "dataset",
            "stay on its own machine",
        ),
        ({"execution": "managed"}, "modules", "Leave it out"),
        ({"execution": "managed", "modules": None}, "num_examples", "Leave it out"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused_by_its_field(
    operator: Caller, engine: Engine, changes: dict[str, Any], field: str, words: str
) -> None:
    secret = make_key(operator)["secret"]
    with unchanged(engine):
        body = registration(secret, **{**REMOTE, **changes})
        answer = problem(operator.post("/clients/register", body), 422, "invalid")
    assert answer["errors"][0]["field"] == field
    assert words in answer["detail"]


@pytest.mark.parametrize(
    "modules",
    [{}, {"Q": MODULES["q"]}, {"q": {"in_features": 0, "out_features": 1}}, {"q": {"in": 1}}],
)
def test_shapes_that_cannot_be_are_refused(
    operator: Caller, engine: Engine, modules: object
) -> None:
    secret = make_key(operator)["secret"]
    with unchanged(engine):
        body = registration(secret, **{**REMOTE, "modules": modules})
        answer = problem(operator.post("/clients/register", body), 422, "invalid")
    assert answer["errors"][0]["field"].startswith("modules")


def test_no_data_of_a_remote_client_is_taken(operator: Caller, engine: Engine) -> None:
    client, caller = make_client(operator, **REMOTE)
    with unchanged(engine):
        response = caller.put(f"/clients/{client['id']}/dataset", content=ROWS, headers=NDJSON)
        problem(response, 409, "client_is_remote")


def test_a_run_with_a_remote_client_starts_without_its_data(operator: Caller, broker: Any) -> None:
    client, _ = make_client(operator, **REMOTE)
    run = make_run(operator, make_federation(operator, client))
    assert operator.post(f"/runs/{run['id']}/start").status_code == 202
