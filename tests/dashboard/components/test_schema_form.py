import pytest
from pydantic import ValidationError

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.runs import RunCreate
from backend.contracts.strategies import describe_strategies
from backend.contracts.training import TrainingConfig
from dashboard.components.compatibility import layer_slots
from dashboard.components.form_errors import validation_errors
from dashboard.components.run_form import errors_below
from dashboard.components.schema_form import form_fields


def fields(model: type) -> dict:
    return {field.name: field for field in form_fields(model.model_json_schema())}


def test_every_parameter_of_every_strategy_has_a_field_with_its_default() -> None:
    for info in describe_strategies():
        shown = {field.name: field.default for field in form_fields(info.params_schema)}
        properties = info.params_schema["properties"]
        assert shown == {
            name: prop.get("default") for name, prop in properties.items() if "const" not in prop
        }


def test_kinds_and_titles() -> None:
    found = fields(H2TuneParams)
    assert found["layout"].kind == "enum"
    assert found["layout"].choices == ("block", "mask", "gather")
    assert found["train_alignment"].kind == "boolean"
    assert found["joint_rounds"].kind == "integer"
    assert found["norm_weight"].kind == "number"
    assert found["joint_rounds"].title == "Joint rounds"
    assert "name" not in found


def test_ranges_and_empty_values() -> None:
    found = fields(H2TuneParams)
    assert (found["sparsity"].minimum, found["sparsity"].maximum) == (0, 1)
    assert found["sparsity"].nullable
    assert found["sparsity"].default is None
    steps = fields(TrainingConfig)["local_steps"]
    assert (steps.minimum, steps.maximum, steps.default) == (0, 1_000_000, 40)
    assert "at least 0, less than 1" in found["sparsity"].help


def test_an_excluded_limit_of_an_integer_is_not_offered() -> None:
    schema = {"properties": {"n": {"type": "integer", "exclusiveMinimum": 3}}}
    assert form_fields(schema)[0].minimum == 4


def test_an_excluded_limit_of_a_number_is_refused_and_lands_at_its_field() -> None:
    with pytest.raises(ValidationError) as caught:
        RunCreate.model_validate(
            {
                "strategy": {"name": "h2tune", "sparsity": 1.0},
                "training": {"learning_rate": 0.0},
            }
        )
    errors = validation_errors(caught.value)
    assert set(errors_below("strategy", "h2tune", errors)) == {"sparsity"}
    assert set(errors_below("training", None, errors)) == {"learning_rate"}


def test_layers_of_equal_relative_depth_share_a_slot() -> None:
    assert layer_slots(6, 6) == [1, 2, 3, 4, 5, 6]
    assert layer_slots(3, 5) == [1, 3, 5]
    assert layer_slots(1, 5) == [1]
