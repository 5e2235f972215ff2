"""Studies: the comparison that they end with."""

import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from mambaseg import study
from mambaseg.cli import main
from mambaseg.errors import InputError
from mambaseg.io.checkpoint_file import write_checkpoint
from mambaseg.runs import alone_in
from mambaseg.study import Job, Outcome, comparison_markdown, comparison_table
from tests.methods.test_training import experiment


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
    study.train_jobs("exp", jobs, 1, [], Console(quiet=True))
    assert started == [["--resume", str(jobs[1].folder)], ["--run-dir", str(jobs[2].folder)]]
    assert all(job.done.exists() for job in jobs)


ARMS = {"a": {}, "b": {}}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"arms": {1: {}, 2: {}}, "seeds": [1]}, "1 names a folder"),
        ({"arms": {"../x": {}}, "seeds": [1]}, "'../x' names a folder"),
        ({"arms": {"a/b": {}}, "seeds": [1]}, "names a folder"),
        ({"arms": ARMS, "seeds": [1, 1]}, "seeds must differ"),
    ],
)
def test_names_that_make_no_folders_and_seeds_given_twice_are_refused(section, words):
    with pytest.raises(InputError, match=words):
        study.check_study("exp", section)


def test_arms_with_dots_have_files_of_their_own(tmp_path):
    jobs = [Job(arm, 1, tmp_path / f"{arm}-seed1") for arm in ("lr0.1", "lr0.2")]
    files = {path for job in jobs for path in (job.log, job.done, job.config)}
    assert len(files) == 6
    assert jobs[0].config.name == "lr0.1-seed1.yaml"


def test_the_table_has_the_last_validation_whatever_was_scored_since(tmp_path):
    job = Job("a", 1, tmp_path / "a-seed1")
    job.folder.mkdir()
    rows = [{"step": 3, "val/u/dice": 0.9, "val/ensemble/dice": 0.8}, {"step": 7, "val/u/dice": 0.5, "val/dice": 0.1}]
    rows[1] |= {"val/ensemble/dice": 0.6, "val/u/dice_with_background": 0.7}
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(outcome.predictor, outcome.dice) for outcome in study.read_outcomes([job])]
    assert found == [("u", 0.5), ("ensemble", 0.6)]


def test_other_arguments_are_refused_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "train_jobs", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    run = functools.partial(study.train_and_compare, "exp", {"x": 1}, ARMS, [1], 1, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(["--trainer.max_steps=2"])
    with pytest.raises(InputError, match=r"had the arguments .*max_steps=2.*now they are"):
        run([])
    with pytest.raises(KeyboardInterrupt):
        run(["--trainer.max_steps=2"])


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    with alone_in(tmp_path / "run"):
        code = "import sys, pathlib; from mambaseg.runs import alone_in\nwith alone_in(pathlib.Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "is being trained in by another process" in done.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_a_data_worker_that_outlives_its_training_does_not_keep_the_folder(tmp_path):
    answer, told = os.pipe()
    with alone_in(tmp_path / "run"), (tmp_path / "run" / ".lock").open() as lock:
        if not os.fork():
            inherited = [name for name in os.listdir("/proc/self/fd") if int(name) != lock.fileno()]
            held = [name for name in inherited if os.path.realpath(f"/proc/self/fd/{name}") == lock.name]
            os.write(told, f"{len(held)}".encode())
            os._exit(0)
        assert os.read(answer, 9) == b"0"
    os.wait()


def test_resume_auto_means_the_folder_that_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    path = tmp_path / "exp.yaml"
    path.write_text(yaml.safe_dump(experiment(2) | {"tracking": {"wandb": False, "checkpoint_every": 1}}))
    words = ["fit", "--config", str(path), "--resume", "auto"]
    assert main(words) == 0
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    assert main([*words, "--run-dir", str(tmp_path / "own"), "--set", "trainer.max_steps=1"]) == 0
    assert main([*words, "--run-dir", str(tmp_path / "own")]) == 0
    text = (tmp_path / "own" / "metrics.jsonl").read_text()
    starts = [row["step"] for row in map(json.loads, text.splitlines()) if row.get("event") == "train_start"]
    assert starts == [0, 1]
