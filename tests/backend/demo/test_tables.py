from io import StringIO

from rich.console import Console

from backend.contracts.enums import StrategyName, TaskKind
from backend.demo.figures import ClientFigures
from backend.demo.tables import accuracy_table, cost_table

CLIENT = ClientFigures(
    name="east-hospital",
    family="gemma",
    layers=6,
    hidden=128,
    rank=16,
    task=TaskKind.PROGRAM,
    accuracy={"initial": 0.101, "local_only": 0.202, "h2tune": 0.303},
    sparsity=0.9375,
    bytes_up_per_round=43712,
    bytes_down_per_round=1024,
)


def rendered(*tables: object) -> str:
    console = Console(file=StringIO(), width=80)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_both_tables_fit_80_columns_without_a_cut() -> None:
    seconds = {"east-hospital": [12.34, 1234.56]}
    text = rendered(
        accuracy_table([CLIENT], StrategyName.H2TUNE),
        cost_table([CLIENT], StrategyName.H2TUNE, seconds),
    )
    assert "…" not in text
    cells = ("10.1%", "20.2%", "30.3%", "gemma 6x128", "93.8%", "42.7", "1.0", "12.3", "1234.6")
    assert all(cell in text for cell in cells)


def test_the_control_has_a_column_where_it_was_run() -> None:
    without = rendered(accuracy_table([CLIENT], StrategyName.H2TUNE))
    assert "alone" not in without
    controlled = CLIENT.model_copy(
        update={
            "name": "city-institute",
            "task": TaskKind.CLASSIFICATION,
            "accuracy_same_shape_alone": 1.0,
        }
    )
    text = rendered(accuracy_table([controlled], StrategyName.H2TUNE))
    assert "…" not in text
    heads = ("classification", "before", "local_only", "shape alone", "h2tune")
    places = [text.index(head) for head in heads]
    assert places == sorted(places)
    shares = [text.index(share) for share in ("10.1%", "20.2%", "100.0%", "30.3%")]
    assert shares == sorted(shares)
