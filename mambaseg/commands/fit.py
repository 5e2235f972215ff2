"""``mambaseg fit``: train an experiment, or a study of several."""

import argparse
import contextlib
import os
from pathlib import Path

from mambaseg.errors import InputError
from mambaseg.experiment import Config, find_experiment, load_experiment, merge, students_of, without_weights
from mambaseg.runs import (
    CHOOSE_RUN_DIR,
    RUN_DIR_VARIABLE,
    alone_in,
    check_writable,
    forget_start,
    new_run_dir,
    note_newest,
    resume_run,
)

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
        "--weights",
        action="append",
        default=[],
        metavar="[STUDENT=]PATH|ID",
        help="start a student from a file or from published weights, see `mambaseg weights`",
    )
    parser.add_argument(
        "--resume", metavar="auto|RUN|CKPT", help="go on from a checkpoint; auto: of the run started last, if any"
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
    config = with_weights(load_experiment(path, arguments.set), arguments.weights)
    study = config.pop("study", None)
    if study is not None:
        from mambaseg.study import check_study, run_study

        if not arguments.print_options:
            return run_study(path.stem, config, study, arguments)
        arms, _, _ = check_study(path.stem, study)
        config = merge(config, next(iter(arms.values())))
    return train(path, config, arguments)


def with_weights(config: Config, choices: list[str]) -> Config:
    """Return an experiment whose students start from the weights chosen on the command line.

    Args:
        config: The experiment.
        choices: ``STUDENT=PATH|ID`` each, or ``PATH|ID`` where there is one student.

    Raises:
        InputError: There is no such student, or it must be named.
    """
    students = students_of(config)
    for choice in choices:
        name, equals, source = choice.partition("=")
        if not equals:
            name, source = next(iter(students), ""), choice
        if name not in students or (not equals and len(students) > 1):
            raise InputError(f"--weights {choice!r}: name the student, as STUDENT=PATH|ID: {', '.join(students)}.")
        over = {"model": {"init_args": {"students": {name: {"options": {"weights": source}}}}}}
        config = merge(config, over)
    return config


def train(path: Path, config: Config, arguments: argparse.Namespace) -> int:
    """Train one experiment to its end and say where the results are."""
    experiment = path.stem
    checkpoint: Path | None = None
    run_dir: Path | None = None
    if arguments.run_dir:
        os.environ[RUN_DIR_VARIABLE] = str(arguments.run_dir)
    if arguments.resume:
        run_dir, checkpoint = resume_run(experiment, arguments.resume)
    if checkpoint is not None:
        config = without_weights(config)
    if run_dir is not None:
        os.environ[RUN_DIR_VARIABLE] = str(run_dir)
    else:
        run_dir = new_run_dir(experiment, int(config.get("seed_everything", 0)))
    if not arguments.print_options:
        check_writable(run_dir, CHOOSE_RUN_DIR)
        note_newest(experiment, run_dir)

    from mambaseg.lightning_cli import build, use_split_of
    from mambaseg.reports.weights import record_weights
    from mambaseg.training import fit_and_summarize

    options = ["--help"] if arguments.print_options else arguments.rest
    try:
        cli = build(config, path, run_dir, options, track=True)
        if checkpoint is not None:
            use_split_of(run_dir, cli, [*arguments.set, *arguments.rest])
        with alone_in(run_dir) if cli.trainer.is_global_zero else contextlib.nullcontext():
            if cli.trainer.is_global_zero:
                record_weights(cli.model.networks, run_dir)
            return fit_and_summarize(cli, experiment, run_dir, checkpoint)
    except BaseException:
        forget_start(experiment, run_dir)
        raise
