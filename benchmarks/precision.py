"""Compare the loss of runs in bfloat16 with the spread of the same training's runs in float32 with several seeds.

    python benchmarks/learning.py semi_acdc_released --seeds 1337 1 2 --set trainer.precision=32-true
    python benchmarks/learning.py semi_acdc_released
    python benchmarks/precision.py runs/learning/semi_acdc_released-*

Rows are appended to benchmarks/results/precision.csv, a run's mean loss over a window of steps each, and drawn as
docs/images/precision.png. Of four runs that differ by nothing but chance, the fourth lies between the lowest and the
highest of the other three in half of all windows; so beside that share it is told how far outside it ever was, in
widths of the spread there.
"""

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mambaseg.callbacks.run_card import FILE_NAME
from mambaseg.errors import InputError
from mambaseg.experiment import read_mapping, students_of
from mambaseg.io.csv_record import append_rows
from mambaseg.lightning_cli import RESOLVED
from mambaseg.reports.run_record import collect_series, read_card, read_rows
from mambaseg.runs import RECORD

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("method", "students", "precision", "seed", "step", "loss", "window", "gpu", "torch")
FLOAT32 = "32-true"
SAME = ("model", "data", "max_steps")

Curve = dict[int, float]


def main() -> int:
    """Run from the command line."""
    arguments = parse()
    try:
        check_alike(arguments.runs)
        rows = [row for folder in arguments.runs for row in windows(folder, arguments.window, arguments.steps)]
        exact, rounded = by_precision(rows)
    except (InputError, FileNotFoundError) as error:
        print(f"precision.py: {error}", file=sys.stderr)
        return 2
    append_rows(arguments.output, rows, COLUMNS)
    for name, curve in rounded.items():
        print(f"{name}: {verdict(curve, list(exact.values()))}")
    draw(exact, rounded, arguments.image)
    print(f"{len(rows)} rows in {arguments.output}; drawn: {arguments.image}")
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of one experiment")
    parser.add_argument("--window", type=int, default=200, help="steps of a window")
    parser.add_argument("--steps", type=int, default=2000, help="how much of each run is compared")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "precision.csv")
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "precision.png")
    return parser.parse_args()


def check_alike(folders: Sequence[Path]) -> None:
    """See that runs differ in nothing but seed and precision.

    Raises:
        InputError: Their models, data or lengths differ.
    """
    first, *others = ({key: config[key] for key in SAME} for config in map(configuration, folders))
    for folder, other in zip(folders[1:], others, strict=True):
        different = [key for key in SAME if other[key] != first[key]]
        if different:
            raise InputError(
                f"{folder}/{RESOLVED}: {' and '.join(different)} not as in {folders[0]}. Give runs of one training."
            )


def configuration(folder: Path) -> dict[str, Any]:
    """Return a run's settings, with the length of its training beside them where a schedule takes that as its own."""
    config = read_mapping(folder / RESOLVED)
    own_length = all((student.get("schedule") or {}).get("total_steps") for student in students_of(config).values())
    return config | {"max_steps": None if own_length else config["trainer"]["max_steps"]}


def windows(folder: Path, window: int, steps: int) -> list[dict[str, Any]]:
    """Return the mean loss of each whole window of a run.

    Raises:
        InputError: The run is shorter than one window.
    """
    card = read_card(folder / FILE_NAME)
    loss = collect_series(read_rows(folder / RECORD)[0])["loss"]
    values: dict[int, list[float]] = defaultdict(list)
    for step, value in zip(loss.steps, loss.values, strict=True):
        values[step // window].append(value)
    end = min(steps, loss.steps[-1] + 1)
    if end < window:
        raise InputError(f"{folder}: {end} steps, fewer than --window {window}. Give a longer run or a shorter window.")
    shared = {
        "method": card["method"],
        "students": "+".join(card["students"]),
        "precision": card["training"]["precision"],
        "seed": card["seed"],
        "window": window,
        "gpu": card["device"]["name"],
        "torch": card["packages"]["torch"],
    }
    whole = [place for place in sorted(values) if (place + 1) * window <= end]
    return [shared | {"step": (place + 1) * window, "loss": statistics.fmean(values[place])} for place in whole]


def by_precision(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Return the curves in float32, and the others, by name.

    Raises:
        InputError: There is nothing to compare, or two runs are of one precision and seed.
    """
    curves: dict[str, dict[str, Curve]] = {FLOAT32: defaultdict(dict), "": defaultdict(dict)}
    for row in rows:
        name = f"{row['precision']}, seed {row['seed']}"
        curve = curves[FLOAT32 if row["precision"] == FLOAT32 else ""][name]
        if int(row["step"]) in curve:
            raise InputError(f"two runs are {name}: give one of them.")
        curve[int(row["step"])] = float(row["loss"])
    if len(curves[FLOAT32]) < 2 or not curves[""]:
        raise InputError(
            f"{len(curves[FLOAT32])} runs with precision {FLOAT32} and {len(curves[''])} others: "
            "give two or more seeds in float32 and one run beside them."
        )
    return dict(curves[FLOAT32]), dict(curves[""])


def verdict(curve: Curve, exact: Sequence[Curve]) -> str:
    """Say how a curve lies in the spread of others, over the windows that all have."""
    inside, farthest, ratios = 0, 0.0, []
    common = sorted(set(curve).intersection(*exact))
    for step in common:
        low, high = min(other[step] for other in exact), max(other[step] for other in exact)
        outside = max(low - curve[step], curve[step] - high, 0.0)
        inside += outside == 0.0
        if outside > 0.0:
            farthest = max(farthest, outside / (high - low) if high > low else math.inf)
        ratios.append(curve[step] / statistics.fmean(other[step] for other in exact))
    return (
        f"inside the spread of {len(exact)} runs in float32 in {inside} of {len(common)} windows, outside by at most "
        f"{farthest:.2f} of its width; on average {100 * (statistics.fmean(ratios) - 1):+.1f} % of their mean"
    )


def draw(exact: Mapping[str, Curve], rounded: Mapping[str, Curve], path: Path) -> None:
    """Draw the spread as a band, its runs as thin lines, the others as thick ones."""
    figure, axis = plt.subplots(figsize=(8, 4))
    common = sorted(set.intersection(*(set(curve) for curve in exact.values())))
    lows = [min(curve[step] for curve in exact.values()) for step in common]
    highs = [max(curve[step] for curve in exact.values()) for step in common]
    axis.fill_between(common, lows, highs, alpha=0.2, color="grey", label="spread in float32")
    for name, curve in exact.items():
        axis.plot(list(curve), list(curve.values()), color="grey", linewidth=0.8, label=name)
    for name, curve in rounded.items():
        axis.plot(list(curve), list(curve.values()), linewidth=2, label=name)
    axis.set(xlabel="training step", ylabel="loss", yscale="log")
    for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatted("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
