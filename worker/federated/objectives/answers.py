"""Which objective a causal model gets for answers in words."""

from transformers import PreTrainedTokenizerBase

from backend.contracts.enums import TaskKind
from backend.contracts.training import TrainingConfig
from worker.federated.objectives.causal import CausalObjective
from worker.federated.objectives.labels import LabelObjective
from worker.federated.objectives.objective import Objective
from worker.federated.types import ClientData

_CHOOSING = {TaskKind.CHOICE, TaskKind.CLASSIFICATION}


def answer_objective(
    tokenizer: PreTrainedTokenizerBase, data: ClientData, training: TrainingConfig
) -> Objective:
    """Label likelihood where the run asks for it and the task has labels, else whole answers.

    Args:
        tokenizer: the model's.
        data: the client's; its answers are the labels.
        training: `answer_loss` and lengths.
    """
    if training.answer_loss == "labels" and data.task in _CHOOSING:
        examples = (*data.train, *data.validation, *data.test)
        return LabelObjective(
            tokenizer,
            data.task,
            sorted({example.answer.strip() for example in examples}),
            max_length=training.max_length,
            max_eval_examples=training.max_eval_examples,
        )
    return CausalObjective(tokenizer, data.task, training.max_length, training.max_eval_examples)
