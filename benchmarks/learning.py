"""Train experiments on real data one after the other, and append what they learned to results/semi_acdc_learning.csv.

    python benchmarks/learning.py semi_acdc_released semi_acdc ... [--steps 2700] [--every 450] [--folder runs/learning]
    python benchmarks/learning.py semi_acdc_released --seeds 1 2 3 --set trainer.precision=32-true
    python benchmarks/learning.py semi_acdc --set model.init_args.cross.confidence=0.8 --label "confidence 0.8"

One row a validation and predictor; speed is the median of the logged ones, so it needs the GPU for itself. A run that
was finished before is read, not repeated, one that was cut short goes on; no row is written twice. ``plot_learning.py``
draws the file.
"""

import argparse
import csv
import datetime
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mambaseg.callbacks.run_card import FILE_NAME
from mambaseg.experiment import read_mapping, students_of
from mambaseg.io.csv_record import append_rows
from mambaseg.lightning_cli import RESOLVED
from mambaseg.reports.run_record import read_card, read_rows
from mambaseg.runs import RECORD, RUN_DIR_VARIABLE

RESULTS = Path(__file__).parent / "results" / "semi_acdc_learning.csv"
SAME_RECIPE = ("trainer.precision", "trainer.accelerator", "trainer.devices", "seed_everything")
COLUMNS = ("recipe", "step", "predictor", "dice", "dice_with_background", "it_per_s", "peak_gib", "load", "seed")
COLUMNS += ("precision", "schedule_steps", "gpu", "torch", "triton", "date")


def train(experiment: str, folder: Path, settings: Sequence[str]) -> None:
    """Train in a process of its own, or go on with what was cut short there; its output is shown.

    Raises:
        subprocess.CalledProcessError: The training failed.
    """
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, "-m", "mambaseg", "fit", "--config", experiment, "--resume", "auto", *arguments]
    subprocess.run(command, check=True, env=os.environ | {RUN_DIR_VARIABLE: str(folder)})


def steps_of(folder: Path) -> int:
    """Return how many steps a run had trained at its last validation; 0 where there is none."""
    record = folder / RECORD
    rows = read_rows(record)[0] if record.exists() else []
    return max((row["step"] + 1 for row in rows if any(name.startswith("val/") for name in row)), default=0)


def rows(label: str, folder: Path) -> list[dict[str, Any]]:
    """Return one row for each validation and predictor of a finished run, on whichever machine it was."""
    records, _ = read_rows(folder / RECORD)
    card = read_card(folder / FILE_NAME)
    students = students_of(read_mapping(folder / RESOLVED))
    speeds = [record["speed/steps_per_s"] for record in records if "speed/steps_per_s" in record]
    lengths = [student["schedule"].get("total_steps") or 0 for student in students.values()]
    on_gpu = card["device"]["type"] == "cuda"
    shared = {
        "recipe": label,
        "it_per_s": round(statistics.median(speeds), 2),
        "peak_gib": round(max((record.get("memory/peak_gib", 0.0) for record in records), default=0.0), 2),
        "load": "alone on the GPU" if on_gpu else "CPU",
        "seed": card["seed"],
        "precision": card["training"]["precision"],
        "schedule_steps": max(lengths) or card["training"]["max_steps"],
        "gpu": card["device"]["name"] if on_gpu else "",
        "torch": card["packages"]["torch"],
        "triton": card["packages"].get("triton", ""),
        "date": datetime.datetime.fromtimestamp(records[-1]["time"], tz=datetime.UTC).date().isoformat(),
    }
    found = []
    for record in records:
        names = [name.split("/") for name in record]
        predictors = [name[1] for name in names if len(name) == 3 and (name[0], name[2]) == ("val", "dice")]
        for predictor in predictors:
            scores = {
                "dice": round(record[f"val/{predictor}/dice"], 4),
                "dice_with_background": round(record[f"val/{predictor}/dice_with_background"], 4),
            }
            found.append(shared | scores | {"step": record["step"] + 1, "predictor": predictor})
    return found


def not_in(path: Path, new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that the file does not have."""
    if not path.exists():
        return list(new)
    with path.open(newline="", encoding="utf-8") as file:
        present = [{column: value for column, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in new if {column: str(value) for column, value in row.items() if value != ""} not in present]


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--every", type=int, default=450, help="steps between validations")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the experiment's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in mambaseg fit")
    parser.add_argument("--label", help="what the rows call a recipe that --set has changed")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "learning")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.label and len(arguments.experiments) > 1:
        parser.error("--label names one experiment, got " + " ".join(arguments.experiments))
    changed = [setting for setting in arguments.set if setting.partition("=")[0] not in SAME_RECIPE]
    if changed and not arguments.label:
        parser.error(
            f"--set {changed[0]} makes another recipe: name it with --label, or its rows pass for the experiment's"
        )
    return arguments


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = parse()
    shared = [f"trainer.max_steps={arguments.steps}", f"trainer.val_check_interval={arguments.every}"]
    shared += ["tracking.wandb=false", *arguments.set]
    for experiment in arguments.experiments:
        label = arguments.label or experiment
        for seed in arguments.seeds or [None]:
            own = [] if seed is None else [f"seed_everything={seed}"]
            folder = arguments.folder / folder_name(label, [f"steps={arguments.steps}", *arguments.set, *own])
            if steps_of(folder) < arguments.steps:
                try:
                    train(experiment, folder, [*shared, *own])
                except subprocess.CalledProcessError as error:
                    sys.exit(
                        f"learning.py: {label}: mambaseg fit ended with status {error.returncode}; it says why above"
                    )
            new = rows(label, folder)
            append_rows(arguments.output, not_in(arguments.output, new), COLUMNS)
            best = {row["predictor"]: row["dice"] for row in new}
            speed = f"{new[-1]['it_per_s']} it/s, {new[-1]['peak_gib']} GiB"
            print(f"{label}, seed {new[-1]['seed']}: {speed}, last Dice {best}", flush=True)


def folder_name(label: str, settings: Sequence[str]) -> str:
    """Return what a run's folder is called: the recipe, and the last word and value of each setting."""
    words = [label]
    for setting in settings:
        key, _, value = setting.partition("=")
        words.append(f"{key.rpartition('.')[2]}_{value}")
    return re.sub(r"[^\w.+-]+", "_", "-".join(words))


if __name__ == "__main__":
    main()
