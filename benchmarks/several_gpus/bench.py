"""What the parts of the benchmark of several GPUs share: experiments, trainings, rows."""

import argparse
import asyncio
import functools
import json
from pathlib import Path
from typing import Any

from several_gpus.facts import facts
from several_gpus.launcher import Launcher, Run
from torch import nn

from mambaseg.commands.bench import choose_arm
from mambaseg.experiment import Config, dump_config, find_experiment, load_experiment, merge, students_of
from mambaseg.io.csv_record import append_rows
from mambaseg.networks import create_network

ABOUT = ("device", "torch", "triton", "code", "date")
FIGURES = ("it_per_s", "img_per_s", "efficiency", "peak_gib", "waiting", "difference", "seconds", "detail")
COLUMNS = ("part", "experiment", "strategy", "devices", "precision", "batch", *FIGURES, "losses", *ABOUT)
BATCH = {"batch_labelled": 8, "batch_scribble": 0, "batch_unlabelled": 8}
"""Of the datamodule, where an experiment does not say."""
NEVER = 10**9
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}
"""Without it cuDNN multiplies fp32 numbers with a tenth of their bits, differently for each size of batch."""
CALM: dict[str, dict[str, Any]] = {
    "unet": {"dropout": [0.0] * 5},
    "mamba_unet": {"drop_path_rate": 0.0},
    "swin_unet": {"drop_path_rate": 0.0},
}
"""Options without random numbers, which each process draws for itself."""


class Bench:
    """What the parts share: experiments, runs, rows.

    Args:
        arguments: Of the command line.
        launcher: Starts the runs.
        folder: Where they go.
        counts: Numbers of GPUs to measure with.
    """

    def __init__(self, arguments: argparse.Namespace, launcher: Launcher, folder: Path, counts: list[int]) -> None:
        self.arguments = arguments
        self.launcher = launcher
        self.folder = folder
        self.counts = counts
        self.on_gpu = arguments.accelerator == "gpu"
        self._exact: dict[str, asyncio.Task[Run]] = {}

    @functools.cached_property
    def first(self) -> str:
        """The experiment of all parts but ``weak``."""
        return str(self.arguments.experiments[0])

    def experiment(self, name: str) -> Config:
        """Return an experiment, of a study the last arm, without checkpoints, validation and W&B."""
        config, _ = choose_arm(load_experiment(find_experiment(name), self.arguments.set), name, None)
        quiet = {"wandb": False, "overlays": 0, "checkpoint_every": NEVER}
        trainer = {"accelerator": self.arguments.accelerator, "limit_val_batches": 0, "log_every_n_steps": 50}
        return merge(config, {"trainer": trainer, "tracking": quiet})

    def exact_experiment(self, name: str) -> Config:
        """Return an experiment whose loss over a batch is the mean of those over its parts, in fp32.

        Cross-entropy alone, of as many labelled pixels in each process; no random numbers; batch norm over all
        processes. PyTorch has that on GPUs only, so elsewhere students with batch norm are left out.
        """
        config = self.experiment(name)
        students = {}
        for own, student in students_of(config).items():
            student = merge(student, {"options": CALM.get(student["network"], {})})
            network = create_network(student["network"], 1, 4, **student["options"])
            if self.on_gpu or not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
                students[own] = student
        plain = {"ce_weight": 1.0, "dice_weight": 0.0, "students": students}
        config["model"] = {
            "class_path": "mambaseg.methods.Supervised",
            "init_args": plain | {"inference": config["model"]["init_args"]["inference"]},
        }
        return merge(config, {"trainer": {"precision": "32-true", "sync_batchnorm": self.on_gpu}})

    def fit(self, name: str, config: Config, devices: int, *callbacks: Any, **settings: Any) -> Run:
        """Return a training that is still to be started.

        Args:
            name: Of its folder.
            config: The experiment.
            devices: How many processes.
            *callbacks: Of the module ``record``, by name and arguments.
            **settings: What to ``--set``, with two underscores for each dot.
        """
        folder = self.folder / name
        path = self.folder / f"{name}.yaml"
        dump_config(config, path)
        listed = [{"class_path": f"benchmarks.several_gpus.record.{kind}", "init_args": own} for kind, own in callbacks]
        settings |= {"trainer__devices": devices, "trainer__callbacks": listed}
        words = ["fit", "--config", str(path), "--run-dir", str(folder), "--allow-code", "benchmarks"]
        for key, value in settings.items():
            words += ["--set", f"{key.replace('__', '.')}={json.dumps(value)}"]
        return Run(folder, words, devices)

    def timed(self, name: str, config: Config, devices: int, **settings: Any) -> Run:
        """Return a training that is held after its warm-up."""
        held = ("ProcessRecord", {"hold_after": self.arguments.warmup})
        return self.fit(name, config, devices, held, trainer__max_steps=self.arguments.steps, **settings)

    async def exact_run(self, devices: int, again: bool = False) -> Run:
        """Return the training of ``exact_experiment`` by so many processes, ended; it is done once."""
        name = f"equal-{devices}{'-again' if again else ''}"
        if name not in self._exact:
            steps = self.arguments.equal_steps
            config = self.exact_experiment(self.first)
            run = self.fit(name, config, devices, ("ProcessRecord", {}), trainer__max_steps=steps)
            run.environment = EXACT
            self._exact[name] = asyncio.create_task(self.launcher.finish(run))
        return await self._exact[name]

    def keep(self, part: str, experiment: str, run: Run, **values: Any) -> None:
        """Append a row, and show it."""
        row = {"part": part, "experiment": experiment, "devices": run.devices, "seconds": round(run.seconds, 1)}
        row |= {"strategy": "ddp" if run.devices > 1 else ""} | facts(run.folder) | values
        row["detail"] = "; ".join(filter(None, [values.get("detail", ""), run.problem]))
        append_rows(self.arguments.csv, [row], COLUMNS)
        shown = {key: row[key] for key in COLUMNS[: COLUMNS.index("losses")] if row.get(key) not in (None, "")}
        print(", ".join(f"{key} {value}" for key, value in shown.items()), flush=True)


def batch(config: Config, devices: int, part: int = 1) -> dict[str, int]:
    """Return the settings by which each of so many processes gets an experiment's batch, or a part of it."""
    given = config["data"]["init_args"]
    shares = {name: -(-given.get(name, default) // part) for name, default in BATCH.items()}
    return {f"data__init_args__{name}": devices * share for name, share in shares.items()}
