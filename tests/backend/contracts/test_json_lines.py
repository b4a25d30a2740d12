import json

import pytest

from backend.contracts.enums import TaskKind
from backend.contracts.json_lines import JsonLinesError, parse_json_lines
from backend.contracts.label_texts import described_labels


def lines(*rows):
    return [json.dumps(row).encode() + b"\n" for row in rows]


def row(question="1 + 1?", answer="2", split="train", **more):
    return {"question": question, "answer": answer, "split": split, **more}


TWO = (row(), row("2 + 2?", "4", "test"))


def test_rows_are_read_in_order_and_unknown_fields_are_ignored():
    examples = parse_json_lines(
        lines(row(id="a-1", label=3, text_a="x"), row("2 + 2?", 4, "test", final=4.0)),
        TaskKind.FILL_IN,
    )
    assert [(e.question, e.answer, e.final, e.split) for e in examples] == [
        ("1 + 1?", "2", None, "train"),
        ("2 + 2?", "4", "4.0", "test"),
    ]


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_fine():
    text = b"\xef\xbb\xbf" + lines(TWO[0])[0] + b"\r\n" + lines(TWO[1])[0].strip() + b"\r\n"
    assert len(parse_json_lines(text.splitlines(), TaskKind.FILL_IN)) == 2


@pytest.mark.parametrize(
    ("bad", "task", "field", "says"),
    [
        (b"{broken", TaskKind.FILL_IN, None, "not valid JSON"),
        (b'["list"]', TaskKind.FILL_IN, None, "list where an object"),
        (b'{"question": "\xff"}', TaskKind.FILL_IN, None, "UTF-8"),
        (row(question=None), TaskKind.FILL_IN, "question", "missing or empty"),
        (row(answer="  "), TaskKind.FILL_IN, "answer", "missing or empty"),
        (row(split="dev"), TaskKind.FILL_IN, "split", "'dev'"),
        (row(split=None), TaskKind.FILL_IN, "split", "Give every row"),
        (row(answer="many"), TaskKind.FILL_IN, "answer", "'many'"),
        (row(final="none"), TaskKind.FILL_IN, "final", "'none'"),
        (row(answer=["2"]), TaskKind.FILL_IN, "answer", "string"),
        (row(answer="answer = 2"), TaskKind.PROGRAM, "final", "None"),
        (row(answer="A"), TaskKind.CHOICE, "options", "0 entries"),
        (row(answer="A", options=["1"]), TaskKind.CHOICE, "options", "1 entries"),
        (row(answer="A", options="1, 2"), TaskKind.CHOICE, "options", "list"),
        (row(answer="C", options=["1", "2"]), TaskKind.CHOICE, "answer", "from A to B"),
        (row(answer="two", options=["1", "2"]), TaskKind.CHOICE, "answer", "'two'"),
    ],
)
def test_a_bad_row_is_named_with_line_field_and_value(bad, task, field, says):
    good = row("2 + 2?", "A", "test", options=["4", "5"], final="4")
    if task is TaskKind.CHOICE:
        good["final"] = None
    last = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    with pytest.raises(JsonLinesError, match=r"^Line 2: ") as caught:
        parse_json_lines([*lines(good), last], task)
    assert (caught.value.line, caught.value.field) == (2, field)
    assert says in str(caught.value)


@pytest.mark.parametrize("rows", [(), (row(),), (row(split="test"),)])
def test_a_file_without_train_or_test_rows_is_refused(rows):
    with pytest.raises(JsonLinesError, match="no row"):
        parse_json_lines(lines(*rows), TaskKind.FILL_IN)


def test_one_question_must_not_stand_in_two_splits():
    twice = lines(*TWO, row(" 1 +  1? ", "2", "test"))
    with pytest.raises(JsonLinesError, match=r"^Line 3: .*'train' on line 1") as caught:
        parse_json_lines(twice, TaskKind.FILL_IN)
    assert caught.value.field == "split"


