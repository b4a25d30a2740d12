"""Training on label likelihoods."""

import pytest
import torch

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from tests.worker.federated.tiny import make_data, make_model, make_tokenizer
from worker.federated.errors import InvalidConfigError
from worker.federated.evaluation import evaluate
from worker.federated.objectives.labels import LabelObjective
from worker.federated.tasks.encoding import encode_prompts

LABELS = ["yes", "no", "no story"]


def objective(labels: list[str]) -> LabelObjective:
    return LabelObjective(make_tokenizer(), TaskKind.CLASSIFICATION, labels, max_length=48)


def test_a_logit_is_the_log_likelihood_of_the_whole_label() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    labels = ["yes", "good film", "good story"]
    rows = [
        Example(question=question, answer="yes", split="train")
        for question in ("the film was good", "a sad story")
    ]
    goal = objective(labels)
    found = goal.target_logits(model, goal.collate(goal.encode(rows)))
    prompts = encode_prompts(tokenizer, TaskKind.CLASSIFICATION, rows, 48)
    for prompt, logits in zip(prompts, found, strict=True):
        for label, logit in zip(labels, logits, strict=True):
            tokens = tokenizer(label, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([prompt + tokens])
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
            expected = sum(
                log_probs[len(prompt) - 1 + at, token] for at, token in enumerate(tokens)
            )
            assert torch.allclose(logit, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_accuracy_agrees_with_the_evaluation_of_the_platform(family: str) -> None:
    model, data = make_model(family), make_data()
    found = objective(["no", "yes"]).accuracy(model, data.test)
    expected = evaluate(model, make_tokenizer(), TaskKind.CLASSIFICATION, data.test, max_length=48)
    assert found == expected.accuracy


def test_labels_must_be_told_apart() -> None:
    with pytest.raises(InvalidConfigError, match="'no' begins 'no story'"):
        objective(LABELS)
    with pytest.raises(InvalidConfigError, match="nothing to choose"):
        objective(["yes"])
