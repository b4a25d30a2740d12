"""Which rows belong to a federation, and how a row becomes a line and a line a row.

Left out on purpose: users and who of them are members, tokens and credentials, enrolment and
signing keys, the audit trail, and what only lives while a round is open (uploads on their way,
sessions of secure aggregation).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Column, Select, Table, or_, select, union
from sqlalchemy.dialects.postgresql import JSONB

from backend.archives.manifest import ArchiveError
from backend.contracts.base_models import Architecture, BaseModelRef, ModuleShape
from backend.contracts.comparisons import Arm
from backend.contracts.datasets import DatasetRef
from backend.contracts.privacy import PrivacySettings
from backend.contracts.robustness import Robustness
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.stopping import StopRule
from backend.contracts.strategies import PARAMS
from backend.contracts.training import TrainingConfig
from backend.db.base import Base
from backend.db.models import Blob, Client, Event, Metric

Row = dict[str, Any]
TABLES = (
    "federations", "clients", "memberships", "comparisons", "runs", "refusals", "rounds",
    "client_updates", "attempts", "events", "metrics", "blobs",
)  # fmt: skip
"""In this order every row comes after those to which it refers; blobs, which come first of all when
rows are added, are found last."""

_GIVEN_ANEW = frozenset(
    {
        *(str(column) for column in (Event.__table__.c.id, Metric.__table__.c.id)),
        str(Client.__table__.c.enrolment_key_id),
        *(str(column) for column in (Blob.__table__.c.created_at, Blob.__table__.c.last_stored_at)),
    }
)
_JSON: Mapping[str, TypeAdapter[Any]] = {
    "clients.base_model": TypeAdapter(BaseModelRef),
    "clients.architecture": TypeAdapter(Architecture),
    "clients.dataset": TypeAdapter(DatasetRef | None),
    "clients.modules": TypeAdapter(dict[str, ModuleShape] | None),
    "comparisons.arms": TypeAdapter(list[Arm]),
    "comparisons.seeds": TypeAdapter(list[int]),
    "comparisons.training": TypeAdapter(TrainingConfig),
    "runs.strategy": PARAMS,
    "runs.training": TypeAdapter(TrainingConfig),
    "runs.privacy": TypeAdapter(PrivacySettings),
    "runs.robustness": TypeAdapter(Robustness),
    "runs.round_policy": TypeAdapter(RoundPolicy),
    "runs.stop_when": TypeAdapter(StopRule | None),
    "rounds.report": TypeAdapter(dict[str, Any]),
    "events.data": TypeAdapter(dict[str, Any]),
}


@dataclass(frozen=True, slots=True)
class ExportedTable:
    """A table as an archive has it."""

    table: Table
    columns: tuple[Column[Any], ...]

    @property
    def name(self) -> str:
        """Of the table."""
        return self.table.name


@lru_cache
def exported(name: str) -> ExportedTable:
    """The columns of a table that an archive carries: all but numbers and people of a platform."""
    table = Base.metadata.tables[name]
    columns = tuple(
        column
        for column in table.columns
        if str(column) not in _GIVEN_ANEW and _target(column) not in {"users", "enrolment_keys"}
    )
    return ExportedTable(table, columns)


def parents(table: ExportedTable) -> dict[str, str]:
    """Column -> the exported table to which it refers."""
    found = {column.name: _target(column) for column in table.columns}
    return {name: target for name, target in found.items() if target in TABLES}


def rows_of(name: str, federation_id: UUID) -> Select[*tuple[Any, ...]]:
    """A table's rows of one federation, in the order in which they came."""
    table = exported(name)
    tables = Base.metadata.tables
    runs = select(tables["runs"].c.id).where(tables["runs"].c.federation_id == federation_id)
    rounds = select(tables["rounds"].c.id).where(tables["rounds"].c.run_id.in_(runs))
    updates = tables["client_updates"]
    query = select(*table.columns)
    rows = table.table.c
    match name:
        case "federations":
            return query.where(rows.id == federation_id)
        case "clients":
            members = tables["memberships"]
            of_runs = [
                select(tables[other].c.client_id).where(tables[other].c.run_id.in_(runs))
                for other in ("refusals", "events", "metrics")
            ]
            named = union(
                select(members.c.client_id).where(members.c.federation_id == federation_id),
                select(updates.c.client_id).where(updates.c.round_id.in_(rounds)),
                *of_runs,
            )
            return query.where(rows.id.in_(named)).order_by(rows.id)
        case "memberships":
            return query.where(rows.federation_id == federation_id).order_by(rows.client_id)
        case "comparisons" | "runs":
            return query.where(rows.federation_id == federation_id).order_by(rows.id)
        case "client_updates":
            return query.where(rows.round_id.in_(rounds)).order_by(rows.id)
        case "attempts":
            of_rounds = select(updates.c.id).where(updates.c.round_id.in_(rounds))
            query = query.where(rows.client_update_id.in_(of_rounds))
            return query.order_by(rows.client_update_id, rows.number)
        case "blobs":
            return query.where(or_(*_references(federation_id))).order_by(rows.sha256)
        case _:  # of a run
            return query.where(rows.run_id.in_(runs)).order_by(rows.id)


def _references(federation_id: UUID) -> list[Any]:
    """Conditions on `Blob`: some exported row of the federation refers to it."""
    found = []
    for name in TABLES[:-1]:
        rows = rows_of(name, federation_id).order_by(None).subquery()
        found += [
            Blob.sha256.in_(select(rows.c[column]).where(rows.c[column].is_not(None)))
            for column, target in parents(exported(name)).items()
            if target == "blobs"
        ]
        if name == "clients":
            dataset = rows.c.dataset["sha256"].as_string()
            found.append(Blob.sha256.in_(select(dataset).where(dataset.is_not(None))))
    return found


def to_line(table: ExportedTable, values: tuple[Any, ...]) -> bytes:
    """A row as one line of JSON."""
    row = {column.name: value for column, value in zip(table.columns, values, strict=True)}
    return json.dumps(row, default=_plain, separators=(",", ":")).encode() + b"\n"


def from_line(table: ExportedTable, line: bytes, where: str) -> Row:
    """A row from its line, every value checked.

    A column that the archive does not know has its default; a column that only the archive knows
    is refused.

    Raises:
        ArchiveError: names the line and the field.
    """
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{where} is not JSON. Export the federation again.") from error
    if not isinstance(given, dict):
        raise ArchiveError(f"{where} is not a JSON object. Export the federation again.")
    columns = {column.name: column for column in table.columns}
    unknown = sorted(map(str, given.keys() - columns.keys()))
    if unknown:
        raise ArchiveError(
            f"{where} has the field {unknown[0][:100]!r}, which this version does not know. Import "
            "it with the version that wrote it, or newer."
        )
    row = {}
    for name, value in given.items():
        try:
            row[name] = _checked(columns[name], value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ArchiveError(f"{where}: {name}: {first['msg']}.") from error
    return row


def _checked(column: Column[Any], value: object) -> Any:
    if value is None and column.nullable:
        return None
    if isinstance(column.type, JSONB):
        _JSON[str(column)].validate_python(value)
        return value
    return _adapter(column).validate_python(value)


@lru_cache
def _adapter(column: Column[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(column.type.python_type)


def _target(column: Column[Any]) -> str:
    return next((key.column.table.name for key in column.foreign_keys), "")


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in an archive")
