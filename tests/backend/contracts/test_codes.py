"""Which runs are refused because there cannot be as many codes as they need."""

import pytest

from backend.contracts.codes import codes_refusal
from backend.contracts.enums import TaskKind
from backend.contracts.params.colora import CoLoraParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.strategies import Params

CHOICE = [TaskKind.CHOICE]
EXCHANGE = H2TuneParams(codes="exchange")


def never() -> int:
    raise AssertionError("nobody has to count texts that nobody reads")


@pytest.mark.parametrize("params", [H2TuneParams(), EXCHANGE, CoLoraParams()])
def test_there_must_be_more_texts_than_codes(params: Params) -> None:
    assert codes_refusal(params, CHOICE, 59, lambda: 60) is None
    reason = codes_refusal(params, CHOICE, 60, lambda: 60)
    assert reason is not None
    assert "it is 60, and the federation has 60 texts. Upload a larger probe set" in reason


def test_the_reference_model_has_so_many_codes_as_it_is_wide() -> None:
    assert codes_refusal(H2TuneParams(), CHOICE, 128, lambda: 600) is None
    reason = codes_refusal(H2TuneParams(), CHOICE, 129, lambda: 600)
    assert reason is not None
    assert "has 128 of them at most" in reason
    assert "codes to 'exchange'" in reason
    assert codes_refusal(EXCHANGE, CHOICE, 129, lambda: 600) is None
    other = codes_refusal(CoLoraParams(), CHOICE, 129, lambda: 600)
    assert other is not None
    assert "exchange" not in other  # it has no such choice


@pytest.mark.parametrize(
    ("params", "task"),
    [
        (LocalOnlyParams(), TaskKind.CHOICE),
        (H2TuneParams(gauge="none", codes="exchange"), TaskKind.CHOICE),
        (EXCHANGE, TaskKind.FILL_IN),  # where `auto` is `none`
        (CoLoraParams(gauge="orthonormal"), TaskKind.CHOICE),
    ],
)
def test_without_codes_texts_do_not_matter(params: Params, task: TaskKind) -> None:
    assert codes_refusal(params, [task], 4096, never) is None
