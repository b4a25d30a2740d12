"""`python -m worker.federated.experiments --config FILE --out FOLDER [--data-dir D] ...`."""

import argparse
import logging
from pathlib import Path

import torch

from worker.federated.experiments.arms import run_arm
from worker.federated.experiments.config import Experiment, Setting, UntrainedArm, load_experiment
from worker.federated.experiments.gauging import gauged_private
from worker.federated.experiments.members import make_clients, probe_texts
from worker.federated.experiments.report import Line, markdown, write_chart, write_csv
from worker.federated.types import Tensors

_LOGGER = logging.getLogger("worker.federated.experiments")


def main() -> None:
    """Runs the grid; files are written anew after each arm, so an interruption loses little."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    experiment = load_experiment(options.config)
    if options.seeds is not None:
        experiment = experiment.model_copy(update={"seeds": options.seeds})
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    lines: list[Line] = []
    for setting in experiment.settings:
        tasks = {str(member.task) for member in setting.members}
        if options.tasks and not tasks <= set(options.tasks.split(",")):
            _LOGGER.info("%s: left out, its tasks are %s", setting.name, ", ".join(sorted(tasks)))
            continue
        for seed in range(experiment.seeds):
            _run_seed(experiment, setting, seed, options, lines)


def _run_seed(
    experiment: Experiment,
    setting: Setting,
    seed: int,
    options: argparse.Namespace,
    lines: list[Line],
) -> None:
    pairs = make_clients(setting, seed, options.data_dir, options.models_dir)
    clients = [client for _, client in pairs]
    gauges: dict[str, dict[str, Tensors]] = {"none": {}}
    for arm in experiment.arms:
        if options.arms and arm.name not in options.arms.split(","):
            continue
        source = "none" if isinstance(arm, UntrainedArm) else arm.gauge
        if source != "none" and source not in gauges:
            texts = probe_texts(setting, options.data_dir)
            gauges[source] = gauged_private(setting, clients, texts, source)
        outcomes = run_arm(experiment, setting, arm, clients, gauges[source], seed)
        for (member, client), outcome in zip(pairs, outcomes, strict=True):
            lines.append(Line(setting.name, arm.name, seed, member, client, outcome))
        mean = sum(outcome.accuracy_after_aggregation for outcome in outcomes) / len(outcomes)
        local = sum(outcome.accuracy_after_local for outcome in outcomes) / len(outcomes)
        _LOGGER.info(
            "%s seed %d %s: %.4f after local steps, %.4f after aggregation",
            setting.name,
            seed,
            arm.name,
            local,
            mean,
        )
        _write(experiment, lines, options.out)


def _write(experiment: Experiment, lines: list[Line], folder: Path) -> None:
    write_csv(folder / "results.csv", lines)
    done = [s for s in experiment.settings if any(line.setting == s.name for line in lines)]
    text = "\n".join(markdown(lines, experiment.arms, setting.name) for setting in done)
    (folder / "results.md").write_text(text, encoding="utf-8")
    for setting in done:
        write_chart(folder / f"{setting.name}.html", lines, experiment.arms, setting.name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs a grid of settings, arms and seeds.")
    parser.add_argument("--config", type=Path, required=True, help="the experiment (TOML)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--data-dir", type=Path, help="public data: <task>_{train,test}.jsonl")
    parser.add_argument("--models-dir", type=Path, help="where decoders given as folders lie")
    parser.add_argument("--tasks", help="only settings of these tasks, by comma")
    parser.add_argument("--arms", help="only these arms, by comma")
    parser.add_argument("--seeds", type=int, help="how many, from 0; default: as in the file")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    return parser.parse_args()


if __name__ == "__main__":
    main()
