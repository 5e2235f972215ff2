"""Studies: several arms of one experiment over several seeds, trained side by side and compared in one table."""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mambaseg.errors import InputError
from mambaseg.experiment import Config, dump_config, merge, read_mapping
from mambaseg.io.atomic import atomic_path, write_text
from mambaseg.metrics.headline import headline_metric, headline_predictor
from mambaseg.reports.run_record import collect_series, read_rows
from mambaseg.runs import (
    CHOOSE_RUN_DIR,
    RECORD,
    RUN_DIR_VARIABLE,
    STUDY_VARIABLE,
    alone_in,
    check_writable,
    newest_checkpoint,
    newest_run,
    note_newest,
    runs_folder,
)

FIELDS = {"arms", "seeds", "workers"}
ARGUMENTS = "arguments.yaml"
"""What every training of a study was given beside its configuration."""
ARM_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Job:
    """One training of a study.

    Attributes:
        arm: Which variant.
        seed: Which seed.
        folder: Its run folder.
    """

    arm: str
    seed: int
    folder: Path

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self._beside("log")

    @property
    def done(self) -> Path:
        """A file that is there once the training has ended well."""
        return self._beside("done")

    @property
    def config(self) -> Path:
        """What it trains: the experiment with the arm's overrides and the seed."""
        return self._beside("yaml")

    def _beside(self, kind: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{kind}")


@dataclass(frozen=True)
class Outcome:
    """Validation foreground Dice of one predictor of one job."""

    job: Job
    predictor: str
    dice: float


def run_study(experiment: str, base: Config, study: Any, arguments: argparse.Namespace) -> int:
    """Train every arm with every seed, print the comparison, and write it beside the runs.

    Args:
        experiment: The experiment's name.
        base: What all arms share.
        study: The ``study`` section: ``arms`` (name to overrides), ``seeds``, and how many ``workers`` at a time.
        arguments: Of ``fit``; further arguments go to every training.

    Returns:
        The exit status.

    Raises:
        InputError: The section is malformed, ``--resume`` is not ``auto``, or a training failed.
    """
    arms, seeds, workers = check_study(experiment, study)
    if arguments.resume not in (None, "auto"):
        raise InputError(
            f"--resume {arguments.resume}: {experiment!r} is a study; give auto, which resumes all its runs."
        )
    signal.signal(signal.SIGTERM, stop_study)
    check_arms(experiment, base, arms, arguments.rest)
    begun = newest_run(experiment) if arguments.resume else None
    folder = arguments.run_dir or begun or new_folder(experiment)
    check_writable(folder, CHOOSE_RUN_DIR)
    with alone_in(folder):
        note_newest(experiment, folder)
        return train_and_compare(experiment, base, arms, seeds, workers, folder, arguments.rest)


def new_folder(experiment: str) -> Path:
    """Return a folder for a new study."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    names = (stamp, *(f"{stamp}-{number}" for number in range(2, 100)))
    return next(path for name in names if not (path := runs_folder() / experiment / name).exists())


def train_and_compare(
    experiment: str,
    base: Config,
    arms: dict[str, Config],
    seeds: list[int],
    workers: int,
    folder: Path,
    arguments: list[str],
) -> int:
    """Train what is not done of a study in its folder, and show the comparison."""
    jobs = [Job(arm, seed, folder / f"{arm}-seed{seed}") for seed in seeds for arm in arms]
    given = {"arguments": arguments}
    for job in jobs:
        job_config = merge(merge(base, arms[job.arm]), {"seed_everything": job.seed})
        if job.config.exists() and read_mapping(job.config) != job_config:
            raise InputError(f"{job.config} has other settings than {experiment!r} has now: start without --resume.")
        dump_config(job_config, job.config)
    if (folder / ARGUMENTS).exists() and (before := read_mapping(folder / ARGUMENTS)) != given:
        raise InputError(
            f"The trainings of {folder} had the arguments {before.get('arguments')}, now they are {arguments}: give "
            "the same, or start without --resume."
        )
    dump_config(given, folder / ARGUMENTS)
    console = Console(soft_wrap=True)
    console.print(f"{experiment}: {len(jobs)} trainings ({', '.join(arms)} x seeds {seeds}), {workers} at a time")
    try:
        train_jobs(experiment, jobs, workers, arguments, console)
    except (KeyboardInterrupt, SystemExit):
        console.print(f"Go on with: make train EXP={experiment} RESUME=auto")
        raise
    outcomes = list(read_outcomes(jobs))
    console.print(comparison_table(experiment, outcomes, list(arms)))
    write_text(folder / "study.md", comparison_markdown(experiment, outcomes, list(arms)))
    picture = predictions_picture(jobs, folder / "predictions.png")
    console.print(
        f"Table: {folder / 'study.md'}\nPredictions: {picture}" if picture else f"Table: {folder / 'study.md'}"
    )
    last = jobs[-1].folder
    console.print(f"Next: make report RUN={last}   or, with data: make train EXP=semi_acdc")
    return 0


def check_study(experiment: str, study: Any) -> tuple[dict[str, Config], list[int], int]:
    """Return the checked arms, seeds and worker count of a ``study`` section.

    Raises:
        InputError: A field is missing, unknown or of the wrong type.
    """
    where = f"Experiment {experiment!r}: field 'study'"
    if not isinstance(study, dict) or not {"arms", "seeds"} <= set(study) or not set(study) <= FIELDS:
        got = sorted(study) if isinstance(study, dict) else type(study).__name__
        raise InputError(f"{where} must hold arms and seeds, and may hold workers; it holds {got}.")
    arms, seeds, workers = study["arms"], study["seeds"], study.get("workers", 1)
    if not isinstance(arms, dict) or not arms or not all(isinstance(a, dict) for a in arms.values()):
        raise InputError(f"{where}.arms must map names to overrides, got {arms!r}.")
    strange = [arm for arm in arms if not isinstance(arm, str) or not ARM_NAME.fullmatch(arm)]
    if strange:
        raise InputError(f"{where}.arms: {strange[0]!r} names a folder: use letters, digits, '.', '_', '+' and '-'.")
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) for s in seeds):
        raise InputError(f"{where}.seeds must be a list of whole numbers, got {seeds!r}.")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{where}.seeds must differ, got {seeds!r}.")
    if not isinstance(workers, int) or workers < 1:
        raise InputError(f"{where}.workers must be a positive whole number, got {workers!r}.")
    return arms, seeds, min(workers, os.cpu_count() or 1)


def check_arms(experiment: str, base: Config, arms: dict[str, Config], arguments: list[str]) -> None:
    """Build every arm once, so that none is refused only after hours of training another, and in a log.

    Args:
        experiment: The experiment's name.
        base: What all arms share.
        arms: Each arm's overrides.
        arguments: Further arguments of every training.

    Raises:
        InputError: An arm has a misspelt key, a value of the wrong type, or a part refuses its values.
    """
    from mambaseg.lightning_cli import build

    for arm, overrides in arms.items():
        with tempfile.TemporaryDirectory() as folder:
            build(merge(base, overrides), Path(f"{experiment}, arm {arm!r}"), Path(folder), arguments, track=False)


def stop_study(number: int, frame: FrameType | None) -> None:
    """End on a signal by way of ``finally``, so that the running trainings are told to save and stop."""
    sys.exit(128 + number)


def train_jobs(experiment: str, jobs: list[Job], workers: int, arguments: list[str], console: Console) -> None:
    """Train all jobs that are not done, ``workers`` at a time, each in a process of its own.

    Raises:
        InputError: A training failed; the message ends with what it gave as the reason.
    """
    waiting, running = [job for job in jobs if not job.done.exists()], dict[Job, subprocess.Popen[bytes]]()
    if len(waiting) < len(jobs):
        console.print(f"  {len(jobs) - len(waiting)} are done already")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=len(waiting))
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    running[job] = start(experiment, job, workers, arguments)
                finished = [job for job, process in running.items() if process.poll() is not None]
                for job in finished:
                    if running.pop(job).returncode:
                        raise InputError(f"training {job.folder.name} failed: {reason(job.log)}")
                    write_text(job.done, "")
                    progress.advance(bar)
                    if not console.is_terminal:
                        console.print(
                            f"  {job.folder.name}: done ({len(jobs) - len(waiting) - len(running)}/{len(jobs)})"
                        )
                time.sleep(0.2)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def start(experiment: str, job: Job, workers: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start one training, or go on with it where it has a checkpoint; the workers share the cores evenly."""
    threads = str(max((os.cpu_count() or 1) // workers, 1))
    environment = {k: v for k, v in os.environ.items() if k != RUN_DIR_VARIABLE}
    environment |= {"OMP_NUM_THREADS": threads, STUDY_VARIABLE: experiment}
    config = str(job.config)
    place = "--resume" if newest_checkpoint(job.folder) else "--run-dir"
    command = [sys.executable, "-m", "mambaseg", "fit", "--config", config, place, str(job.folder), *arguments]
    with job.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def reason(log: Path, lines: int = 15) -> str:
    """Return why a training stopped: the message with which ``fit`` refused it, else the last lines of its log."""
    text = log.read_text(encoding="utf-8", errors="replace").rstrip()
    _, refused, message = text.rpartition("mambaseg fit: error: ")
    return message if refused else f"{log} ends with:\n" + "\n".join(text.splitlines()[-lines:])


def read_outcomes(jobs: list[Job]) -> Iterator[Outcome]:
    """Yield every predictor's last validation Dice of every job.

    From the record of the training: tables of scores are written anew by ``mambaseg validate``, for other weights.
    """
    for job in jobs:
        for name, series in collect_series(read_rows(job.folder / RECORD)[0]).items():
            words = name.split("/")
            if len(words) == 3 and (words[0], words[2]) == ("val", "dice"):
                yield Outcome(job, words[1], series.last)


def spread(values: list[float]) -> str:
    """Format a mean and, over several seeds, the standard deviation."""
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def comparison_rows(outcomes: list[Outcome], arms: list[str]) -> list[list[str]]:
    """Return one row a predictor: its Dice under each arm, and each later arm's gain over the first, seed by seed."""
    rows = []
    for predictor in dict.fromkeys(outcome.predictor for outcome in outcomes):
        by_arm = {arm: [o for o in outcomes if o.job.arm == arm and o.predictor == predictor] for arm in arms}
        cells = [spread([o.dice for o in by_arm[arm]]) if by_arm[arm] else "" for arm in arms]
        first = {o.job.seed: o.dice for o in by_arm[arms[0]]}
        for arm in arms[1:]:
            gains = [o.dice - first[o.job.seed] for o in by_arm[arm] if o.job.seed in first]
            cells.append(f"{statistics.fmean(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})" if gains else "")
        rows.append([predictor, *cells])
    return rows


def comparison_header(arms: list[str]) -> list[str]:
    """Return the columns of the comparison."""
    return ["foreground Dice", *arms, *(f"{arm} - {arms[0]}" for arm in arms[1:])]


def comparison_table(experiment: str, outcomes: list[Outcome], arms: list[str]) -> Table:
    """Return the comparison for the terminal."""
    seeds = len({outcome.job.seed for outcome in outcomes})
    title = f"{experiment}: validation, mean ± sd over {seeds} seeds"
    table = Table(*comparison_header(arms), title=title, caption=headline_note(outcomes))
    for row in comparison_rows(outcomes, arms):
        table.add_row(*row)
    return table


def comparison_markdown(experiment: str, outcomes: list[Outcome], arms: list[str]) -> str:
    """Return the comparison as Markdown."""
    header = comparison_header(arms)
    lines = [f"# {experiment}", "", " | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join(row) for row in comparison_rows(outcomes, arms)]
    return "\n".join([*lines[:2], *(f"| {line} |" for line in lines[2:]), "", f"{headline_note(outcomes)}.", ""])


def headline_note(outcomes: list[Outcome]) -> str:
    """Say which row is the headline."""
    predictors = list(dict.fromkeys(outcome.predictor for outcome in outcomes))
    return f"headline, {headline_metric()}: {headline_predictor(predictors)}"


def predictions_picture(jobs: list[Job], path: Path) -> Path | None:
    """Stack the last overlay of the same case from the first seed of every arm; None where no overlay was drawn."""
    from PIL import Image, ImageDraw

    panels = {}
    for job in (job for job in jobs if job.seed == jobs[0].seed):
        drawn = sorted((job.folder / "overlays").glob("step*.png"))
        if not drawn:
            return None
        last_step = drawn[-1].name.split("_")[0]
        panels[job.arm] = Image.open(next((job.folder / "overlays").glob(f"{last_step}_*.png")))
    bar = 24
    size = (max(p.width for p in panels.values()), sum(p.height + bar for p in panels.values()))
    sheet = Image.new("RGB", size, "white")
    top = 0
    for arm, panel in panels.items():
        ImageDraw.Draw(sheet).text((8, top + 4), arm, fill="black", font_size=16)
        sheet.paste(panel, (0, top + bar))
        top += panel.height + bar
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path
