"""Prediction: a run's folder and a scan are all that it takes."""

import shutil

import nibabel
import numpy as np
import pytest
import torch
import yaml

from mambaseg.cli import main
from mambaseg.trained_model import load_trained
from tests.datamodules.layouts import AFFINE, write_nifti

CLASSES = "background,cavity,wall"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a prepared dataset of three patients and three classes; the dataset is gone."""
    folder = tmp_path_factory.mktemp("predict")
    generator = np.random.default_rng(0)
    for patient in range(10):
        image = generator.random((2, 20, 24), dtype=np.float32)
        write_nifti(folder / "source" / "images" / f"p{patient}.nii.gz", image)
        label = generator.integers(0, 3, image.shape).astype(np.uint8)
        write_nifti(folder / "source" / "labels" / f"p{patient}.nii.gz", label)
    words = ["--source", str(folder / "source"), "--out", str(folder / "data"), "--classes", CLASSES]
    words += ["--normalise", "minmax"]
    assert main(["prepare", "folder", *words]) == 0
    network = {"network": "unet", "options": {"channels": [4, 4, 4, 4, 4]}}
    experiment = {
        "trainer": {"accelerator": "cpu", "max_steps": 1, "val_check_interval": 1, "check_val_every_n_epoch": None},
        "tracking": {"wandb": False},
        "data": {
            "class_path": "mambaseg.datamodules.prepared.PreparedDataModule",
            "init_args": {"root": str(folder / "data"), "size": [32, 32], "workers": 0, "batch_unlabelled": 0},
        },
        "model": {
            "class_path": "mambaseg.methods.Supervised",
            "init_args": {"inference": {"size": [32, 32]}, "students": {"a": network, "b": network}},
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--run-dir", str(folder / "run")]) == 0
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "source")
    return folder / "run"


def test_the_data_is_not_needed(trained, tmp_path, capsys):
    image = np.random.default_rng(1).random((3, 21, 33), dtype=np.float32)
    write_nifti(tmp_path / "scan.nii.gz", image)
    words = ["--input", str(tmp_path / "scan.nii.gz"), "--output", str(tmp_path / "out")]
    assert main(["predict", "--run", str(trained), *words]) == 0
    printed = capsys.readouterr().out
    assert "masks by 'ensemble'" in printed
    assert "1 cavity, 2 wall" in printed
    assert "scaled by minmax" in printed  # as the training data were
    mask = nibabel.load(tmp_path / "out" / "scan_seg.nii.gz")
    assert mask.shape == (33, 21, 3)
    assert np.allclose(mask.affine, AFFINE)


def test_the_weights_are_the_checkpoints(trained):
    checkpoint = trained / "checkpoints" / "best.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    model = load_trained(trained, checkpoint)
    assert not model.training
    assert model.class_names == ("background", "cavity", "wall")
    assert {name: value.sum().item() for name, value in model.state_dict().items()} == {
        name: value.sum().item() for name, value in saved.items()
    }


def refused(trained, tmp_path, capsys, checkpoint):
    write_nifti(tmp_path / "scan.nii.gz", np.random.default_rng(1).random((3, 21, 33), dtype=np.float32))
    words = ["--input", str(tmp_path / "scan.nii.gz"), "--output", str(tmp_path / "out")]
    assert main(["predict", "--run", str(trained), "--checkpoint", str(checkpoint), *words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda saved: saved.pop("task"), ["'task' is missing", "--resume"]),
        (lambda saved: saved["task"].update(num_classes=5), ["do not fit", "config.yaml"]),
        (lambda saved: saved["state_dict"].clear(), ["do not fit"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(trained, tmp_path, capsys, spoil, words):
    saved = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    spoil(saved)
    torch.save(saved, tmp_path / "spoilt.ckpt")
    error = refused(trained, tmp_path, capsys, tmp_path / "spoilt.ckpt")
    for word in ["spoilt.ckpt", *words]:
        assert word in error
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_named(trained, tmp_path, capsys):
    (tmp_path / "torn.ckpt").write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    error = refused(trained, tmp_path, capsys, tmp_path / "torn.ckpt")
    assert "torn.ckpt: cannot be read" in error
    assert error.count("\n") == 1
