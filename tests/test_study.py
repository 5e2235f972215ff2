"""Studies: the comparison that they end with."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from mambaseg import study
from mambaseg.io.checkpoint_file import write_checkpoint
from mambaseg.study import Job, Outcome, comparison_markdown, comparison_table


def outcomes():
    for seed, dice in ((1, 0.5), (2, 0.7)):
        for arm, gain in (("plain", 0.0), ("semi", 0.1)):
            for predictor, offset in (("a", -0.1), ("b", -0.2), ("ensemble", 0.0)):
                yield Outcome(Job(arm, seed, Path("x")), predictor, dice + gain + offset)


def test_the_comparison_says_which_row_is_the_headline():
    rows = list(outcomes())
    text = comparison_markdown("demo", rows, ["plain", "semi"])
    assert "| ensemble | 0.600 ± 0.141 | 0.700 ± 0.141 | +0.100 (+0.100 to +0.100) |" in text
    assert text.endswith("headline, val/dice: ensemble.\n")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table("demo", rows, ["plain", "semi"]))
    assert "headline, val/dice: ensemble" in console.export_text()


def test_a_resumed_study_trains_what_is_not_done(tmp_path, monkeypatch):
    started = []

    class Training(subprocess.Popen):
        def __init__(self, command, **options):
            started.append(command[command.index("--config") + 2 :])
            super().__init__([sys.executable, "-c", ""])

    jobs = [study.Job("a", seed, tmp_path / f"a-seed{seed}") for seed in (1, 2, 3)]
    jobs[0].done.write_text("")
    checkpoint = jobs[1].folder / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    write_checkpoint({}, checkpoint)
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(Popen=Training, STDOUT=subprocess.STDOUT))
    study.train_jobs(jobs, 1, [], Console(quiet=True))
    assert started == [["--resume", str(jobs[1].folder)], ["--run-dir", str(jobs[2].folder)]]
    assert all(job.done.exists() for job in jobs)
