"""A training run from its start to its end: what it reached, what stopped it, and what to do next."""

import os
import shlex
from pathlib import Path

from rich.console import Console

from mambaseg.callbacks.resume_point import ResumePoint
from mambaseg.callbacks.stop_signals import StoppedError
from mambaseg.errors import TrainingFault
from mambaseg.faults import explain_fault
from mambaseg.lightning_cli import TrainingCLI
from mambaseg.metrics.summary import summarize
from mambaseg.reports.tables import summary_table
from mambaseg.runs import BEST, CHECKPOINTS, STUDY_VARIABLE


def fit_and_summarize(cli: TrainingCLI, experiment: str, run_dir: Path, checkpoint: Path | None) -> int:
    """Train, then print the last validation scores and the next commands.

    Args:
        cli: The built experiment.
        experiment: Its name.
        run_dir: The run's folder.
        checkpoint: Where to go on from, or None for a fresh start.

    Returns:
        0, or 128 + the signal that stopped the training.

    Raises:
        TrainingFault: The training was ended by something outside its code, or its end could not be saved.
    """
    trainer = cli.trainer
    again = f"Go on with: make train EXP={os.environ.get(STUDY_VARIABLE) or experiment} RESUME=auto"
    console = Console(soft_wrap=True)
    point = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ResumePoint)), None)
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except StoppedError as stop:
        if trainer.is_global_zero:
            kept = _kept(point, checkpoint)
            console.print(f"Stopped by {stop.signal.name} at step {stop.step}; {kept}. {again}")
        return int(stop.code or 0)
    except TrainingFault as fault:
        raise TrainingFault(f"{fault} {sentence(_kept(point, checkpoint))}. {again}") from fault
    except (RuntimeError, MemoryError) as error:
        explained = explain_fault(error)
        if explained is None:
            raise
        raise TrainingFault(f"{explained} {sentence(_kept(point, checkpoint))}. {again}") from error
    if not trainer.is_global_zero:
        return 0
    if point is not None and point.failure is not None:
        raise TrainingFault(
            f"The training is done, but {point.path} could not be written: {point.failure}. "
            f"{sentence(_kept(point, checkpoint))}: make room, then repeat what is missing. {again}"
        )
    if cli.model.last_scores:
        console.print(summary_table(summarize(cli.model.last_scores), title=f"{experiment}: last validation"))
    console.print(f"Run folder: {run_dir}")
    choice = "" if (run_dir / CHECKPOINTS / BEST).is_file() else " CHECKPOINT=last"
    run = shlex.quote(str(run_dir))
    console.print(
        f"Next: make eval RUN={run}{choice}   all scores, distances included\n"
        f"      make report RUN={run}   curves, pictures and the case table in one HTML file\n"
        f"      make predict RUN={run} INPUT=scan.nii.gz"
    )
    return 0


def _kept(point: ResumePoint | None, checkpoint: Path | None) -> str:
    """Say what a resumed run will start from."""
    if point is not None and point.saved_step is not None:
        return f"everything up to step {point.saved_step} is in {point.path}"
    return f"what was resumed is still in {checkpoint}" if checkpoint is not None else "no checkpoint was due yet"


def sentence(text: str) -> str:
    """Return ``text`` with a capital letter in front and the rest, file names above all, as it is."""
    return text[:1].upper() + text[1:]
