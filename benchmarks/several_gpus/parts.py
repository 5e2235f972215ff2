"""The parts of the benchmark of several GPUs: which trainings each needs, and what their records say."""

import asyncio
import math
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from several_gpus.bench import EXACT, NEVER, Bench, batch
from several_gpus.facts import facts, images, mean_losses, read_records, scores, speed
from several_gpus.launcher import Run, alive
from several_gpus.record import failure

from mambaseg.experiment import merge, students_of

COMPARED = 20
RESUMED_STEPS = 10
FAILING_STEP = 5
FAILURES = (("raise", -1), ("kill", -1), ("raise", 0))
"""How a process fails, and which one."""
ONE_MINUTE = 60.0


async def weak(bench: Bench) -> None:
    """Train with the experiment's batch on each of 1, 2, 4 ... GPUs."""
    named: dict[Run, str] = {}
    for name in bench.arguments.experiments:
        config = bench.experiment(name)
        for devices in bench.counts:
            run = bench.timed(f"weak-{Path(name).stem}-{devices}", config, devices, **batch(config, devices))
            named[run] = name
    rates: dict[tuple[str, int], float] = {}
    async for run in bench.launcher.finish_in_turn(named):
        values = speed(run.folder, bench.arguments.warmup)
        name = named[run]
        if "it_per_s" in values:
            rates[name, run.devices] = values["it_per_s"]
            one = rates.get((name, 1))
            values["efficiency"] = round(values["it_per_s"] / one, 4) if one else None
        bench.keep("weak", name, run, **values)


async def fsdp2(bench: Bench) -> None:
    """Train a wide Mamba-UNet, with a quarter of the experiment's batch on each GPU: its weights should matter."""
    wide = {"options": {"embed_dim": bench.arguments.wide}}
    config = bench.experiment(bench.first)
    chosen = {own: wide for own, student in students_of(config).items() if student["network"] == "mamba_unet"}
    config = merge(config, {"model": {"init_args": {"students": chosen}}})
    # The slowest last: a time limit then cuts no other.
    strategies: dict[str, dict[str, Any]] = {"ddp": {"trainer__strategy": "ddp"}}
    if bench.on_gpu:
        strategies["ddp without CUDA graphs"] = strategies["ddp"] | {"model__init_args__cuda_graphs": False}
    strategies["fsdp2"] = {"trainer__strategy": "fsdp2"}
    named: dict[Run, str] = {}
    for strategy, settings in strategies.items():
        for devices in (count for count in reversed(bench.counts) if count > 1):
            own = settings | batch(config, devices, 4)
            named[bench.timed(f"{strategy.replace(' ', '_')}-{devices}", config, devices, **own)] = strategy
    async for run in bench.launcher.finish_in_turn(named):
        bench.keep("fsdp2", bench.first, run, **speed(run.folder, bench.arguments.warmup) | {"strategy": named[run]})


async def equal(bench: Bench) -> None:
    """Train on the same batches by 1, 2, 4 ... processes, and by one again; score one's weights by each."""
    runs = await asyncio.gather(
        bench.exact_run(1),
        bench.exact_run(1, again=True),
        *(bench.exact_run(count) for count in bench.counts if count > 1),
    )
    losses = {run: mean_losses(run.folder) for run in runs}
    print_side_by_side({run.folder.name: own[:COMPARED] for run, own in losses.items()})
    for run, own in losses.items():
        values: dict[str, Any] = {"losses": as_text(own), "batch": images(run.folder)}
        apart = differences(own, losses[runs[0]])
        if apart:
            values["difference"] = max(apart[:COMPARED])
            values["detail"] = (
                f"{run.folder.name}: losses beside one process's, relative, largest of {COMPARED} steps; "
            )
            values["detail"] += f"of {len(apart)} {max(apart):.1e}"
        bench.keep("equal", bench.first, run, **values)
    await same_scores(bench, max(runs, key=lambda run: (not run.problem, run.devices == 2)))


def print_side_by_side(losses: dict[str, list[float]]) -> None:
    """Print the losses of several trainings, a step a line."""
    print("step", *(f"{name:>15}" for name in losses))
    for step, values in enumerate(zip(*losses.values(), strict=False)):
        print(f"{step:4}", *(f"{value:15.7f}" for value in values), flush=True)


def differences(losses: list[float], others: list[float]) -> list[float]:
    """Return by how much the losses of each step differ, relative to the others."""
    return [float(f"{abs(own - other) / abs(other):.2e}") for own, other in zip(losses, others, strict=False)]


def as_text(losses: list[float]) -> str:
    return " ".join(f"{loss:.7g}" for loss in losses)


