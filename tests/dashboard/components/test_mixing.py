"""Who learns from whom, as a matrix."""

from uuid import UUID

import pytest

from dashboard.components.charts import client_styles
from dashboard.components.mixing import mixing_figure, mixing_weights

NORTH, SOUTH, EAST = UUID(int=1), UUID(int=2), UUID(int=3)
STYLES = client_styles({NORTH: "north", SOUTH: "south", EAST: "east"})
REPORT = {
    "sketch_cosine": 0.5,
    f"mixing_weight/{NORTH}/{SOUTH}": 0.25,
    f"mixing_weight/{NORTH}/{EAST}": 0.75,
    f"group_1/mixing_weight/{SOUTH}/{NORTH}": 1.0,
}


def test_weights_are_read_by_receiver_and_source() -> None:
    assert mixing_weights(REPORT) == {NORTH: {SOUTH: 0.25, EAST: 0.75}, SOUTH: {NORTH: 1.0}}
    assert mixing_weights({"relative_change": 0.1}) == {}


def test_rows_receive_and_columns_give_in_percent_with_gaps_where_nothing_flows() -> None:
    [heat] = mixing_figure(STYLES, mixing_weights(REPORT)).data
    assert tuple(heat.x) == tuple(heat.y) == ("east", "north", "south")
    assert [list(row) for row in heat.z] == [
        [None, None, None],
        [75.0, None, 25.0],
        [None, 100.0, None],
    ]
    assert heat.texttemplate is not None


@pytest.mark.parametrize(("num_clients", "has_numbers"), [(15, True), (16, False)])
def test_cells_of_many_clients_have_no_numbers(num_clients: int, has_numbers: bool) -> None:
    clients = [UUID(int=i) for i in range(num_clients)]
    weights = {one: {two: 0.1 for two in clients if two != one} for one in clients}
    [heat] = mixing_figure(client_styles({c: f"c{c.int}" for c in clients}), weights).data
    assert (heat.texttemplate is not None) is has_numbers
