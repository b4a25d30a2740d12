"""Adapters as PEFT methods; importing this package registers them."""

from peft.utils import register_peft_method

from worker.federated.adapters.registration import add_peft_type

add_peft_type("TRILORA")
add_peft_type("FEDADAPTER")

from worker.federated.adapters.config import TriLoraConfig  # noqa: E402
from worker.federated.adapters.export import export_lora  # noqa: E402
from worker.federated.adapters.fedadapter_config import FedAdapterConfig  # noqa: E402
from worker.federated.adapters.fedadapter_layer import FedAdapterBlock  # noqa: E402
from worker.federated.adapters.fedadapter_model import FedAdapterModel  # noqa: E402
from worker.federated.adapters.layer import TriLoraLinear, folded  # noqa: E402
from worker.federated.adapters.model import TriLoraModel  # noqa: E402

register_peft_method(name="trilora", config_cls=TriLoraConfig, model_cls=TriLoraModel)
register_peft_method(name="fedadapter", config_cls=FedAdapterConfig, model_cls=FedAdapterModel)

__all__ = [
    "FedAdapterBlock",
    "FedAdapterConfig",
    "FedAdapterModel",
    "TriLoraConfig",
    "TriLoraLinear",
    "TriLoraModel",
    "export_lora",
    "folded",
]
