"""``mambaseg fit``: train an experiment, or a study of several."""

import argparse
import os
from pathlib import Path

from mambaseg.experiment import Config, find_experiment, load_experiment, merge
from mambaseg.runs import RUN_DIR_VARIABLE, new_run_dir, resume_run

PASSES_ON = True
"""Arguments that this command does not know go to LightningCLI."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", required=True, metavar="EXP", help="experiment: a name in experiments/ or a YAML file"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, such as trainer.max_steps=100",
    )
    parser.add_argument(
        "--resume", metavar="auto|RUN|CKPT", help="go on from a checkpoint; auto takes the newest run's"
    )
    parser.add_argument("--run-dir", type=Path, help="folder of this run (default: runs/EXP/TIME-seedN)")
    parser.epilog = (
        "Every typed option of trainer, model, data and tracking is accepted too, as --trainer.devices=2; "
        "`mambaseg fit --config EXP --print-options` lists them."
    )
    parser.add_argument("--print-options", action="store_true", help="list every typed option and exit")


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    path = find_experiment(arguments.config)
    config = load_experiment(path, arguments.set)
    study = config.pop("study", None)
    if study is not None:
        from mambaseg.study import check_study, run_study

        if not arguments.print_options:
            return run_study(path.stem, config, study, arguments)
        arms, _, _ = check_study(path.stem, study)
        config = merge(config, next(iter(arms.values())))
    return train(path, config, arguments)


def train(path: Path, config: Config, arguments: argparse.Namespace) -> int:
    """Train one experiment to its end and say where the results are."""
    experiment = path.stem
    checkpoint: Path | None = None
    if arguments.resume:
        run_dir, checkpoint = resume_run(experiment, arguments.resume)
        os.environ[RUN_DIR_VARIABLE] = str(run_dir)
    else:
        if arguments.run_dir:
            os.environ[RUN_DIR_VARIABLE] = str(arguments.run_dir)
        run_dir = new_run_dir(experiment, int(config.get("seed_everything", 0)))

    from mambaseg.lightning_cli import build
    from mambaseg.training import fit_and_summarize

    options = ["--help"] if arguments.print_options else arguments.rest
    cli = build(config, path, run_dir, options, track=True)
    return fit_and_summarize(cli, experiment, run_dir, checkpoint)
