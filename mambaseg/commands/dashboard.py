"""``mambaseg dashboard``: watch runs while they train, in the terminal, or as a saved view of a W&B project."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from mambaseg.commands.report import distinct_names
from mambaseg.errors import InputError
from mambaseg.runs import find_run, runs_meant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--run",
        nargs="+",
        required=True,
        metavar="RUN",
        help="a run's folder, or an experiment: its newest run; of a study all its trainings",
    )
    parser.add_argument("--once", action="store_true", help="show the present state and end")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks (2)")
    parser.add_argument(
        "--wandb", action="store_true", help="save a view of the runs in their W&B project instead (extra: workspaces)"
    )
    parser.epilog = (
        "Each line is a curve, on one scale for all runs (losses: logarithmic), with the newest value before it and, "
        "of Dice, the best one behind it. It ends when every run is done, or with Ctrl-C; trainings do not notice."
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the runs.

    Raises:
        InputError: There is no such run.
    """
    if arguments.every <= 0:
        raise InputError(f"--every {arguments.every}: give a positive number of seconds.")
    folders = list(dict.fromkeys(folder for name in arguments.run for folder in run_folders(name)))
    return save_view(folders) if arguments.wandb else watch(folders, arguments.every, arguments.once)


def run_folders(name: str) -> list[Path]:
    """Return the runs that are meant: one, or all trainings of a study.

    Args:
        name: A folder, or an experiment, whose newest run or study it is.

    Raises:
        InputError: There is none.
    """
    return runs_meant(name) or [find_run(name)]


def watch(folders: Sequence[Path], every_seconds: float, once: bool) -> int:
    """Show the runs until all are done, or the user has seen enough."""
    from rich.console import Console
    from rich.live import Live

    from mambaseg.dashboards.live_run import LiveRun, read_live
    from mambaseg.dashboards.terminal import frame

    console = Console(highlight=False)
    names = distinct_names(folders)

    def read() -> list[LiveRun]:
        return [read_live(folder, name) for folder, name in zip(folders, names, strict=True)]

    runs = read()
    if once or not console.is_terminal:
        console.print(frame(runs, console.width, time.time()))
        return 0
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(frame(runs, console.width, time.time()), refresh=True)
                if all(run.is_done for run in runs):
                    break
                time.sleep(every_seconds)
                runs = read()
        except KeyboardInterrupt:
            return 0
    console.print(f"Next: make report RUN={folders[0]}", markup=False, soft_wrap=True)
    return 0


def save_view(folders: Sequence[Path]) -> int:
    """Save a view of the runs in their W&B project and print its address.

    Raises:
        InputError: wandb-workspaces or a login is missing, or the runs are in several projects.
    """
    import re

    from rich.console import Console

    from mambaseg.dashboards.workspace import compose, wandb_workspaces
    from mambaseg.experiment import read_mapping
    from mambaseg.reports.run_record import collect_series, read_rows

    wandb_workspaces()
    entity = login_entity()
    files = [folder / "metrics.jsonl" for folder in folders if (folder / "metrics.jsonl").is_file()]
    logged = list(dict.fromkeys(name for file in files for name in collect_series(read_rows(file)[0])))
    pictures = [path.stem for folder in folders for path in sorted(folder.glob("overlays/step*_*.png"))]
    cases = list(dict.fromkeys(re.sub(r"^step\d+_", "", picture) for picture in pictures))
    configs = [read_mapping(folder / "config.yaml") for folder in folders if (folder / "config.yaml").is_file()]
    projects = {str((config.get("tracking") or {}).get("project", "mambaseg")) for config in configs} or {"mambaseg"}
    if len(projects) > 1:
        raise InputError(f"The runs are in the W&B projects {', '.join(sorted(projects))}; give runs of one.")
    names = [f"{folder.resolve().parent.name}/{folder.resolve().name}" for folder in folders]
    view = compose(entity, projects.pop(), names, logged, cases)
    view.save()
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"View: {view.url}", markup=False)
    console.print("Next: open it. Runs recorded offline appear after: wandb sync RUN/wandb/offline-run-*", markup=False)
    return 0


def login_entity() -> str:
    """Return who is logged in to W&B.

    Raises:
        InputError: Nobody is.
    """
    import os

    from mambaseg.callbacks.wandb import has_login

    if not has_login():
        raise InputError(
            "--wandb needs a login: run `wandb login`, or set WANDB_API_KEY. Without --wandb the dashboard is in the "
            "terminal and needs neither."
        )
    given = os.environ.get("WANDB_ENTITY")
    if given:
        return given
    import wandb

    return str(wandb.Api().default_entity)
