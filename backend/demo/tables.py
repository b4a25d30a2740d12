"""The demo's figures as tables that fit a terminal of 80 columns."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from backend.contracts.enums import StrategyName
from backend.demo.figures import ClientFigures

_KIB = 1024


def accuracy_table(clients: Sequence[ClientFigures], strategy: StrategyName) -> Table:
    """Accuracy before, alone and together, of the adapters that clients take home.

    Where the control was run, the same shape alone stands before the strategy.
    """
    tasks = ", ".join(sorted({client.task.value for client in clients}))
    table = _table(f"Accuracy on each client's test data: {tasks}", ["client", "model"])
    has_control = any(client.accuracy_same_shape_alone is not None for client in clients)
    control = ["shape alone"] if has_control else []
    for name in ("rank", "before", StrategyName.LOCAL_ONLY.value, *control, strategy.value):
        table.add_column(name, justify="right")
    for client in clients:
        shares = [client.accuracy["initial"], client.accuracy[StrategyName.LOCAL_ONLY]]
        if client.accuracy_same_shape_alone is not None:
            shares.append(client.accuracy_same_shape_alone)
        table.add_row(
            client.name,
            f"{client.family} {client.layers}x{client.hidden}",
            str(client.rank),
            *(f"{share:.1%}" for share in (*shares, client.accuracy[strategy])),
        )
    return table


def cost_table(
    clients: Sequence[ClientFigures],
    strategy: StrategyName,
    seconds: Mapping[str, Sequence[float]],
) -> Table:
    """What a client sends, receives and computes.

    Args:
        clients: the figures.
        strategy: what was compared with `local_only`.
        seconds: training time by client name: of the `local_only` run and of the other.
    """
    table = _table(f"Cost of {strategy} per round; seconds of training in all", ["client"])
    for name in ("zeros in shared", "KiB up", "KiB down"):
        table.add_column(name, justify="right")
    for name in (StrategyName.LOCAL_ONLY.value, strategy.value):
        table.add_column(f"s {name}", justify="right")
    for client in clients:
        table.add_row(
            client.name,
            f"{client.sparsity:.1%}",
            f"{client.bytes_up_per_round / _KIB:.1f}",
            f"{client.bytes_down_per_round / _KIB:.1f}",
            *(f"{value:.1f}" for value in seconds[client.name]),
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table
