"""One data set in every format gives the same examples, and the same complaints."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backend.contracts.enums import TaskKind
from worker.federated.errors import InvalidConfigError
from worker.federated.tasks.sources import read_examples

ROWS: list[dict[str, Any]] = [
    {"question": "Good, or bad: sun?", "answer": "good", "split": "train"},
    {"question": 'He said "rain".', "answer": "bad", "split": "train"},
    {"question": "Snow, é", "answer": "good", "split": "test"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            with path.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"data{suffix}", ROWS)
    examples = read_examples(path, TaskKind.CLASSIFICATION)
    assert [(e.question, e.answer, e.split) for e in examples] == [
        (row["question"], row["answer"], row["split"]) for row in ROWS
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_columns_may_have_other_names(tmp_path: Path, suffix: str) -> None:
    renamed = [{"text": r["question"], "mood": r["answer"], "split": r["split"]} for r in ROWS]
    path = write(tmp_path / f"data{suffix}", renamed)
    columns = {"question": "text", "answer": "mood"}
    examples = read_examples(path, TaskKind.CLASSIFICATION, columns)
    assert [e.answer for e in examples] == ["good", "bad", "good"]
    with pytest.raises(InvalidConfigError, match="column 'feeling', which should give `answer`"):
        read_examples(path, TaskKind.CLASSIFICATION, {"answer": "feeling"})


@pytest.mark.parametrize(("suffix", "line"), [(".jsonl", 2), (".csv", 3), (".parquet", 2)])
def test_a_missing_field_is_named_with_its_line(tmp_path: Path, suffix: str, line: int) -> None:
    broken = [dict(row) for row in ROWS]
    broken[1]["answer"] = ""
    path = write(tmp_path / f"data{suffix}", broken)
    with pytest.raises(InvalidConfigError, match=f"Line {line}: field `answer`"):
        read_examples(path, TaskKind.CLASSIFICATION)


def test_options_of_a_table_are_separated_by_bars(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(
        "question,options,answer,split\n1+1?,1|2|3,B,train\n2+2?,4|5,A,test\n", encoding="utf-8"
    )
    examples = read_examples(path, TaskKind.CHOICE)
    assert [e.options for e in examples] == [["1", "2", "3"], ["4", "5"]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.txt", "x", "ends in '.txt': give one of .csv, .jsonl, .parquet"),
        ("data.csv", "question,answer\na,b,c\n", "Line 2: more cells than the 2 columns"),
        ("data.csv", "question,answer\n", "has no rows"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InvalidConfigError, match=words):
        read_examples(path, TaskKind.CLASSIFICATION)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"gone\.csv' does not exist"):
        read_examples(tmp_path / "gone.csv", TaskKind.CLASSIFICATION)


def test_a_data_set_of_the_hub_format_keeps_its_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [{k: r[k] for k in ("question", "answer")} for r in ROWS[:2]])
    write(tmp_path / "test.parquet", [{k: r[k] for k in ("question", "answer")} for r in ROWS[2:]])
    examples = read_examples(f"hub:{tmp_path}", TaskKind.CLASSIFICATION)
    assert sorted(e.split for e in examples) == ["test", "train", "train"]
