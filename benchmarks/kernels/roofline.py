"""Draw every operator's roofline: measured times above the floors that bytes, exponentials and instructions set.

    python benchmarks/kernels/roofline.py [CSV ...]

Writes kernels/*/roofline.svg, the same bytes for the same rows. An operator does the same few things to every element,
so the axis of a classic roofline, operations a byte, would show one place; here sizes stand side by side, and time is
what is drawn. A panel shows the newest run that measured two sizes or more, at each size the fastest plan where a run
tried several. ``floors.py`` counts the work; bandwidth is that of the newest copy measured on the same GPU, or the data
sheet's where none was.
"""

import argparse
import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from floors import DATASHEET_TB_PER_S, Machine, work
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mambaseg.io.atomic import write_text

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
SOURCES = ("published.csv", "selective_scan.csv", "sweep.csv", "blocks.csv", "bench.csv")
DTYPES = ("fp32", "bf16")
OURS = "triton"
COMPARED = ("torch", "composition")
FLOOR_COLOURS = {"bytes": "#2166ac", "exponentials": "#d6604d", "instructions": "#4d9221"}
POINTS: dict[str, dict[str, Any]] = {
    "ours, GPU alone (graph replay)": {"marker": "o", "color": "black"},
    "ours as launched": {"marker": "o", "color": "black", "markerfacecolor": "white"},
    "torch or composition": {"marker": "s", "color": "#888888", "markersize": 4},
    "published kernel": {"marker": "x", "color": "#762a83"},
    "goal": {"marker": "_", "color": "#762a83", "markersize": 13, "markeredgewidth": 1.5},
}
REPLAYED, LAUNCHED, OTHER, PUBLISHED, GOAL = POINTS
Row = dict[str, str]


@dataclass(frozen=True)
class Column:
    """One column of panels.

    Attributes:
        title: Above it.
        kernel: Name in the rows.
        mode: Pass in the rows.
        shapes: What to show the floors of while nothing is measured.
        ending: How shapes end that belong here.
        goal: The goal as a share of what torch or the composition takes; 0 where rows say it or nobody does.
    """

    title: str
    kernel: str
    mode: str
    shapes: tuple[str, ...]
    ending: str = ""
    goal: float = 0.0


STAGES = ((192, 56), (384, 28), (768, 14), (1536, 7))
SCANS = tuple(f"(24, 4*{channels}, {side}*{side}), N=16" for channels, side in STAGES)
SEQUENCES = tuple(f"(24, {side * side}, {channels})" for channels, side in STAGES)
MAPS = tuple(f"(24, {side}, {side}, {channels})" for channels, side in STAGES)
VECTORS = ("(16, 56, 56, 16, 96), K=4", "(24, 64, 64, 16, 96), K=4")
SMALL_MAPS = tuple(
    f"(16, {side}, {side}, {channels}), S={channels}" for channels, side in ((16, 112), (32, 56), (64, 28), (128, 14))
)
NORMALISED = tuple(f"(16, {224 >> level}, {224 >> level}, {16 << level})" for level in range(5))
LOGITS = ("(16, 4, 224, 224)", "(24, 4, 256, 256)")
FIGURES = {
    "selective_scan": (
        Column("forward", "selective_scan", "forward", SCANS),
        Column("backward", "selective_scan", "backward", SCANS),
    ),
    "ss2d": tuple(
        Column(
            f"training, N = {states}",
            "ss2d",
            "training",
            tuple(f"(24, {channels}, {side}, {side}), N={states}" for channels, side in STAGES),
            f"N={states}",
            goal=1 / 3,
        )
        for states in (16, 1)
    ),
    "causal_conv1d": (
        Column("forward", "causal_conv1d channels last", "forward_saving", SEQUENCES),
        Column("backward", "causal_conv1d channels last", "backward", SEQUENCES),
    ),
    "depthwise_conv2d": (
        Column("forward", "depthwise_conv2d", "forward_saving", MAPS),
        Column("backward", "depthwise_conv2d", "backward", MAPS),
    ),
    "norm_gate": (
        Column("merge, norm, gate: forward", "norm_gate 4", "forward_saving", SEQUENCES),
        Column("merge, norm, gate: backward", "norm_gate 4", "backward", SEQUENCES),
        Column("LayerNorm: forward", "layer_norm float32", "forward_saving", SEQUENCES),
        Column("LayerNorm: backward", "layer_norm float32", "backward", SEQUENCES),
    ),
    "softmax_sums": tuple(
        Column(f"{layout}: {title}", f"softmax_sums {layout}", mode, LOGITS)
        for layout in ("contiguous", "channels last")
        for title, mode in (("forward", "forward_saving"), ("backward", "backward"))
    ),
    "rms_scores": (
        Column("forward", "rms_scores", "forward_saving", VECTORS),
        Column("backward", "rms_scores", "backward", VECTORS),
    ),
    "bilinear_doubling": (
        Column("forward", "bilinear_doubling", "forward_saving", SMALL_MAPS),
        Column("backward", "bilinear_doubling", "backward", SMALL_MAPS),
    ),
    "batch_norm_act": (
        Column("forward", "batch_norm_act", "forward_saving", NORMALISED),
        Column("backward", "batch_norm_act", "backward", NORMALISED),
    ),
    "selective_state_update": (Column("one step", "selective_state_update", "forward", SEQUENCES),),
}


