import pytest

from backend.contracts.datasets import Example
from worker.federated.errors import InvalidConfigError
from worker.federated.tasks.scoring import first_label, number_is_right, program_is_right


def example(answer, final=None):
    return Example(question="How many?", answer=answer, final=final, split="test")


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("5", True),
        ("5.0", True),
        ("5 apples", True),
        ("5\n6", True),
        ("05", True),
        ("4 + 1 = 5. The answer is 5", True),
        ("The answer is $5.00.", True),
        ("-5", False),
        ("55", False),
        ("5.1", False),
        ("five", False),
        ("", False),
    ],
)
def test_fill_in_compares_the_number_not_the_spelling(output, right):
    assert number_is_right(output, example("5")) is right


def test_final_is_scored_before_answer_and_thousands_are_read():
    row = example("He has 3 boxes of 500 each. The answer is 1,500", final="1500")
    assert number_is_right("3 * 500 ... the answer is 1,500.0", row)
    assert number_is_right("1500", example(row.answer))
    assert not number_is_right("3", row)


def test_rounding_is_forgiven_up_to_the_tolerance():
    assert number_is_right("33.3333", example("33.33333333"))
    assert not number_is_right("33.3", example("33.33333333"))


def test_program_is_judged_by_its_value():
    row = example("answer = 12 - 5", final="7")
    assert program_is_right("answer = 7.0", row)
    assert program_is_right("n = 14\nanswer = n / 2\nprint(answer)", row)
    assert not program_is_right("answer = 12 + 5", row)
    assert not program_is_right("answer = 12 -", row)
    assert program_is_right("answer = 7", example("answer = 12 - 5"))


def test_example_that_cannot_be_scored_is_named():
    with pytest.raises(InvalidConfigError, match=r"How many.*final"):
        number_is_right("5", example("many"))
    with pytest.raises(InvalidConfigError, match=r"How many.*final"):
        program_is_right("answer = 5", example("answer = x"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("No", "no"),
        ("I do not know.", None),
        ("not so: no.", "no"),
        ("yes, no", "yes"),
        ("(YES)", "yes"),
        ("noyes", None),
        ("", None),
    ],
)
def test_first_whole_word_label_counts(text, found):
    assert first_label(text, ["no", "yes"]) == found


def test_longest_label_wins_where_two_start_together():
    assert first_label("not sad at all", ["not", "not sad", "sad"]) == "not sad"
