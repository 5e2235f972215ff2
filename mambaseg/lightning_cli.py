"""From a merged experiment to a trainer, a method and a datamodule, through LightningCLI's typed checks."""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from mambaseg.allowed_code import restrict_class_paths
from mambaseg.companions import LeaveAtOnce, end_together
from mambaseg.config_errors import explain, unknown_choice, with_arguments
from mambaseg.datamodules.base import SegmentationDataModule
from mambaseg.datamodules.splits import load_split
from mambaseg.errors import InputError
from mambaseg.experiment import Config, dump_config, parse_yaml
from mambaseg.io.checkpoint_io import SafeCheckpointIO
from mambaseg.methods import CoTrainingModule
from mambaseg.runs import LAST, PREVIOUS, SPLIT
from mambaseg.sharding import NAME as SHARDED
from mambaseg.sharding import offer_sharding
from mambaseg.tracking import TrackingConfig, tracking_callbacks, tracking_loggers

RESOLVED = "config.yaml"
"""Name of the fully resolved configuration in a run's folder."""
CHOOSE_PATIENTS = frozenset(
    {"data", "class_path", "split", "split_seed", "validation_patients", "patients", "held_out"},
)
"""Last words of the options that choose which patients take part."""


class TrainingCLI(LightningCLI):
    """LightningCLI with our links, tracking and messages.

    Args:
        run_dir: Folder of the run.
        track: Attach the loggers and callbacks of ``tracking``; off for evaluation.
        **kwargs: See ``LightningCLI``.
    """

    model: CoTrainingModule
    datamodule: SegmentationDataModule

    def __init__(self, run_dir: Path, track: bool, **kwargs: Any) -> None:
        self.run_dir = run_dir
        self.track = track
        super().__init__(
            CoTrainingModule,
            SegmentationDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=1337,
            run=False,
            parser_kwargs={"exit_on_error": False},
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the ``tracking`` section and link what the data knows to the method."""
        parser.add_class_arguments(TrackingConfig, "tracking")
        for name in ("num_classes", "in_channels", "class_names"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with the run's loggers and callbacks.

        Raises:
            InputError: Lightning refuses a value, or one that does not fit to another or to this machine.
        """
        self._check_name("strategy", ["auto", SHARDED, *StrategyRegistry.available_strategies()])
        self._check_name("accelerator", ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())])
        kwargs["default_root_dir"] = str(self.run_dir)
        kwargs["logger"] = False
        kwargs["callbacks"] = [*self._from_config("callbacks"), LeaveAtOnce()]
        if self.track:
            tracking = self._get(self.config_init, "tracking")
            has_validation = bool(self.datamodule.split.val)
            kwargs["logger"] = tracking_loggers(tracking, self.run_dir)
            kwargs["callbacks"] += tracking_callbacks(tracking, self.run_dir, has_validation)
        kwargs["val_check_interval"] = self._validation_interval()
        kwargs["plugins"] = [*self._from_config("plugins"), SafeCheckpointIO({LAST: PREVIOUS})]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ModuleNotFoundError) as error:  # Lightning's refusals are of all three types
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        if isinstance(trainer.strategy, DDPStrategy):
            # Gradients that lie where they were averaged are not copied back, which takes a kernel for each parameter.
            trainer.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
        return trainer

    def _check_name(self, field: str, known: Sequence[str]) -> None:
        given = self._get(self.config_init, f"trainer.{field}")
        # Lightning takes a strategy's name in capitals too.
        if isinstance(given, str) and (given.lower() if field == "strategy" else given) not in known:
            raise InputError(unknown_choice(f"trainer.{field}", given, known))

    def _validation_interval(self) -> int | float | None:
        """Return the interval of validations in batches; a shorter run is validated once, at its end."""
        interval, steps, accumulated = (
            self._get(self.config_init, f"trainer.{field}")
            for field in ("val_check_interval", "max_steps", "accumulate_grad_batches")
        )
        if isinstance(interval, int) and steps > 0:
            return min(interval, int(steps * accumulated))
        return cast(float | None, interval)

    def _from_config(self, field: str) -> list[Any]:
        """Return what the experiment itself gives the trainer in a field that may hold one thing or several."""
        given = self._get(self.config_init, f"trainer.{field}")
        return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def build(config: Config, origin: Path, run_dir: Path, arguments: Sequence[str] = (), *, track: bool) -> TrainingCLI:
    """Check an experiment and build its parts; nothing is trained or downloaded.

    Args:
        config: A merged experiment, see ``load_experiment``.
        origin: The file that it came from, for messages.
        run_dir: Folder of the run; the resolved configuration is written there once everything is built.
        arguments: Further ``--section.key=value`` arguments that win over the file.
        track: Attach loggers and callbacks.

    Raises:
        InputError: A key is misspelt, a value has the wrong type, or a part refuses its values.
    """
    quieten_lightning()
    restrict_class_paths()
    offer_sharding()
    end_together()
    config = {**config, "trainer": with_precision(config.get("trainer") or {})}
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
            merged = Path(folder) / "experiment.yaml"
            dump_config(config, merged)
            cli = TrainingCLI(run_dir, track, args=["--config", str(merged), *arguments])
    except (ArgumentError, argparse.ArgumentTypeError, MisconfigurationException) as error:
        raise InputError(explain(str(error), origin, with_arguments(config, arguments))) from error
    except ValueError as error:
        # jsonargparse reports what a constructor refused as a failed match of types, with the refusal as its cause.
        refusal = error if isinstance(error, InputError) else error.__cause__
        if not isinstance(refusal, InputError):
            raise
        raise InputError(f"{origin}: {refusal}") from error
    if track and cli.trainer.is_global_zero:
        resolved = parse_yaml(cli.parser.dump(cli.config, skip_link_targets=True))
        dump_config(resolved, run_dir / RESOLVED)
        for logger in cli.trainer.loggers:
            logger.log_hyperparams(resolved)
    return cli


def use_split_of(run_dir: Path, cli: TrainingCLI, arguments: Sequence[str]) -> None:
    """Let a run that goes on, or is scored, have the patients that it began with, unless arguments choose others.

    Args:
        run_dir: The run's folder.
        cli: The built experiment.
        arguments: Options as on the command line, and settings as ``--set`` has them.
    """
    path = run_dir / SPLIT
    keys = [word.lstrip("-").partition("=")[0].split(".") for word in arguments]
    chosen = any(key[0] == "data" and key[-1] in CHOOSE_PATIENTS for key in keys)
    if path.is_file() and not chosen:
        cli.datamodule.keep_split(load_split(path))


def quieten_lightning() -> None:
    """Drop Lightning's lines on devices, seeds and products (the run card has the facts) and misleading advice."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "callbacks used to create the checkpoint need to be provided",  # evaluation needs none of them
        "exists and is not empty",  # a resumed run's folder of checkpoints
        "does not have many workers",  # whole cases come from memory maps at once
        r"isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own call, with torch 2.11
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")


def with_precision(trainer: Config) -> Config:
    """Return the ``trainer`` section with ``precision: auto`` resolved.

    It is bf16 on a GPU that has it and fp32 elsewhere: fp16 overflows in the scans.
    """
    resolved = dict(trainer)
    if trainer.get("precision", "auto") == "auto":
        on_gpu = trainer.get("accelerator", "auto") in {"auto", "gpu", "cuda"} and torch.cuda.is_available()
        resolved["precision"] = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    return resolved