@dataclass
class Panel:
    """What one panel shows: milliseconds by series and shape, and the machine that measured them."""

    shapes: list[str]
    series: dict[str, dict[str, float]]
    gpu: str = "NVIDIA H200"
    run: str = "nothing measured yet"
    machine: Machine = field(default_factory=lambda: Machine(math.inf))
    bandwidth: str = ""

    @property
    def origin(self) -> str:
        """Where the figures are from."""
        return f"{self.gpu.split()[1]}, {self.bandwidth}; {self.run}"


def read(paths: Iterable[Path]) -> list[Row]:
    """Return the rows of all files, oldest file first."""
    rows = []
    for path in paths:
        if not path.is_file():
            raise SystemExit(f"{path} does not exist")
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return rows


def run_of(row: Row) -> tuple[str, str, str]:
    """Return what rows of one run have in common: GPU, date and commit, which older rows have behind the provider."""
    provider, _, commit = row["provider"].partition(" ")
    return row.get("gpu", ""), row.get("date", ""), row.get("commit") or (commit if provider == OURS else "")


def panel(rows: list[Row], column: Column, dtype: str) -> Panel:
    """Choose the rows of one panel."""
    rows_here = [
        row
        for row in rows
        if (row["kernel"], row["mode"], row["dtype"]) == (column.kernel, column.mode, dtype)
        and row["shape"].endswith(column.ending)
        and "R" not in row.get("plan", "")
    ]
    measured = [row for row in rows_here if row.get("gpu", "").startswith("NVIDIA")]
    shapes_of: dict[tuple[str, str, str], list[str]] = {}
    for row in measured:
        if row["provider"].partition(" ")[0] == OURS:
            shapes_of.setdefault(run_of(row), []).append(row["shape"])
    runs = [run for run, shapes in shapes_of.items() if len(set(shapes)) > 1]
    published = {
        PUBLISHED: milliseconds(row for row in rows_here if row["provider"] == "mamba_ssm"),
        GOAL: milliseconds(row for row in rows_here if row["provider"] == "goal"),
    }
    if not runs:
        return with_bandwidth(Panel(list(column.shapes), published), rows)
    run = runs[-1]
    ours = [row for row in measured if run_of(row) == run and row["provider"].partition(" ")[0] == OURS]
    others = [row for row in measured if run_of(row)[:2] == run[:2] and row["provider"] in COMPARED]
    series = {
        REPLAYED: milliseconds(row for row in ours if row.get("timing") == "replayed"),
        LAUNCHED: milliseconds(row for row in ours if row.get("timing", "launched") == "launched"),
        OTHER: milliseconds(row for row in others if row.get("timing", "launched") == "launched")
        | milliseconds(row for row in others if row.get("timing") == "replayed"),
    }
    if column.goal:
        published[GOAL] = {shape: column.goal * ms for shape, ms in series[OTHER].items()}
    shown = Panel(list(dict.fromkeys(shapes_of[run])), series | published, run[0], ", ".join(filter(None, run[1:])))
    return with_bandwidth(shown, rows)


def milliseconds(rows: Iterable[Row]) -> dict[str, float]:
    """Return the time of every shape: the last row of a plan, the fastest plan of a shape."""
    by_plan: dict[str, dict[str, float]] = {}
    for row in rows:
        by_plan.setdefault(row["shape"], {})[row.get("plan", "")] = float(row["ms_p50"])
    return {shape: min(plans.values()) for shape, plans in by_plan.items()}


def with_bandwidth(shown: Panel, rows: list[Row]) -> Panel:
    """Set the machine of a panel."""
    copies = [row for row in rows if row["kernel"] == "copy" and row["gpu"] == shown.gpu]
    if copies:
        moved = int(copies[-1]["shape"].split()[0])
        shown.machine = Machine(moved / float(copies[-1]["ms_p50"]) * 1e3)
        shown.bandwidth = f"{shown.machine.bytes_per_s / 1e12:.2f} TB/s copied"
    else:
        rate = next(rate for name, rate in DATASHEET_TB_PER_S.items() if name in shown.gpu)
        shown.machine = Machine(rate * 1e12)
        shown.bandwidth = f"{rate} TB/s by its data sheet"
    return shown


