"""Reads task data from wherever it lies: JSON lines, CSV, Parquet, or a Hugging Face data set.

Whatever the format, rows go through the same checks (`backend.contracts.json_lines`), so a missing
field is reported with its line number in every format alike.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from backend.contracts.json_lines import JsonLinesError, parse_json_lines, parse_rows
from worker.federated.errors import InvalidConfigError
from worker.federated.tasks.optional import optional_module

Columns = Mapping[str, str]
"""Field of `Example` -> name of the column that holds it, where the two differ."""

HUB_PREFIX = "hub:"


def read_examples(
    location: str | Path, task: TaskKind, columns: Columns | None = None
) -> list[Example]:
    """All examples of a file or of a data set on the hub.

    Args:
        location: a path ending in .jsonl, .csv or .parquet, or `hub:<id>` (needs the package
            `datasets` from version 4 on, which runs no remote code; splits named train,
            validation and test are taken as they are).
        task: which checks apply.
        columns: for tables with other names, such as `{"question": "sentence"}`.

    Raises:
        InvalidConfigError: the file is missing, of another format, or a row breaks a rule; the
            message names location, line, field, value and remedy.
    """
    text = str(location)
    try:
        if text.startswith(HUB_PREFIX):
            return parse_rows(_renamed(_hub_rows(text.removeprefix(HUB_PREFIX)), columns), task)
        path = Path(location)
        if not path.is_file():
            raise InvalidConfigError(f"Data file {text!r} does not exist. Correct the path.")
        if path.suffix == ".jsonl" and not columns:
            with path.open("rb") as stream:
                return parse_json_lines(stream, task)
        reader = _READERS.get(path.suffix)
        if reader is None:
            raise InvalidConfigError(
                f"Data file {text!r} ends in {path.suffix!r}: give one of "
                f"{', '.join(sorted(_READERS))}."
            )
        return parse_rows(_renamed(reader(path), columns), task)
    except JsonLinesError as error:
        raise InvalidConfigError(f"Data {text!r}: {error}") from error


def _renamed(
    rows: Iterator[tuple[int, dict[str, Any]]], columns: Columns | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in rows:
        for field, column in (columns or {}).items():
            if column not in row:
                raise JsonLinesError(
                    f"column {column!r}, which should give `{field}`, is missing; there are "
                    f"{', '.join(sorted(row))}. Correct the column names.",
                    line=number,
                    field=field,
                )
        yield number, row | {field: row[column] for field, column in (columns or {}).items()}


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield number, dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise JsonLinesError(
                        f"not a JSON object ({error}). Each line must be one.", line=number
                    ) from error


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, restkey="")
        for row in reader:
            if "" in row:
                raise JsonLinesError(
                    f"more cells than the {len(reader.fieldnames or [])} columns of the header. "
                    "Quote cells that hold commas.",
                    line=reader.line_num,
                )
            filled = {name: cell for name, cell in row.items() if cell not in {"", None}}
            if "options" in filled:
                filled["options"] = str(filled["options"]).split("|")
            yield reader.line_num, filled


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    parquet = optional_module("pyarrow.parquet", "Parquet files")
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _hub_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    library = optional_module("datasets", "data sets from the hub")
    number = 0
    for split, rows in library.load_dataset(name).items():
        for row in rows:
            number += 1
            yield number, {"split": str(split), **row}


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
