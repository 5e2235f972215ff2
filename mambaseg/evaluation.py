"""Scoring a finished run: rebuild it from its folder, load a checkpoint, write the tables."""

import argparse
import shlex
from pathlib import Path
from typing import Literal

from mambaseg.experiment import read_mapping, without_weights
from mambaseg.runs import check_writable, find_checkpoint, find_run

Part = Literal["val", "test"]


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``validate`` and ``test`` share."""
    parser.add_argument("--run", required=True, metavar="RUN", help="a run's folder, or an experiment: its newest run")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|CKPT", help="which weights (default: best)")
    parser.add_argument("--output", type=Path, help="folder of the tables (default: the run's)")


def evaluate(arguments: argparse.Namespace, part: Part) -> int:
    """Score one checkpoint on one part of the data, all metrics, and say where the tables are.

    Returns:
        The exit status.
    """
    run = find_run(arguments.run)
    checkpoint = find_checkpoint(run, arguments.checkpoint)
    check_writable(arguments.output or run, "Choose another for the tables with --output.")

    from rich.console import Console

    from mambaseg.callbacks.provenance import code_version
    from mambaseg.lightning_cli import RESOLVED, build, use_split_of
    from mambaseg.metrics.summary import summarize
    from mambaseg.reports.tables import summary_table, write_scores

    cli = build(without_weights(read_mapping(run / RESOLVED)), run / RESOLVED, run, arguments.rest, track=False)
    use_split_of(run, cli, arguments.rest)
    score = cli.trainer.validate if part == "val" else cli.trainer.test
    score(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False)
    if not cli.trainer.is_global_zero:
        return 0
    rows = cli.model.last_scores
    about = {
        "part": part,
        "run": str(run),
        "checkpoint": str(checkpoint),
        "split": cli.datamodule.split.name,
        "seed": cli.config["seed_everything"],
        **code_version().as_dict(),
    }
    console = Console(soft_wrap=True)
    console.print(summary_table(summarize(rows), title=f"{run.name}: {checkpoint.stem} checkpoint on {part}"))
    files = write_scores((arguments.output or run) / f"scores_{part}", rows, about)
    console.print(f"Tables: {files.csv}, {files.json}, {files.markdown}")
    console.print(f"Next: make report RUN={shlex.quote(str(run))}")
    return 0
