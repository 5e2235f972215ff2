"""A run keeps its patients: it is scored and resumed with those that it began with, whatever became of the data."""

import json

import numpy as np
import pytest
import yaml

from mambaseg.cli import main
from mambaseg.reports.tables import read_scores
from tests.datamodules.layouts import write_nifti

OLD, NEW = [f"p{i:02d}" for i in range(12)], ["p03b", "q1", "a0", "zz", "m7"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    prepare(tmp_path, OLD)
    network = {"network": "unet", "options": {"channels": [4, 4, 4, 4, 4]}, "schedule": {"name": "constant"}}
    experiment = {
        "trainer": {"accelerator": "cpu", "max_steps": 1, "val_check_interval": 1, "check_val_every_n_epoch": None},
        "tracking": {"wandb": False, "checkpoint_every": 1},
        "data": {
            "class_path": "mambaseg.datamodules.prepared.PreparedDataModule",
            "init_args": {"root": str(tmp_path / "data"), "size": [32, 32], "workers": 0, "batch_unlabelled": 0},
        },
        "model": {
            "class_path": "mambaseg.methods.Supervised",
            "init_args": {"inference": {"size": [32, 32]}, "students": {"a": network}},
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def prepare(folder, names):
    generator = np.random.default_rng(len(names))
    for name in names:
        shape = (2, 20, 24)
        write_nifti(folder / "source" / "images" / f"{name}.nii.gz", generator.random(shape, dtype=np.float32))
        write_nifti(folder / "source" / "labels" / f"{name}.nii.gz", generator.integers(0, 2, shape).astype(np.uint8))
    words = ["--source", str(folder / "source"), "--out", str(folder / "data"), "--classes", "background,thing"]
    assert main(["prepare", "folder", *words]) == 0


def scored(run, part):
    return {row.case_id for row in read_scores(run / f"scores_{part}" / "scores.json")}


def test_patients_who_came_later_change_no_runs_parts(mine):
    config, run = str(mine / "tiny.yaml"), mine / "run"
    assert main(["fit", "--config", config, "--run-dir", str(run)]) == 0
    split = json.loads((run / "split.json").read_text())
    prepare(mine, NEW)
    for command, part in (("validate", "val"), ("test", "test")):
        assert main([command, "--run", str(run)]) == 0
        assert scored(run, part) == set(split[part])
    more = ["--set", "trainer.max_steps=2"]
    assert main(["fit", "--config", config, "--resume", str(run), *more]) == 0
    assert json.loads((run / "split.json").read_text()) == split
    assert main(["fit", "--config", config, "--run-dir", str(mine / "anew")]) == 0
    assert json.loads((mine / "anew" / "split.json").read_text()) != split, "the new patients take part"


def test_other_options_of_the_data_change_no_patients_and_a_refused_resume_nothing(mine, capsys):
    config, run = str(mine / "tiny.yaml"), mine / "run"
    assert main(["fit", "--config", config, "--run-dir", str(run)]) == 0
    split = json.loads((run / "split.json").read_text())
    prepare(mine, NEW)
    (mine / "data").rename(mine / "moved")
    moved = f"--data.init_args.root={mine / 'moved'}"
    assert main(["test", "--run", str(run), moved]) == 0
    assert scored(run, "test") == set(split["test"])
    more = ["--set", "trainer.max_steps=2", moved]
    assert main(["fit", "--config", config, "--resume", str(run), *more, "--data.split_seed=4"]) == 2
    assert "pools" in capsys.readouterr().err
    assert json.loads((run / "split.json").read_text()) == split
    assert main(["fit", "--config", config, "--resume", str(run), *more]) == 0
    assert json.loads((run / "split.json").read_text()) == split


def test_a_split_on_the_command_line_is_taken(mine):
    run, own = mine / "run", {"name": "own", "dataset": "data", "train": OLD[:9], "val": OLD[9:], "test": []}
    assert main(["fit", "--config", str(mine / "tiny.yaml"), "--run-dir", str(run)]) == 0
    own["dataset"] = json.loads((run / "split.json").read_text())["dataset"]
    (mine / "own.json").write_text(json.dumps(own))
    assert main(["validate", "--run", str(run), f"--data.split={mine / 'own.json'}"]) == 0
    assert scored(run, "val") == set(OLD[9:])
