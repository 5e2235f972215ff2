"""Draw docs/images/<study>_learning.png from benchmarks/results/<study>_learning.csv.

    python benchmarks/plot_learning.py [semi_acdc] [weak_acdc]

One panel a predictor, one line a recipe and precision: the longest run of each, of equal ones the newest.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ("semi_acdc", "weak_acdc")

Curves = dict[str, dict[str, list[tuple[int, float]]]]


def read(study: str) -> Curves:
    """Return (step, Dice) by predictor and recipe, of each recipe's longest run in bfloat16 and in float32."""
    with (ROOT / "benchmarks" / "results" / f"{study}_learning.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = {name_of(row): run_of(row) for row in sorted(rows, key=lambda row: (int(row["step"]), row["date"]))}
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if run_of(row) == drawn[name_of(row)]:
            curves[row["predictor"]][name_of(row)].append((int(row["step"]), float(row["dice"])))
    return curves


def name_of(row: dict[str, str]) -> str:
    """Return a line's name."""
    return row["recipe"] + (", fp32" if row["precision"] == "32-true" else "")


def run_of(row: dict[str, str]) -> tuple[str, ...]:
    """Return what the rows of one run have in common."""
    return tuple(row[column] for column in ("date", "seed", "gpu", "it_per_s"))


def draw(study: str) -> None:
    """Draw one study."""
    curves = read(study)
    figure, axes = plt.subplots(1, len(curves), figsize=(11, 4), sharey=True)
    for axis, (predictor, recipes) in zip(axes, curves.items(), strict=True):
        for recipe, points in recipes.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=recipe)
        axis.set(title=predictor, xlabel="training step", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation foreground Dice")
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize="small", frameon=False)
    figure.savefig(ROOT / "docs" / "images" / f"{study}_learning.png", dpi=110)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="one of " + ", ".join(STUDIES) + "; all by default")
    for study in parser.parse_args().studies or STUDIES:
        draw(study)


if __name__ == "__main__":
    main()
