"""Whether a run can have the codes of public texts that its strategy needs."""

from collections.abc import Callable, Collection

from backend.contracts.base_models import BUILTIN_MODELS, BuiltinModelName
from backend.contracts.enums import TaskKind
from backend.contracts.h2tune_defaults import exchanges_codes, gauge_for
from backend.contracts.params.colora import CoLoraParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.strategies import Params

REFERENCE_MODEL = BuiltinModelName.TINY_LLAMA
"""The public model whose codes all clients take where they do not agree on codes themselves."""


def codes_refusal(
    params: Params,
    tasks: Collection[TaskKind],
    global_rank: int,
    count_texts: Callable[[], int],
) -> str | None:
    """Why there cannot be as many codes as a run needs, with the remedy; None: there can.

    Args:
        params: the strategy.
        tasks: kinds of tasks of all members.
        global_rank: R, the number of codes.
        count_texts: gives the number of probe texts; only asked where codes are needed.
    """
    if not _needs_codes(params, tasks):
        return None
    width = BUILTIN_MODELS[REFERENCE_MODEL].hidden_size
    if not exchanges_codes(params, tasks) and global_rank > width:
        exchange = ", or set codes to 'exchange'" if isinstance(params, H2TuneParams) else ""
        return (
            f"gauge is 'probe' and global_rank is {global_rank}, but the public model that gives "
            f"the codes has {width} of them at most: make a federation with a lower global rank, "
            f"or choose another gauge{exchange}."
        )
    num_texts = count_texts()
    if num_texts > global_rank:
        return None
    return (
        f"gauge is 'probe', which needs more probe texts than global_rank: it is {global_rank}, "
        f"and the federation has {num_texts} texts. Upload a larger probe set (400 to 1,000 texts "
        "are good), choose another gauge, or make a federation with a lower global rank."
    )


def _needs_codes(params: Params, tasks: Collection[TaskKind]) -> bool:
    if isinstance(params, H2TuneParams):
        return gauge_for(params, tasks) == "probe"
    return isinstance(params, CoLoraParams) and params.gauge == "probe"
