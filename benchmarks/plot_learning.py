"""Draw docs/images/learning_curves.png from benchmarks/results/semi_acdc_learning.csv."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
SHORT = 2700
"""Steps of a whole run here; where the learning rate decays over more, the label says so."""


def main() -> None:
    """Draw one panel a predictor, one line a recipe."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    with (ROOT / "benchmarks" / "results" / "semi_acdc_learning.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            decay = int(row["schedule_steps"])
            recipe = row["recipe"] + ("" if decay == SHORT else f", decay over {decay:,} steps")
            curves[row["predictor"]][recipe].append((int(row["step"]), float(row["dice"])))
    figure, axes = plt.subplots(1, len(curves), figsize=(11, 4), sharey=True)
    for axis, (predictor, recipes) in zip(axes, curves.items(), strict=True):
        for recipe, points in recipes.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=recipe)
        axis.set(title=predictor, xlabel="training step", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation foreground Dice")
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize="small", frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "learning_curves.png", dpi=110)


if __name__ == "__main__":
    main()
