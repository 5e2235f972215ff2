"""Draw how the step of Mamba-UNet, Swin-UNet and a plain ViT grows with the image, from benchmarks/results/scaling.csv.

    python benchmarks/scaling.py --measure [--sizes 224 512 1024]     # on the machine whose figures are wanted
    python benchmarks/scaling.py                                      # draw docs/images/scaling.png from the rows

Only rows of the device, precision and batch of the newest row are drawn, and of each network and size the newest.
"""

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from newest import newest

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("mamba_unet", "swin_unet", "plain_vit")
SAME = ("device", "precision", "batch")
TIME = "ms a step"
PANELS = {TIME: ("step_ms",), "peak memory, GiB": ("reserved_gib", "resident_gib")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="append rows first")
    parser.add_argument("--sizes", nargs="+", default=["224", "384", "512", "768", "1024"], help="sides in pixels")
    parser.add_argument("--options", nargs="+", default=[], metavar="WORD", help="for mambaseg bench, without dashes")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "results" / "scaling.csv")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "scaling.png")
    arguments = parser.parse_args()
    arguments.csv = arguments.csv.resolve()
    if arguments.measure:
        for network in NETWORKS:
            measure(network, arguments)
    draw(read(arguments.csv), arguments.output)
    print(f"Drawn: {arguments.output}")


def measure(network: str, arguments: argparse.Namespace) -> None:
    """Append a network's rows, in a process of its own; where the memory ends, its larger sizes are left out."""
    words = ["--config", str(ROOT / "benchmarks" / "scaling.yaml"), "--csv", str(arguments.csv)]
    words += ["--set", f"model.init_args.students.student.network={network}", "--sizes", *arguments.sizes]
    words += [f"--{word}" for word in arguments.options]
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "plain_vit.py"), *words], check=False, cwd=ROOT)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows that belong together."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["networks"] in NETWORKS]
    return newest(rows, SAME, lambda row: (row["networks"], int(row["pixels"])))


def draw(rows: list[dict[str, str]], output: Path) -> None:
    """Draw a panel for time and one for memory; dashed, the smallest size's time in proportion to pixels."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 4))
    for axis, (label, columns) in zip(axes, PANELS.items(), strict=True):
        for network, points in curves(rows, columns).items():
            pixels, values = zip(*points, strict=True)
            line = axis.plot(pixels, values, marker="o", label=network)[0]
            if label == TIME:
                axis.plot(pixels, [values[0] * p / pixels[0] for p in pixels], "--", color=line.get_color(), alpha=0.5)
        axis.set(xlabel="megapixels of an image", ylabel=label, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    named = rows[0]
    figure.suptitle(
        f"Training step, batch {named['batch']}, {named['precision']}, {named['device']}", fontsize="medium"
    )
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def curves(rows: list[dict[str, str]], columns: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """Return megapixels and values by network; the first column that has a value counts."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        value: Any = next((row[column] for column in columns if row.get(column)), None)
        if value is not None:
            found[row["networks"]].append((int(row["pixels"]) / 1e6, float(value)))
    return found


if __name__ == "__main__":
    main()
