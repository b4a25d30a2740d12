"""Who can work together, and the sentence for whom it does not work."""

from typing import Any

import pytest

from backend.contracts.base_models import Architecture
from backend.contracts.compatibility import (
    Participant,
    cautions,
    groups,
    incompatibilities,
    refusals,
)
from backend.contracts.enums import TaskKind
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams, FlexLoraParams, LocalOnlyParams
from backend.contracts.strategies import Capabilities, title_of

NOTHING = Capabilities(rank=False, depth=False, width=False, task=False, linear_aggregation=True)
RANKS = NOTHING.model_copy(update={"rank": True})
ALL = Capabilities(rank=True, depth=True, width=True, task=True, linear_aggregation=True)

WIDE, DEEP = ("llama", 4, 256), ("llama", 8, 128)


def participant(client_id: str, **changes: Any) -> Participant:
    family, layers, width = changes.pop("shape", ("llama", 4, 128))
    values: dict[str, Any] = {
        "client_id": client_id,
        "name": f"clinic-{client_id}",
        "architecture": Architecture(family=family, num_layers=layers, hidden_size=width),
        "lora_rank": 8,
        "task": TaskKind.FILL_IN,
        **changes,
    }
    return Participant(**values)


def reasons(capabilities: Capabilities, *clients: Participant, groupable: bool = True) -> list[str]:
    return [
        found.reason
        for found in incompatibilities("Plain", capabilities, clients, groupable=groupable)
    ]


@pytest.mark.parametrize("capabilities", [NOTHING, RANKS, ALL])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_equal_clients_are_compatible(capabilities: Capabilities, number: int) -> None:
    assert reasons(capabilities, *(participant(str(i)) for i in range(number))) == []


def test_a_rank_that_differs_is_named_with_both_values_and_a_remedy() -> None:
    (reason,) = reasons(NOTHING, participant("a"), participant("b", lora_rank=2), participant("c"))
    assert reason.startswith(
        "Client 'clinic-b' differs from 'clinic-a' in LoRA rank (2 instead of 8), and Plain needs "
        "equal ones: register it anew with rank 8, choose a strategy that allows it ("
    )
    assert "H2Tune" in reason
    assert "Local only" not in reason
    assert reason.endswith("or set `group_by` to `architecture`, so that only equal clients share.")


def test_grouping_is_suggested_only_where_it_exists() -> None:
    (reason,) = reasons(NOTHING, participant("a"), participant("b", lora_rank=2), groupable=False)
    assert "group_by" not in reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": ("llama", 6, 128)}, "number of layers (6 instead of 4)"),
        ({"shape": ("llama", 4, 96)}, "hidden size (96 instead of 128)"),
        ({"shape": ("gpt2", 4, 128)}, "family (gpt2 instead of llama)"),
        (
            {"shape": ("gpt2", 6, 96), "lora_rank": 2},
            "number of layers (6 instead of 4), family (gpt2 instead of llama) and hidden size "
            "(96 instead of 128)",
        ),
    ],
)
def test_differences_are_named_where_they_are_not_handled(
    changes: dict[str, Any], words: str
) -> None:
    (reason,) = reasons(RANKS, participant("a"), participant("b", **changes))
    assert f" in {words}, and Plain" in reason
    assert ": leave it out, " in reason
    assert reasons(ALL, participant("a"), participant("b", **changes)) == []


def test_shapes_of_modules_count_when_all_are_known() -> None:
    narrow, wide = {"q": (32, 32)}, {"q": (32, 64)}
    (reason,) = reasons(RANKS, participant("a", modules=narrow), participant("b", modules=wide))
    assert "shapes of the adapted modules (q 64x32 instead of q 32x32)" in reason
    assert reasons(RANKS, participant("a", modules=narrow), participant("b")) == []


def test_the_majority_is_the_measure_whatever_the_order() -> None:
    clients = [participant("a", lora_rank=2), participant("b"), participant("c")]
    expected = incompatibilities("Plain", NOTHING, clients, groupable=True)
    assert [found.client_name for found in expected] == ["clinic-a"]
    assert "(2 instead of 8)" in expected[0].reason
    assert incompatibilities("Plain", NOTHING, clients[::-1], groupable=True) == expected


def test_tasks_are_never_a_reason_to_refuse() -> None:
    assert reasons(NOTHING, participant("a"), participant("b", task=TaskKind.CHOICE)) == []


@pytest.mark.parametrize("params", [LocalOnlyParams(), H2TuneParams()])
def test_some_strategies_serve_everybody(params: Any) -> None:
    clients = [participant("a"), participant("b", shape=("gpt2", 6, 96), lora_rank=2)]
    assert refusals(params, clients) == []
    assert groups(params, clients[::-1]) == [clients]


def test_a_strategy_is_known_by_its_parameters() -> None:
    clients = [participant("a"), participant("b", lora_rank=2), participant("c", shape=WIDE)]
    found = refusals(FedItParams(), clients)
    assert [refusal.client_id for refusal in found] == ["b", "c"]
    assert "FedIT needs equal ones" in found[0].reason
    assert [refusal.client_id for refusal in refusals(FlexLoraParams(), clients)] == ["c"]


@pytest.mark.parametrize(
    ("params", "expected", "title"),
    [
        (
            FedItParams(group_by="architecture"),
            ["ad", "b", "c", "e"],
            "FedIT, in groups of equal architecture and rank",
        ),
        (
            FlexLoraParams(group_by="architecture"),
            ["abd", "c", "e"],
            "FlexLoRA, in groups of equal architecture",
        ),
        (FlexLoraParams(), ["abcde"], "FlexLoRA"),
    ],
)
def test_groups_have_all_in_common_that_the_strategy_needs(
    params: Any, expected: list[str], title: str
) -> None:
    clients = [
        participant("a"),
        participant("b", lora_rank=2),
        participant("c", shape=WIDE),
        participant("d"),
        participant("e", shape=DEEP),
    ]
    found = groups(params, clients[::-1])
    assert ["".join(member.client_id for member in group) for group in found] == expected
    assert title_of(params) == title


@pytest.mark.parametrize(
    ("control", "title"), [("none", "H2Tune"), ("alone", "H2Tune, control: alone")]
)
def test_a_run_of_a_control_is_not_taken_for_one_of_the_strategy(control: Any, title: str) -> None:
    assert title_of(H2TuneParams(control=control)) == title


def test_grouping_serves_everybody_and_says_who_is_alone() -> None:
    params = FedItParams(group_by="architecture")
    clients = [participant("a"), participant("b"), participant("c", shape=WIDE)]
    assert refusals(params, clients) == []
    (caution,) = cautions(params, clients)
    assert caution.startswith("'clinic-c' has no other client of its shape")
    assert "trains alone" in caution


def test_tasks_that_differ_are_a_caution_where_they_matter() -> None:
    clients = [participant("a"), participant("b", task=TaskKind.CHOICE)]
    (caution,) = cautions(FlexLoraParams(), clients)
    assert "FlexLoRA" in caution
    assert "(choice, fill_in)" in caution
    assert cautions(H2TuneParams(), clients) == []
    assert cautions(FlexLoraParams(), clients[:1]) == []


def test_an_exchange_that_will_not_happen_is_a_caution() -> None:
    params = H2TuneParams(codes="exchange")
    choosing = participant("a", task=TaskKind.CHOICE)
    assert cautions(params, [choosing]) == []
    (caution,) = cautions(params, [choosing, participant("b")])  # where `auto` is `none`
    assert "nothing is exchanged" in caution
    assert cautions(params.model_copy(update={"gauge": "probe"}), [participant("b")]) == []
