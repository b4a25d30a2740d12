"""From rows of the database to what strategies know of clients."""

from pydantic import TypeAdapter

from backend.contracts.base_models import Architecture, BaseModelRef, Modules, ModuleShape
from backend.contracts.datasets import BuiltinDataset, DatasetRef, UploadedDataset
from backend.contracts.enums import Execution
from backend.db.models import Client
from worker.federated import types
from worker.federated.base_models import inspect_base_model
from worker.federated.errors import FederatedError

_DATASET: TypeAdapter[BuiltinDataset | UploadedDataset] = TypeAdapter(DatasetRef)
_MODULES: TypeAdapter[dict[str, ModuleShape]] = TypeAdapter(Modules)
_Shape = tuple[Architecture, dict[str, types.ModuleShape], int]


def describe_federation(
    clients: list[Client], global_rank: int, probes: tuple[str, ...] = ()
) -> types.FederationSpec:
    """All members, in order of client id, and the probe texts of the run, if it has its own.

    Raises:
        FederatedError: a member has no data set, or its base model cannot be used.
    """
    specs = sorted((describe_client(client) for client in clients), key=lambda s: s.client_id)
    return types.FederationSpec(global_rank, tuple(specs), probes)


def describe_client(client: Client) -> types.ClientSpec:
    """One member: inspected where it is managed, as it declared itself where it is remote.

    Raises:
        FederatedError: it has no data set or no declaration, or its base model cannot be used.
    """
    architecture, modules, num_examples = (
        _declared(client) if client.execution is Execution.REMOTE else _inspected(client)
    )
    return types.ClientSpec(
        client_id=str(client.id),
        name=client.name,
        architecture=architecture,
        modules=modules,
        lora_rank=client.lora_rank,
        lora_alpha=client.lora_alpha,
        num_examples=num_examples,
        task=client.task,
    )


def _inspected(client: Client) -> _Shape:
    """A managed client's model and data lie here."""
    architecture, modules = inspect_base_model(BaseModelRef.model_validate(client.base_model))
    if client.dataset is None:
        raise FederatedError(f"{client.name} has no data set: upload one, then start a new run.")
    return architecture, modules, _DATASET.validate_python(client.dataset).num_train


def _declared(client: Client) -> _Shape:
    """Of a remote client only its own word is known."""
    if client.modules is None or client.num_examples is None:
        raise FederatedError(
            f"{client.name} is remote, but declared no modules or number of examples: register it "
            "anew with `python -m worker.agent register`."
        )
    declared = _MODULES.validate_python(client.modules)
    modules = {
        role: types.ModuleShape(m.in_features, m.out_features) for role, m in declared.items()
    }
    return Architecture.model_validate(client.architecture), modules, client.num_examples