def draw(axis: Axes, shown: Panel, column: Column, dtype: str) -> set[str]:
    """Draw one panel; return the kinds of floors and of points in it."""
    drawn: set[str] = set()
    lowest, highest = [], []
    for x, shape in enumerate(shown.shapes):
        floors = shown.machine.floors_ms(work(column.kernel, column.mode, dtype, shape))
        points = {name: ms[shape] for name, ms in shown.series.items() if shape in ms}
        drawn |= {*floors, *points}
        for kind, ms in floors.items():
            axis.plot([x - 0.4, x + 0.4], [ms, ms], color=FLOOR_COLOURS[kind], linewidth=1.4, solid_capstyle="butt")
        axis.fill_between([x - 0.4, x + 0.4], max(floors.values()), 1e-9, color="#e8e8e8", linewidth=0, zorder=0)
        lowest.append(min(floors.values()))
        highest.append(max((*points.values(), *floors.values())))
        for name, ms in points.items():
            axis.plot([x], [ms], linestyle="", **({"markersize": 5} | POINTS[name]))
        if REPLAYED in points or LAUNCHED in points:
            ours = points.get(REPLAYED, points.get(LAUNCHED, 0.0))
            axis.annotate(f"{ours:.2g}", (x, ours), (5, -3), textcoords="offset points", fontsize=7)
    axis.set(yscale="log", ylim=(min(lowest) / 1.5, max(highest) * 1.6), xlim=(-0.6, len(shown.shapes) - 0.2))
    axis.set_xticks(range(len(shown.shapes)), [tick(shape) for shape in shown.shapes], fontsize=7)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(axis="y", alpha=0.25, linewidth=0.5)
    axis.set_title(f"{column.title}, {dtype}", fontsize=9, pad=14)
    axis.text(0.5, 1.02, shown.origin, transform=axis.transAxes, ha="center", fontsize=7, color="#555555")
    return drawn


def tick(shape: str) -> str:
    """Write a shape in lines."""
    sizes, _, states = shape.partition(", K=")[0].partition("), N=")
    first, second, *rest = sizes.strip("()").replace("*", "·").split(", ")
    return "\n".join([first, second, "·".join(rest), *([f"N={states}"] if states == "1" else [])])


def figure(name: str, rows: list[Row]) -> str:
    """Draw the panels of one operator, and return them as SVG."""
    columns = FIGURES[name]
    across = min(2, len(columns))
    panels = [
        (column, dtype)
        for first in range(0, len(columns), across)
        for dtype in DTYPES
        for column in columns[first : first + across]
    ]
    down = len(panels) // across
    drawing, axes = plt.subplots(down, across, figsize=(max(5.2, 3.7 * across), 0.6 + 2.9 * down), squeeze=False)
    seen: set[str] = set()
    for axis, (column, dtype) in zip(axes.flat, panels, strict=True):
        seen |= draw(axis, panel(rows, column, dtype), column, dtype)
    for axis in axes[:, 0]:
        axis.set_ylabel("milliseconds", fontsize=8)
    handles = [
        Line2D([], [], color=FLOOR_COLOURS[kind], label=f"floor: {kind}") for kind in FLOOR_COLOURS if kind in seen
    ]
    handles += [Line2D([], [], linestyle="", label=name, **style) for name, style in POINTS.items() if name in seen]
    drawing.tight_layout(rect=(0, 0.6 / (0.6 + 2.9 * down), 1, 1))
    drawing.legend(handles=handles, loc="lower center", ncols=4, fontsize=7, frameon=False)
    text = io.StringIO()
    drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(drawing)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def main() -> None:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows", nargs="*", type=Path, help="CSV files, oldest first; those beside this script by default"
    )
    parser.add_argument("--figures", nargs="+", default=list(FIGURES), choices=list(FIGURES))
    parser.add_argument("--folder", type=Path, default=KERNELS, help="where the operators' folders are")
    arguments = parser.parse_args()
    rows = read(arguments.rows or [path for path in (HERE / name for name in SOURCES) if path.is_file()])
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "roofline", "font.sans-serif": ["DejaVu Sans", "Arial"]}
    for name in arguments.figures:
        target = arguments.folder / name / "roofline.svg"
        write_text(target, figure(name, rows))
        print(f"wrote {target}")


if __name__ == "__main__":
    main()