def test_the_same_question_with_other_options_is_another_question():
    rows = lines(
        row("Which?", "A", options=["1", "2"]), row("Which?", "B", "test", options=["3", "4"])
    )
    assert len(parse_json_lines(rows, TaskKind.CHOICE)) == 2


@pytest.mark.parametrize("written", ["B", "b", "(B)", "B.", "b)"])
def test_choice_answers_become_bare_letters(written):
    rows = lines(
        row("Which?", written, options=["1", 2]),
        row("Whose?", "Long reasoning. The answer is B", "test", options=["3", "4"], final="B"),
    )
    examples = parse_json_lines(rows, TaskKind.CHOICE)
    assert [(e.answer, e.options, e.final) for e in examples] == [
        ("B", ["1", "2"], None),
        ("B", ["3", "4"], None),
    ]


@pytest.mark.parametrize("count", [1, 101])
def test_classification_needs_a_sensible_number_of_labels(count):
    rows = [row(f"q{i}", f"label {i % count}", "test" if i % 2 else "train") for i in range(202)]
    with pytest.raises(JsonLinesError, match=f"{count} distinct"):
        parse_json_lines(lines(*rows), TaskKind.CLASSIFICATION)


def test_absent_splits_are_made_by_question_alone():
    rows = [{"question": f"question {i}", "answer": str(i)} for i in range(2000)]
    first = parse_json_lines(lines(*rows), TaskKind.FILL_IN)
    again = parse_json_lines(lines(*reversed(rows[:1000])), TaskKind.FILL_IN)
    split_of = {e.question: e.split for e in first}
    assert all(split_of[e.question] == e.split for e in again)
    counts = [sum(e.split == s for e in first) for s in ("train", "validation", "test")]
    # 2000 draws with shares .8, .1, .1: standard deviations below 18.
    assert all(abs(c - expected) < 80 for c, expected in zip(counts, (1600, 200, 200), strict=True))


def test_pictures_are_no_rows_of_text():
    with pytest.raises(JsonLinesError, match=r"cannot hold pictures\. Give a folder"):
        parse_json_lines(lines(*TWO), TaskKind.IMAGE_CLASSIFICATION)


def films(*more):
    """Two labels in two splits, then more rows."""
    return (row("a", "yes", label_text=" A good film. "), row("b", "no", "test"), *more)


def test_rows_may_describe_their_labels():
    rows = films(row("c", "no", label_text="A bad film."), row("d", "yes", label_text="  "))
    examples = parse_json_lines(lines(*rows), TaskKind.CLASSIFICATION)
    assert [e.label_text for e in examples] == [" A good film. ", None, "A bad film.", None]
    assert described_labels(examples) == {"no": "A bad film.", "yes": "A good film."}
    assert described_labels(examples[3:]) == {}


@pytest.mark.parametrize(
    ("more", "line", "says"),
    [
        ((), None, "no row describes the label 'no'. Describe every label, or none"),
        ((row("c", "yes", label_text="Bad."),), 3, "'Bad.', but an earlier row .* 'A good film.'"),
        ((row("c", "no", label_text="A good film."),), None, "for both 'yes' and 'no'"),
        ((row("c", "no", label_text=["x"]),), 3, "string"),
        ((row("c", "no", label_text="x" * 1_001),), 3, "at most 1000"),
    ],
)
def test_descriptions_of_labels_are_whole_and_agree(more, line, says):
    with pytest.raises(JsonLinesError, match=says) as caught:
        parse_json_lines(lines(*films(*more)), TaskKind.CLASSIFICATION)
    assert (caught.value.line, caught.value.field) == (line, "label_text")


def test_descriptions_mean_nothing_where_there_are_no_labels():
    rows = [row(label_text=7), row("2 + 2?", "4", "test", label_text="x" * 2_000)]
    examples = parse_json_lines(lines(*rows), TaskKind.FILL_IN)
    assert [e.label_text for e in examples] == [None, None]
