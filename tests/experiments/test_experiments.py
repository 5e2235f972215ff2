"""Every experiment file parses, and trains two steps on the embedded data with the smallest networks."""

from pathlib import Path

import pytest
import yaml

from mambaseg.experiment import load_experiment, merge
from mambaseg.lightning_cli import build

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.yaml"))
SMALLEST = {
    "unet": {"channels": [4, 4, 4, 4, 4]},
    "mamba_unet": {"embed_dim": 8, "depths": [1, 1], "d_state": 2},
    "swin_unet": {"embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 3},
}
SHARED_DATA_FIELDS = {"labelled_patients", "supervision", "batch_labelled", "batch_unlabelled", "transform", "audit"}


def arms(path):
    """An experiment as it would be trained: itself, or each arm of a study."""
    config = load_experiment(path)
    study = config.pop("study", None)
    if study is None:
        return {path.stem: config}
    return {f"{path.stem}-{name}": merge(config, arm) for name, arm in study["arms"].items()}


def shrunk(config):
    """The same experiment on a small phantom with small networks."""
    given = config["data"].get("init_args", {})
    data = {key: value for key, value in given.items() if key in SHARED_DATA_FIELDS}
    data |= {"labelled_patients": 1, "batch_labelled": 2, "patients": 2, "held_out": 1, "frames": 1, "depth": 3}
    data |= {"size": [32, 32], "batch_unlabelled": min(given.get("batch_unlabelled", 4), 2)}
    if given.get("scribble_patients"):
        data |= {"patients": 3, "scribble_patients": 1, "batch_scribble": 2}
    config = merge(config, {"trainer": {"accelerator": "cpu", "max_steps": 2, "val_check_interval": 2}})
    config["trainer"]["log_every_n_steps"] = 1
    config["tracking"] = {"wandb": False, "overlays": 1}
    config["data"] = {"class_path": "mambaseg.datamodules.demo.DemoDataModule", "init_args": data}
    arguments = config["model"]["init_args"]
    arguments["inference"] = {"size": [32, 32]}
    for student in arguments["students"].values():
        student["options"] = SMALLEST[student["network"]]
    return config


CONFIGS = {name: (path, config) for path in EXPERIMENTS for name, config in arms(path).items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_steps_and_a_validation(name, tmp_path):
    path, config = CONFIGS[name]
    cli = build(shrunk(config), path, tmp_path, track=True)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step == 2
    assert {row.predictor for row in cli.model.last_scores} == set(cli.model.predictor_names)
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    assert (tmp_path / "scores_val" / "scores.csv").is_file()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_the_header_says_what_it_is_for_and_how_to_run_it(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0].startswith("# Purpose: ")
    assert f"# Command: make train EXP={path.stem}" in header
    assert any("arxiv.org" in line for line in header)


def test_every_file_is_valid_yaml():
    files = sorted((REPOSITORY / "experiments").rglob("*.yaml"))
    assert len(files) >= 6
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text()), dict)
