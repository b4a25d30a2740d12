"""Every number of an experiment as lines of a CSV file that several processes may add to."""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter

from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.arm_kinds import Arm
from worker.federated.experiments.arms import Outcome
from worker.federated.experiments.config import Experiment, Member, Setting
from worker.federated.simulation import SimulatedClient


@dataclass(frozen=True, slots=True)
class Record:
    """One client in one arm with one seed; the fields are the columns, in this order."""

    setting: str
    arm: str
    seed: int
    client: str
    model: str
    layers: int
    hidden: int
    rank: int
    task: str
    accuracy_initial: float
    accuracy_after_local: float
    accuracy_after_aggregation: float
    learning_rate: str  # the chosen one of local arms; else empty
    round: int
    bytes_up: float
    update_cosine: str  # empty where nothing is shared
    configuration: str  # `fingerprint` of what the arm was run with


COLUMNS = tuple(field.name for field in fields(Record))


def fingerprint(experiment: Experiment, setting: Setting, arm: Arm) -> str:
    """Twelve hexadecimal digits that differ when anything that decides the numbers differs."""
    own = setting.model_dump(mode="json")
    told = {
        "setting": {name: value for name, value in own.items() if value is not None},
        "arm": arm.model_dump(mode="json"),
        "training": experiment.training.model_dump(mode="json"),
        "num_rounds": experiment.num_rounds,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def record(
    setting: Setting,
    arm: Arm,
    seed: int,
    member: Member,
    client: SimulatedClient,
    outcome: Outcome,
    configuration: str,
) -> Record:
    """The line of one client's outcome."""
    spec = client.spec()
    rate, cosine = outcome.learning_rate, outcome.update_cosine
    return Record(
        setting=setting.name,
        arm=arm.name,
        seed=seed,
        client=outcome.client_id,
        model=member.model_name,
        layers=spec.architecture.num_layers,
        hidden=spec.architecture.hidden_size,
        rank=spec.lora_rank,
        task=str(member.task),
        accuracy_initial=outcome.accuracy_initial,
        accuracy_after_local=outcome.accuracy_after_local,
        accuracy_after_aggregation=outcome.accuracy_after_aggregation,
        learning_rate="" if rate is None else str(rate),
        round=outcome.round_number,
        bytes_up=outcome.bytes_up,
        update_cosine="" if cosine is None else f"{cosine:.4f}",
        configuration=configuration,
    )


def append_records(path: Path, records: Sequence[Record]) -> None:
    """Adds lines at the end, in one write, so that two processes do not mix theirs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writerow(COLUMNS)
    writer.writerows(astuple(line) for line in records)
    with path.open("a", encoding="utf-8") as file:
        file.write(text.getvalue())


def read_records(path: Path) -> list[Record]:
    """All lines of a results file; none if there is no file yet.

    Raises:
        InvalidConfigError: its columns are not those of this version.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InvalidConfigError(
                f"The results in {path.name!r} have other columns than this version writes: "
                "choose another folder with --out."
            )
        return [_RECORD.validate_python(row) for row in reader]


def require_same_configuration(
    known: Sequence[Record], setting: str, arm: str, configuration: str
) -> None:
    """Refuses to add to results that were made with other settings.

    Raises:
        InvalidConfigError: they were.
    """
    for line in known:
        same = (line.setting, line.arm) == (setting, arm)
        if same and line.configuration != configuration:
            raise InvalidConfigError(
                f"The results hold arm {arm!r} of setting {setting!r} with another configuration "
                f"({line.configuration}, now {configuration}): choose another folder with --out, "
                "or rename the arm."
            )


_RECORD = TypeAdapter(Record)
