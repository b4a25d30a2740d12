"""What lies on the client's own machine: its base model and its data. Neither ever leaves."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from backend.contracts.base_models import Architecture, BaseModelRef
from backend.contracts.base_models import ModuleShape as DeclaredShape
from backend.contracts.clients import Client
from backend.contracts.datasets import BUILTIN_TASK_KINDS, SPLITS, BuiltinDataset, Example
from backend.contracts.enums import Execution, TaskKind
from worker.agent.errors import AgentError
from worker.federated.base_models import BUILTIN_PREFIX, inspect_base_model, named_model
from worker.federated.tasks.generators import generate
from worker.federated.tasks.images import read_image_folder
from worker.federated.tasks.sources import read_examples
from worker.federated.types import ClientData, ClientSpec, ModuleShape


@dataclass(frozen=True, slots=True)
class Premises:
    """A base model, its shapes, and data that fit a task."""

    model: BaseModelRef
    architecture: Architecture
    modules: dict[str, ModuleShape]
    data: ClientData
    pictures: Path | None = None  # their folder, for tasks that read them

    def public_model(self) -> BaseModelRef:
        """What the platform is told: of a folder its name only, not where it lies."""
        if self.model.source == "folder":
            return BaseModelRef(source="folder", id=Path(self.model.id).name)
        return self.model

    def declared_modules(self) -> dict[str, DeclaredShape]:
        """The shapes of the adapted modules as contracts say them."""
        return {
            role: DeclaredShape(in_features=m.in_features, out_features=m.out_features)
            for role, m in self.modules.items()
        }

    def spec(self, client: Client) -> ClientSpec:
        """The client as its own training sees it.

        Raises:
            AgentError: the model or the data here are not those that the client registered.
        """
        if client.execution is not Execution.REMOTE:
            raise AgentError(
                f"{client.name} is a managed client: the platform trains for it. Register a remote "
                "one with `python -m worker.agent register`."
            )
        if (client.architecture, client.modules) != (self.architecture, self.declared_modules()):
            raise AgentError(
                f"--model {self.model.id!r} is not the base model with which {client.name} "
                f"registered ({client.base_model.id!r}): family, depth or widths differ. Give that "
                "model, or register anew."
            )
        if client.num_examples != len(self.data.train):
            raise AgentError(
                f"--data has {len(self.data.train)} training rows, but {client.name} registered "
                f"{client.num_examples}. Give the same data, or register anew."
            )
        return ClientSpec(
            client_id=str(client.id),
            name=client.name,
            architecture=self.architecture,
            modules=self.modules,
            lora_rank=client.lora_rank,
            lora_alpha=client.lora_alpha,
            num_examples=client.num_examples,
            task=client.task,
        )


def open_premises(model: str, data: str, task: TaskKind) -> Premises:
    """Reads the shapes of the model and all rows of the data.

    Args:
        model: a folder, `builtin:NAME`, or an id of the Hugging Face hub.
        data: as `worker.federated.tasks.sources.read_examples` takes it; a folder of pictures, as
            `read_image_folder` takes it, for `image_classification`; or
            `builtin:TASK[,seed=0][,num_train=64][,num_validation=32][,num_test=128]`.
        task: what the client's model learns to do.

    Raises:
        AgentError: the built-in task does not exist or does not fit.
        FederatedError: the model does not exist or cannot be adapted, or a row breaks a rule.
    """
    ref = named_model(model)
    architecture, modules = inspect_base_model(ref)
    if task is TaskKind.IMAGE_CLASSIFICATION and not data.startswith(BUILTIN_PREFIX):
        folder = Path(data).expanduser().resolve()
        return Premises(ref, architecture, modules, read_image_folder(folder), folder)
    rows = _builtin(data, task) if data.startswith(BUILTIN_PREFIX) else read_examples(data, task)
    train, validation, test = (tuple(row for row in rows if row.split == split) for split in SPLITS)
    examples = ClientData(task=task, train=train, validation=validation, test=test)
    return Premises(ref, architecture, modules, examples)


def _builtin(data: str, task: TaskKind) -> list[Example]:
    name, *options = data.removeprefix(BUILTIN_PREFIX).split(",")
    values = dict(option.partition("=")[::2] for option in options)
    try:
        dataset = BuiltinDataset.model_validate({"task": name, **values})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "data"
        raise AgentError(f"--data {data!r}: {where}: {first['msg']}") from error
    kind = BUILTIN_TASK_KINDS[dataset.task]
    if kind is not task:
        raise AgentError(
            f"--data {data!r} is for task {kind.value}, not {task.value}. Make them agree."
        )
    return list(generate(dataset))
