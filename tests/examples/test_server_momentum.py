"""The worked example of "Add a strategy": it runs, and the page shows the code that runs."""

import re
import runpy
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from tests.worker.federated.strategies.rounds import at_work, federation_of, run_round, training
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.client_round import take
from worker.federated.strategy import Strategy
from worker.federated.types import Tensors

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "server_momentum.py"
PAGE = ROOT / "docs" / "how-to" / "add-a-strategy.md"


EXAMPLE = runpy.run_path(str(SCRIPT))


def strategy_with(momentum: float) -> Strategy:
    strategy: Strategy = EXAMPLE["ServerMomentum"](
        EXAMPLE["ServerMomentumParams"](momentum=momentum)
    )
    return strategy


def test_the_velocity_is_that_of_a_hand_written_sum(tmp_path: Path) -> None:
    clients = [make_client("a", num_train=8), make_client("b", num_train=8, seed=1)]
    strategy, federation = strategy_with(0.5), federation_of(clients)
    state, private, means = strategy.init_state(federation, 0), {}, []
    commons: list[Tensors] = [take("common", state.tensors)]
    for number in (1, 2):
        config = training(local_steps=2, evaluate_every=100)
        updates = run_round(strategy, state, clients, number, config, private)
        private = {update.client_id: update.private for update in updates}
        state, _ = strategy.aggregate(state, federation, iter(updates))
        means.append((updates[0].shared, updates[1].shared))
        commons.append(take("common", state.tensors))
    for name, last in commons[2].items():
        start, middle = commons[0][name].numpy(), commons[1][name].numpy()
        first, second = ((one[name].numpy() + two[name].numpy()) / 2 for one, two in means)
        np.testing.assert_allclose(middle, first, atol=1e-6)
        expected = middle + 0.5 * (first - start) + (second - middle)
        np.testing.assert_allclose(last.numpy(), expected, atol=1e-6)
    plan = strategy.configure_round(state, federation, 3, deliver=True)["a"]
    strategy.deliver_client(plan, at_work(clients[0], config, private["a"]), tmp_path)
    base = at_work(clients[0], config).model
    before = base(**make_inputs("llama")).logits
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert not torch.equal(loaded(**make_inputs("llama")).logits, before)


def test_the_page_shows_the_code_of_the_example() -> None:
    code = SCRIPT.read_text()
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    shown = [block for block in blocks if "StrategyName." not in block]
    assert len(shown) == 3
    assert all(block in code for block in shown)


def test_all_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert links
    assert all((PAGE.parent / link).exists() for link in links)
