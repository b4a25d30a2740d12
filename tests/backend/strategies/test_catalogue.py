"""What the platform offers: strategies and built-in tasks."""

from backend.contracts.datasets import BuiltinTaskName
from backend.contracts.enums import StrategyName
from tests.factories import Caller, make_client, problem


def test_every_strategy_is_described(viewer: Caller) -> None:
    answer = viewer.get("/strategies").json()
    assert [entry["name"] for entry in answer] == list(StrategyName)
    h2tune = next(entry for entry in answer if entry["name"] == "h2tune")
    sparsity = h2tune["params_schema"]["properties"]["sparsity"]
    assert sparsity["title"] == "Sparsity of the middle matrix"


def test_every_task_generator_is_listed(viewer: Caller) -> None:
    answer = viewer.get("/builtin-tasks").json()
    assert [entry["name"] for entry in answer] == list(BuiltinTaskName)
    assert {"name": "arithmetic_choice", "kind": "choice"} in answer


def test_clients_may_look_too_and_strangers_not(operator: Caller, anonymous: Caller) -> None:
    _, client = make_client(operator)
    for path in ("/strategies", "/builtin-tasks", "/base-models"):
        assert client.get(path).status_code == 200
        problem(anonymous.get(path), 401, "unauthenticated")
