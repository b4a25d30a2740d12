"""A round that was interrupted goes on and ends with the same bits."""

import random
from dataclasses import replace

import pytest
import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import at_work, federation_of, plans_of, training
from tests.worker.federated.tiny import make_client
from worker.federated.checkpoint import Checkpointing
from worker.federated.strategies.registry import build_strategy
from worker.federated.types import ClientUpdate, Tensors
from worker.federated.wire import decode_private, encode_private

NUM_STEPS = 7
CONFIG = training(
    local_steps=NUM_STEPS,
    lora_dropout=0.2,
    lr_schedule="cosine",
    warmup_fraction=0.3,
    gradient_accumulation_steps=2,
    batch_size=2,
)
STRATEGIES: dict[str, Params] = {
    "local_only": LocalOnlyParams(),
    "joint": H2TuneParams(gauge="none", train_alignment=True, mask_warmup_rounds=1),
    **{
        granularity: H2TuneParams.model_validate(
            {
                "gauge": "none",
                "train_alignment": True,
                "joint_rounds": 0,
                "granularity": granularity,
                "distillation_weight": 1.0,
            }
        )
        for granularity in ("round", "epoch", "step")
    },
}


class InterruptedRoundError(Exception):
    """What a killed process looks like from within."""


def one_round(
    params: Params, checkpointing: Checkpointing, private: Tensors | None, number: int
) -> ClientUpdate:
    member, strategy = make_client("a", num_train=12), build_strategy(params)
    state = strategy.init_state(federation_of([member]), 0)
    plan = plans_of(strategy, state, [member], number)["a"]
    client = replace(at_work(member, CONFIG, private), checkpointing=checkpointing)
    return strategy.train_client(plan, client)


def interrupted_at(step: int, params: Params, private: Tensors | None) -> Tensors:
    """The last state that was saved before a round died after `step` steps."""
    saved: list[bytes] = []

    def save(state: Tensors) -> None:
        saved.append(encode_private(state))
        if len(saved) == step:
            raise InterruptedRoundError

    with pytest.raises(InterruptedRoundError):
        one_round(params, Checkpointing(save, interval_seconds=0), private, 2)
    return decode_private(saved[-1])


@pytest.mark.parametrize("name", STRATEGIES)
def test_going_on_gives_the_bits_of_an_uninterrupted_round(name: str) -> None:
    params = STRATEGIES[name]
    first = one_round(params, Checkpointing(), None, 1).private
    whole = one_round(params, Checkpointing(), first, 2)
    step = random.Random(name).randint(1, NUM_STEPS)
    resumed = one_round(
        params, Checkpointing(resume_from=interrupted_at(step, params, first)), first, 2
    )
    for part in ("shared", "private"):
        one, two = getattr(whole, part), getattr(resumed, part)
        assert one.keys() == two.keys()
        assert [n for n in one if not torch.equal(one[n], two[n])] == [], (name, step)
    same = {k: v for k, v in whole.metrics.items() if not k.startswith(("seconds", "peak"))}
    assert same == {k: resumed.metrics[k] for k in same}


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_every_step_can_be_the_last(step: int) -> None:
    params = STRATEGIES["round"]
    first = one_round(params, Checkpointing(), None, 1).private
    whole = one_round(params, Checkpointing(), first, 2)
    state = interrupted_at(step, params, first)
    resumed = one_round(params, Checkpointing(resume_from=state), first, 2)
    assert all(torch.equal(whole.private[n], t) for n, t in resumed.private.items())


def changed(state: Tensors, how: str) -> Tensors:
    return {
        "empty": {},
        "another round": {**state, "round": state["round"] + 1},
        "too far": {**state, "step": torch.tensor(NUM_STEPS + 1)},
        "other parameters": {n: t for n, t in state.items() if "/A/" not in n},
        "no generator": {n: t for n, t in state.items() if not n.startswith("random/")},
    }[how]


@pytest.mark.parametrize(
    "how", ["empty", "another round", "too far", "other parameters", "no generator"]
)
def test_a_state_that_does_not_fit_is_ignored(how: str, caplog: pytest.LogCaptureFixture) -> None:
    params = STRATEGIES["local_only"]
    first = one_round(params, Checkpointing(), None, 1).private
    whole = one_round(params, Checkpointing(), first, 2)
    foreign = changed(interrupted_at(3, params, first), how)
    resumed = one_round(params, Checkpointing(resume_from=foreign), first, 2)
    assert all(torch.equal(whole.private[n], t) for n, t in resumed.private.items())
    assert "the round starts over" in caplog.text


def test_nothing_is_saved_before_the_interval_has_passed() -> None:
    saved: list[Tensors] = []
    one_round(STRATEGIES["local_only"], Checkpointing(saved.append, 3600.0), None, 1)
    assert saved == []