async def same_scores(bench: Bench, trained: Run) -> None:
    """Score the last weights of a run with 1, 2, 4 ... processes."""
    scorings = []
    for devices in bench.counts:
        words = ["validate", "--run", str(trained.folder), "--checkpoint", "last", "--allow-code", "benchmarks"]
        folder = bench.folder / f"scores-{devices}"
        words += ["--output", str(folder), f"--trainer.devices={devices}", "--trainer.limit_val_batches=1.0"]
        scorings.append(Run(folder, words, devices, EXACT))
    await asyncio.gather(*map(bench.launcher.finish, scorings))
    tables = [scores(run.folder) for run in scorings]
    for run, table in zip(scorings, tables, strict=True):
        values: dict[str, Any] = facts(trained.folder)
        if table and tables[0]:
            same_cases = table.keys() == tables[0].keys()
            values["difference"] = max(abs(table[key] - tables[0][key]) for key in table) if same_cases else math.inf
            mean = statistics.mean(dice for (*_, index), dice in table.items() if index)
            values["detail"] = f"validation of the same weights: {len(table)} Dice, foreground mean {mean:.4f}"
        bench.keep("equal", bench.first, run, **values)


async def resume(bench: Bench) -> None:
    """Go on from a checkpoint of two processes, with one and with all."""
    before = await bench.exact_run(min(2, bench.counts[-1]))
    config = bench.exact_experiment(bench.first)
    steps = bench.arguments.equal_steps + RESUMED_STEPS
    runs = []
    for devices in sorted({1, bench.counts[-1]}):
        run = bench.fit(f"resumed-{devices}", config, devices, ("ProcessRecord", {}), trainer__max_steps=steps)
        run.words = [*run.words, "--resume", str(run.folder)]
        run.environment = EXACT
        if before.status == 0:
            shutil.copytree(before.folder / "checkpoints", run.folder / "checkpoints")
        runs.append(run)
    await asyncio.gather(*map(bench.launcher.finish, runs))
    for run in runs:
        losses, detail = mean_losses(run.folder), "no step was made"
        if losses:
            start = read_records(run.folder)[0]["first_step"]
            finite = "all finite" if all(map(math.isfinite, losses)) else "NOT all finite"
            detail = f"by {before.devices} to step {start}, then to {start + len(losses)}; losses {finite}"
        values: dict[str, Any] = {"losses": as_text(losses), "batch": images(run.folder)}
        values["difference"] = max(differences(losses, mean_losses(runs[0].folder)), default=None)
        bench.keep("resume", bench.first, run, detail=detail, **values)


async def failures(bench: Bench) -> None:
    """Let one of all processes fail in several ways, and see how and when the others end."""
    if bench.counts[-1] > 1:
        await asyncio.gather(*(fail(bench, *failing) for failing in FAILURES))


async def fail(bench: Bench, how: str, place: int) -> None:
    """Let one process fail, and keep what became of the others."""
    devices = bench.counts[-1]
    rank = place % devices
    failing = {"rank": rank, "step": FAILING_STEP, "how": how, "others": "train" if bench.on_gpu else "sleep"}
    config = bench.exact_experiment(bench.first)
    name = f"failure-{how}-{rank}"
    run = bench.fit(name, config, devices, ("ProcessRecord", {}), ("Failing", failing), trainer__max_steps=NEVER)
    await bench.launcher.finish(run)
    detail = f"{how} in process {rank}"
    if not run.left("failed").exists():
        bench.keep("failure", bench.first, run, detail=f"{detail}: it did not come to that")
        return
    failed = float(run.left("failed").read_text(encoding="utf-8"))
    pids = [int(path.read_text(encoding="utf-8")) for path in run.left("").glob("pid*")]
    while (left := sum(map(alive, pids))) and time.time() < failed + ONE_MINUTE:
        await asyncio.sleep(0.1)
    ends = f"the last after {time.time() - failed:.1f} s"
    if left:
        ends = f"{left} processes were STILL THERE after a minute"
    run.kill()
    run.problem = ""
    told = ("was killed by SIGKILL" if how == "kill" else failure(rank)) in run.errors
    detail += f": the first process ended after {run.ended - failed:.1f} s with status {run.status}, {ends}; "
    bench.keep("failure", bench.first, run, detail=detail + f"the reason is {'' if told else 'NOT '}told")


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        measure: Does it.
        timed: Nothing else may run meanwhile.
    """

    measure: Callable[[Bench], Awaitable[None]]
    timed: bool = False


PARTS = {
    "weak": Part(weak, timed=True),
    "equal": Part(equal),
    "resume": Part(resume),
    "failure": Part(failures),
    "fsdp2": Part(fsdp2, timed=True),
}
