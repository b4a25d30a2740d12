"""The contracts' rules on who can work together, asked with what the core knows of clients."""

from backend.contracts.compatibility import Participant, refusals
from backend.contracts.strategies import Params
from worker.federated.types import ClientSpec, FederationSpec, Refusal


def participant_of(client: ClientSpec) -> Participant:
    """A client as far as its shape goes; the shapes of its modules are always known here."""
    return Participant(
        client_id=client.client_id,
        name=client.name,
        architecture=client.architecture,
        lora_rank=client.lora_rank,
        task=client.task,
        modules={r: (m.in_features, m.out_features) for r, m in client.modules.items()},
    )


def refuse_unequal(params: Params, federation: FederationSpec) -> list[Refusal]:
    """Clients that differ in what the strategy needs to be equal, by its `Capabilities`."""
    members = [participant_of(client) for client in federation.clients]
    return [Refusal(found.client_id, found.reason) for found in refusals(params, members)]
