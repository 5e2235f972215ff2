"""A run's networks, rebuilt from its folder alone: no data, no trainer."""

import argparse
import pickle
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentError, ArgumentParser

from mambaseg.allowed_code import restrict_class_paths
from mambaseg.config_errors import explain
from mambaseg.errors import InputError
from mambaseg.experiment import read_mapping, without_weights
from mambaseg.io.checkpoint_file import damage
from mambaseg.lightning_cli import RESOLVED
from mambaseg.methods import CoTrainingModule
from mambaseg.methods.cotraining import NORMALISATION, TASK


def load_trained(run: Path, checkpoint: Path) -> CoTrainingModule:
    """Rebuild the method of a run and load a checkpoint into it.

    The architecture comes from the run's ``config.yaml``; what the data had decided, the classes and the channels, from
    the checkpoint.

    Args:
        run: The run's folder.
        checkpoint: One of its checkpoints.

    Returns:
        The method on the CPU, in evaluation mode.

    Raises:
        InputError: A file cannot be read, or the checkpoint does not fit the configuration.
    """
    saved = read_checkpoint(checkpoint)
    section = without_weights(read_mapping(run / RESOLVED)).get("model")
    if not isinstance(section, dict) or "class_path" not in section:
        raise InputError(f"{run / RESOLVED}: field 'model' has no class_path. Give the folder of a training.")
    section = {**section, "init_args": {**(section.get("init_args") or {}), **saved[TASK]}}
    restrict_class_paths()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CoTrainingModule, "model")
    try:
        built = parser.instantiate_classes(parser.parse_object({"model": section}))
    except (ArgumentError, argparse.ArgumentTypeError) as error:
        raise InputError(explain(str(error), run / RESOLVED, {"model": section})) from error
    model = cast(CoTrainingModule, built.model)
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise InputError(
            f"{checkpoint}: its weights do not fit {run / RESOLVED} ({str(error).splitlines()[0]}). "
            "Give a checkpoint of this run."
        ) from error
    model.normalisation = saved.get(NORMALISATION)
    return model.eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are unpacked, so that no code in it can run.

    Raises:
        InputError: The file is damaged, or no checkpoint of a ``CoTrainingModule``.
    """
    wrong = damage(path)
    if wrong is not None:
        raise InputError(f"{path}: cannot be read as a checkpoint: {wrong}. Take another one of the run.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read as a checkpoint ({str(error).splitlines()[0]}).") from error
    missing = {"state_dict", TASK} - set(saved if isinstance(saved, dict) else ())
    if missing:
        raise InputError(
            f"{path}: field {', '.join(sorted(missing))!r} is missing, so an earlier version or another program wrote "
            "it. Resume its run for a step: `mambaseg fit --config EXP --resume RUN` writes a whole one."
        )
    return cast(dict[str, Any], saved)
