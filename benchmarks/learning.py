"""Train experiments on real data one after the other, and append what they learned to results/semi_acdc_learning.csv.

    python benchmarks/learning.py semi_acdc_released semi_acdc ... [--steps 2700] [--every 450] [--folder runs/learning]

One row a validation and predictor; speed is the median of the logged ones, so it needs the GPU for itself. A run that
exists already in the folder is read, not repeated. ``plot_learning.py`` draws the file.
"""

import argparse
import datetime
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from mambaseg.callbacks.run_card import FILE_NAME
from mambaseg.experiment import read_mapping, students_of
from mambaseg.io.csv_record import append_rows
from mambaseg.lightning_cli import RESOLVED
from mambaseg.reports.run_record import read_card, read_rows

RESULTS = Path(__file__).parent / "results" / "semi_acdc_learning.csv"
COLUMNS = ("recipe", "step", "predictor", "dice", "dice_with_background", "it_per_s", "peak_gib", "load", "seed")
COLUMNS += ("precision", "schedule_steps", "gpu", "torch", "triton", "date")


def train(experiment: str, folder: Path, steps: int, every: int) -> None:
    """Train in a process of its own; its output is shown.

    Raises:
        subprocess.CalledProcessError: The training failed.
    """
    settings = (f"trainer.max_steps={steps}", f"trainer.val_check_interval={every}", "tracking.wandb=false")
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, "-m", "mambaseg", "fit", "--config", experiment, "--run-dir", str(folder), *arguments]
    subprocess.run(command, check=True)


def rows(experiment: str, folder: Path) -> list[dict[str, Any]]:
    """Return one row for each validation and predictor of a finished run, on whichever machine it was."""
    records, _ = read_rows(folder / "metrics.jsonl")
    card = read_card(folder / FILE_NAME)
    students = students_of(read_mapping(folder / RESOLVED))
    speeds = [record["speed/steps_per_s"] for record in records if "speed/steps_per_s" in record]
    lengths = [student["schedule"].get("total_steps") or 0 for student in students.values()]
    on_gpu = card["device"]["type"] == "cuda"
    shared = {
        "recipe": experiment,
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


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--every", type=int, default=450, help="steps between validations")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "learning")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for experiment in arguments.experiments:
        folder = arguments.folder / experiment
        if not (folder / "metrics.jsonl").exists():
            train(experiment, folder, arguments.steps, arguments.every)
        new = rows(experiment, folder)
        append_rows(arguments.output, new, COLUMNS)
        best = {row["predictor"]: row["dice"] for row in new}
        print(experiment, f"{new[-1]['it_per_s']} it/s, {new[-1]['peak_gib']} GiB, last Dice {best}", flush=True)


if __name__ == "__main__":
    main()
