"""Resuming from any step, and from what is left when checkpoints are damaged."""

import os
import shutil

import pytest
import yaml

from mambaseg.callbacks.resume_point import ResumePoint
from mambaseg.cli import main
from mambaseg.errors import InputError
from mambaseg.io.checkpoint_file import damage
from mambaseg.lightning_cli import build
from mambaseg.runs import check_writable, new_run_dir, newest_run, note_newest, resume_run
from tests.methods.test_training import experiment
from tests.reliability.runs import contents, differences

STEPS = 11
# validation every 4 steps, epochs of 5: an ordinary step, a validation, an epoch's end, the step after it
MOMENTS = (3, 4, 5, 8)


def train(folder, checkpoint=None, every=1):
    config = experiment(STEPS)
    config["tracking"] |= {"checkpoint_every": every, "overlays": 1}
    cli = build(config, folder / "t.yaml", folder, track=True)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """The folder of a whole run, beside it what was there right after each of some steps."""
    root = tmp_path_factory.mktemp("runs")
    save = ResumePoint._save

    def save_and_copy(self, trainer):
        save(self, trainer)
        if trainer.global_step in MOMENTS:
            shutil.copytree(root / "whole", root / f"step{trainer.global_step}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumePoint, "_save", save_and_copy)
        train(root / "whole")
    return root


@pytest.mark.parametrize("step", MOMENTS)
def test_resuming_from_any_step_gives_the_same_run(snapshots, step):
    run = snapshots / f"step{step}"
    train(run, run / "checkpoints" / "last.ckpt", every=100)
    assert list(differences(contents(snapshots / "whole"), contents(run))) == []


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, "job7-seed3"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, "job7-seed3"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "2"}, "job7.2-seed3"),
        ({"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "my run/2"}, "my_run_2-seed3"),
    ],
)
def test_processes_of_one_launch_share_a_folder(tmp_path, monkeypatch, environment, name):
    for variable in ("MAMBASEG_RUN_DIR", "SLURM_JOB_ID", "SLURM_NTASKS", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    first = new_run_dir("exp", 3)
    check_writable(first, "")  # the other processes see the folder and take it all the same
    assert first == new_run_dir("exp", 3) == tmp_path / "exp" / name


def test_processes_without_a_common_name_are_refused(monkeypatch):
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InputError, match="--rdzv-id=NAME"):
        new_run_dir("exp", 3)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(snapshots, tmp_path, caplog, spoil):
    run = tmp_path / "run"
    shutil.copytree(snapshots / "whole", run)
    last, previous = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "previous.ckpt"
    assert resume_run("any", str(run)) == (run, last)
    spoil(last)
    assert damage(last)
    assert resume_run("any", str(run)) == (run, previous)
    assert str(last) in caplog.text
    assert "previous.ckpt" in caplog.text
    with pytest.raises(InputError, match=r"last\.ckpt"):
        resume_run("any", str(last))
    if spoil is truncate:
        train(run, previous, every=100)
        assert list(differences(contents(snapshots / "whole"), contents(run))) == []


def test_the_best_checkpoint_is_the_last_resort(snapshots, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(snapshots / "step8", run)
    for name in ("last", "previous"):
        truncate(run / "checkpoints" / f"{name}.ckpt")
    _, checkpoint = resume_run("any", str(run))
    assert checkpoint.name == "best.ckpt"
    train(run, checkpoint, every=100)
    whole, resumed = contents(snapshots / "whole")["last.ckpt"], contents(run)["last.ckpt"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert list(differences(whole[part], resumed[part])) == []
    for name in ("last", "best"):
        truncate(run / "checkpoints" / f"{name}.ckpt")
    with pytest.raises(InputError, match="No whole checkpoint"):
        resume_run("any", str(run))


def test_auto_takes_the_run_started_last_whatever_the_clock_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    assert resume_run("exp", "auto") == (None, None)
    for name, day in (("later", 200), ("earlier", 100)):
        checkpoint = tmp_path / "exp" / name / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"")
        os.utime(checkpoint, (day, day))
    assert newest_run("exp").name == "later"
    note_newest("exp", tmp_path / "exp" / "earlier")  # started after the clock was set back
    assert newest_run("exp").name == "earlier"
    note_newest("exp", tmp_path / "elsewhere" / "earlier")
    assert newest_run("exp").name == "earlier"
    (tmp_path / "exp" / ".newest").write_text("../../etc\n")
    assert newest_run("exp").name == "later"


@pytest.mark.parametrize("words", [["--set", "data.init_args.labelled_patients=99"], ["--trainer.max_stepz=3"]])
def test_a_start_that_was_refused_hides_no_run(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(experiment(1)))
    for name in ("first", "killed at once"):
        (tmp_path / "runs" / "exp" / name).mkdir(parents=True)
        note_newest("exp", tmp_path / "runs" / "exp" / name)
    assert main(["fit", "--config", str(tmp_path / "exp.yaml"), *words]) == 2
    assert newest_run("exp").name == "killed at once", "it may be started over; nothing else is the run meant"
    monkeypatch.delenv("MAMBASEG_RUN_DIR")
    assert main(["fit", "--config", str(tmp_path / "exp.yaml")]) == 0
    assert newest_run("exp").name not in ("first", "killed at once")


def test_a_run_killed_before_its_first_checkpoint_starts_over_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    (tmp_path / "exp" / "a").mkdir(parents=True)
    note_newest("exp", tmp_path / "exp" / "a")
    assert resume_run("exp", "auto") == (tmp_path / "exp" / "a", None)
    monkeypatch.setenv("MAMBASEG_RUN_DIR", str(tmp_path / "job7"))  # as a SLURM script sets it for all its processes
    assert resume_run("exp", "auto") == (tmp_path / "job7", None)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "run", "")
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "file"))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    assert main(["fit", "--config", "supervised_acdc"]) == 2
    error = capsys.readouterr().err
    assert "--run-dir" in error
    assert error.count("\n") == 1
