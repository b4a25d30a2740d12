"""`python -m worker.federated.experiments --config FILE --out FOLDER [--data-dir D] ...`.

A run can be interrupted, continued and split: what `results.csv` in the folder already holds is
not computed again, and two processes may work on different arms or seeds of one folder.
"""

import argparse
import logging
import statistics
from pathlib import Path

import torch

from backend.contracts.params.h2tune import Writing
from worker.federated.experiments.arm_kinds import GaugeSource
from worker.federated.experiments.arms import ArmRunner
from worker.federated.experiments.chart import write_chart
from worker.federated.experiments.config import Experiment, Setting, load_experiment
from worker.federated.experiments.gauging import gauge_of, gauged_private
from worker.federated.experiments.members import make_clients, pooled, probe_texts
from worker.federated.experiments.records import (
    append_records,
    fingerprint,
    read_records,
    record,
    require_same_configuration,
)
from worker.federated.experiments.report import markdown, mean_by_seed
from worker.federated.types import Tensors

_LOGGER = logging.getLogger("worker.federated.experiments")

RESULTS = "results.csv"


def main() -> None:
    """Runs what is missing of the grid; results are written after each arm."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    experiment = load_experiment(options.config)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for setting in experiment.settings:
        tasks = {str(member.task) for member in setting.members}
        if options.tasks and not tasks <= set(options.tasks.split(",")):
            _LOGGER.info("%s: left out, its tasks are %s", setting.name, ", ".join(sorted(tasks)))
            continue
        if options.settings and setting.name not in options.settings:
            continue
        _run_setting(experiment.within(setting), setting, options)
    _write_report(experiment, options.out)


def _run_setting(experiment: Experiment, setting: Setting, options: argparse.Namespace) -> None:
    path = options.out / RESULTS
    gauges: dict[tuple[GaugeSource, Writing], dict[str, Tensors]] = {}
    for seed in options.seeds if options.seeds is not None else range(experiment.seeds):
        pairs = make_clients(setting, seed, options.data_dir, options.models_dir)
        clients = [client for _, client in pairs]
        runner = ArmRunner(experiment, setting, clients, pooled(pairs), seed)
        for arm in experiment.all_arms:
            if options.arms and arm.name not in options.arms:
                continue
            configuration = fingerprint(experiment, setting, arm)
            known = read_records(path)
            require_same_configuration(known, setting.name, arm.name, configuration)
            done = {(line.setting, line.arm, line.seed) for line in known}
            if (setting.name, arm.name, seed) in done:
                _LOGGER.info("%s seed %d %s: known", setting.name, seed, arm.name)
                continue
            source, writing = gauge_of(arm)
            if (source, writing) not in gauges:  # from models and public texts: for all seeds
                texts = [] if source == "none" else probe_texts(setting, options.data_dir)
                gauges[source, writing] = gauged_private(setting, clients, texts, source, writing)
            outcomes = runner.run(arm, gauges[source, writing])
            append_records(
                path,
                [
                    record(setting, arm, seed, member, client, outcome, configuration)
                    for (member, client), outcome in zip(pairs, outcomes, strict=True)
                ],
            )
            _LOGGER.info(
                "%s seed %d %s: %.4f after local steps, %.4f after aggregation",
                setting.name,
                seed,
                arm.name,
                statistics.fmean(outcome.accuracy_after_local for outcome in outcomes),
                statistics.fmean(outcome.accuracy_after_aggregation for outcome in outcomes),
            )
            _write_report(experiment, options.out)


def _write_report(experiment: Experiment, folder: Path) -> None:
    records = read_records(folder / RESULTS)
    texts = []
    for setting in experiment.settings:
        means = {a.name: mean_by_seed(records, setting.name, a.name) for a in experiment.all_arms}
        known = {name: values for name, values in means.items() if values}
        if known:
            texts.append(markdown(records, experiment.all_arms, setting.name))
            write_chart(folder / f"{setting.name}.svg", setting.name, known)
    (folder / "results.md").write_text("\n".join(texts), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs a grid of settings, arms and seeds.")
    parser.add_argument("--config", type=Path, required=True, help="the experiment (TOML)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--data-dir", type=Path, help="public data: <task>_{train,test}.jsonl")
    parser.add_argument("--models-dir", type=Path, help="where decoders given as folders lie")
    parser.add_argument("--tasks", help="only settings of these tasks, by comma")
    parser.add_argument("--settings", type=str.split, help="only these, by space")
    parser.add_argument("--arms", type=_names, help="only these arms, by comma")
    parser.add_argument("--seeds", type=_numbers, help="these, by comma; default: as in the file")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
