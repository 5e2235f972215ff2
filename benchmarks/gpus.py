"""Measure how training scales over the GPUs of one host, and draw it from benchmarks/results/gpus.csv.

    python benchmarks/gpus.py --measure [--parts weak equal resume failure fsdp2] [--seconds 240]
    python benchmarks/gpus.py [--codes 6edb848 1691810]     # draw docs/images/gpus.png from the rows of some commits

weak      speed, peak memory and waiting for data; the batch of each GPU is that of the experiment
equal     the experiment's batch over all GPUs, fp32: losses beside those of one GPU, and scores of the same weights
resume    a checkpoint of two GPUs goes on on one and on all
failure   one process fails: how long the others take to end, and whether its error is told
fsdp2     DDP, as it is and without CUDA graphs, and FSDP2, with a Mamba-UNet of several times the width

Each training is a ``mambaseg fit`` of its own. Those that are timed start side by side, wait after their warm-up and
then run one after the other; the others run at the same time. Parts beside ``weak`` take the first experiment, which
must have dense labels. ``--accelerator cpu --experiments demo`` tries everything on a machine without GPUs.
"""

import argparse
import asyncio
import csv
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import matplotlib
import torch
from newest import newest
from several_gpus.bench import Bench
from several_gpus.facts import SETTLE
from several_gpus.launcher import ROOT, Launcher
from several_gpus.parts import PARTS

from mambaseg.errors import InputError

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CSV = ROOT / "benchmarks" / "results" / "gpus.csv"
EXPERIMENTS = ["semi_acdc_released", "weak_acdc"]
LINE_STYLES = ("-", "--", ":", "-.")
"""By place of the commit in the file, the last first."""


def main() -> None:
    arguments = parse()
    if arguments.measure:
        try:
            asyncio.run(measure(arguments))
        except InputError as error:
            sys.exit(f"gpus.py: {error}")
        except asyncio.CancelledError:
            sys.exit("gpus.py: stopped, and its trainings with it")
    rows = read(arguments.csv, arguments.codes)
    missing = set(arguments.codes or ()) - {row["code"] for row in rows}
    if missing:
        sys.exit(f"gpus.py: {arguments.csv} has no row of the part weak on one device for {', '.join(sorted(missing))}")
    if rows:
        draw(rows, arguments.output)
        print(f"Drawn: {arguments.output}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="append rows first")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS, metavar="EXP")
    parser.add_argument("--devices", nargs="+", type=int, help="numbers of GPUs (default: 1, 2, 4 ... all)")
    parser.add_argument("--accelerator", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--steps", type=int, default=150, help="steps of a timed training, its warm-up included")
    parser.add_argument("--warmup", type=int, default=40, help="of them, steps before the clock starts")
    parser.add_argument("--equal-steps", type=int, default=100, help="steps of the trainings whose losses are compared")
    parser.add_argument("--wide", type=int, default=384, help="embed_dim of the part fsdp2; published: 96")
    parser.add_argument("--seconds", type=float, default=240.0, help="after so many no further training starts")
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds after which a training is killed")
    parser.add_argument("--together", type=int, default=6, help="most trainings at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all, as in mambaseg fit")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpus", help="where the run folders go")
    parser.add_argument("--codes", nargs="+", metavar="COMMIT", help="whose rows are drawn (default: the newest)")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "gpus.png")
    arguments = parser.parse_args()
    if arguments.steps < arguments.warmup + SETTLE + 2:
        parser.error(f"--steps {arguments.steps}: give at least {SETTLE + 2} more than --warmup")
    return arguments


async def measure(arguments: argparse.Namespace) -> None:
    """Measure the parts that are timed one after the other, the others side by side."""
    own = asyncio.current_task()
    assert own is not None
    # A signal ends the trainings too: each is a group of processes of its own, and would go on.
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, own.cancel)
    gpus = visible_gpus() if arguments.accelerator == "gpu" else []
    counts = arguments.devices or [count for count in (1, 2, 4, 8) if count <= (len(gpus) or 2)]
    launcher = Launcher(gpus, arguments.seconds, arguments.timeout, arguments.together)
    folder = arguments.folder / datetime.now().strftime("%Y%m%d-%H%M%S")
    bench = Bench(arguments, launcher, folder.resolve(), counts)
    for name in arguments.parts:
        if PARTS[name].timed:
            await PARTS[name].measure(bench)
    await asyncio.gather(*(PARTS[name].measure(bench) for name in arguments.parts if not PARTS[name].timed))


def visible_gpus() -> list[str]:
    """Return the numbers, or names, of the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


def read(path: Path, codes: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Return the rows to draw, of the last device: of each commit, experiment and number of GPUs the newest."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "weak" and row["it_per_s"]]
    by_age = list(dict.fromkeys(row["code"] for row in reversed(rows)))[::-1]
    wanted = [code for code in by_age if code in codes] if codes else by_age[-1:]
    rows = [row for row in rows if row["code"] in wanted]
    return newest(rows, ("device",), lambda row: (wanted.index(row["code"]), row["experiment"], int(row["devices"])))


def draw(rows: list[dict[str, str]], output: Path) -> None:
    """Draw steps a second and efficiency over the number of GPUs, a line for each commit and experiment."""
    panels = {"it_per_s": "steps a second, each GPU its own batch", "efficiency": "efficiency against one GPU"}
    counts = sorted({int(row["devices"]) for row in rows})
    experiments = list(dict.fromkeys(row["experiment"] for row in rows))
    lines = list(dict.fromkeys((row["code"], row["experiment"]) for row in rows))
    codes = list(dict.fromkeys(code for code, _ in reversed(lines)))
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 4))
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for code, experiment in lines:
            own = [row for row in rows if (row["code"], row["experiment"]) == (code, experiment) and row[column]]
            points = [int(row["devices"]) for row in own], [float(row[column]) for row in own]
            colour, style = f"C{experiments.index(experiment)}", LINE_STYLES[codes.index(code) % len(LINE_STYLES)]
            axis.plot(*points, marker="o", color=colour, linestyle=style, label=f"{experiment}, {code}")
        axis.set(xlabel="GPUs", ylabel=label, xticks=counts, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[1].axhline(1.0, linestyle="--", color="grey", alpha=0.5)
    axes[1].set_ylim(0, 1.05)
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"Weak scaling, {rows[0]['precision']}, {rows[0]['device']}", fontsize="medium")
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
