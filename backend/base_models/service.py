"""Which base models there are, and the shape of the one that a client names."""

from collections.abc import Sequence
from pathlib import Path

from backend.base_models.folders import read_folder
from backend.contracts.base_models import (
    BUILTIN_MODELS,
    BUILTIN_NUM_PARAMETERS,
    IMAGE_MODELS,
    Architecture,
    BaseModelInfo,
    BaseModelRef,
    BuiltinModelName,
)
from backend.contracts.common import FieldError
from backend.contracts.enums import Execution
from backend.errors import InvalidError


def list_base_models() -> list[BaseModelInfo]:
    """The base models that ship with the platform."""
    return [
        BaseModelInfo(
            ref=BaseModelRef(source="builtin", id=name),
            architecture=architecture,
            reads="image" if name in IMAGE_MODELS else "text",
            num_parameters=BUILTIN_NUM_PARAMETERS[name],
        )
        for name, architecture in BUILTIN_MODELS.items()
    ]


def resolve_architecture(
    ref: BaseModelRef,
    declared: Architecture | None,
    execution: Execution,
    model_folders: Sequence[Path],
) -> Architecture:
    """The shape of a client's base model: read where the platform can, else as declared.

    Args:
        ref: the base model.
        declared: what the client says; must agree with what the platform reads.
        execution: a remote client's folder lies on its own machine, where only it can look.
        model_folders: folders of the platform below which models may lie.

    Raises:
        InvalidError: unknown or unusable model, missing or contradicting declaration.
    """
    known = _known_architecture(ref, execution, model_folders)
    if known is None:
        if declared is None:
            raise _refused(
                "architecture",
                f"The platform cannot read base model {ref.id!r} itself. Declare `architecture` "
                "with family, num_layers and hidden_size, as its config.json states them.",
            )
        return declared
    if declared is not None and declared != known:
        raise _refused(
            "architecture",
            f"The declared architecture ({_spelled(declared)}) contradicts base model {ref.id!r}, "
            f"which has {_spelled(known)}. Correct it, or leave `architecture` out.",
        )
    return known


def _known_architecture(
    ref: BaseModelRef, execution: Execution, model_folders: Sequence[Path]
) -> Architecture | None:
    match ref.source:
        case "builtin":
            if ref.id not in set(BuiltinModelName):
                raise _refused(
                    "base_model.id",
                    f"There is no built-in base model {ref.id!r}. Choose one of "
                    f"{', '.join(BuiltinModelName)}.",
                )
            return BUILTIN_MODELS[BuiltinModelName(ref.id)]
        case "folder" if execution is Execution.MANAGED:
            return read_folder(ref.id, model_folders)
        case _:
            return None


def _spelled(architecture: Architecture) -> str:
    return (
        f"family {architecture.family}, {architecture.num_layers} layers, "
        f"width {architecture.hidden_size}"
    )


def _refused(field: str, message: str) -> InvalidError:
    return InvalidError(
        message,
        code="base_model_refused",
        errors=[FieldError(field=field, message=message)],
    )
