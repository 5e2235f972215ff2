"""The end of a training run: what it reached, and what to do next."""

from pathlib import Path

from rich.console import Console

from mambaseg.lightning_cli import TrainingCLI
from mambaseg.metrics.summary import summarize
from mambaseg.reports.tables import summary_table
from mambaseg.runs import CHECKPOINTS, LAST


def fit_and_summarize(cli: TrainingCLI, experiment: str, run_dir: Path, checkpoint: Path | None) -> int:
    """Train, then print the last validation scores and the next commands.

    Args:
        cli: The built experiment.
        experiment: Its name.
        run_dir: The run's folder.
        checkpoint: Where to go on from, or None for a fresh start.

    Returns:
        0, or 1 when the training was interrupted.
    """
    trainer = cli.trainer
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(run_dir / CHECKPOINTS / LAST)
    if not trainer.is_global_zero:
        return int(trainer.interrupted)
    console = Console(soft_wrap=True)
    if cli.model.last_scores:
        console.print(summary_table(summarize(cli.model.last_scores), title=f"{experiment}: last validation"))
    console.print(f"Run folder: {run_dir}")
    if trainer.interrupted:
        console.print(f"Interrupted at step {trainer.global_step}. Go on with: make train EXP={experiment} RESUME=auto")
        return 1
    choice = "" if (run_dir / CHECKPOINTS / "best.ckpt").is_file() else " CHECKPOINT=last"
    console.print(
        f"Next: make eval RUN={run_dir}{choice}   all scores, distances included\n"
        f"      make report RUN={run_dir}   curves, pictures and the case table in one HTML file\n"
        f"      make predict RUN={run_dir} INPUT=scan.nii.gz"
    )
    return 0
