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


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (2, 3), (0, 4)])
def test_a_mask_lies_where_its_scan_says_in_the_scans_own_words(trained, tmp_path, codes):
    array = np.random.default_rng(1).normal(100, 20, (9, 8, 3)).astype(np.int16)
    image = nibabel.Nifti1Image(array, None)
    image.set_qform(AFFINE, int(codes[0]))
    image.set_sform(AFFINE @ np.diag([1, 1, 1, 1]) if codes[1] else None, int(codes[1]))
    image.header.set_xyzt_units("micron", "msec")
    image.header["cal_max"], image.header["descrip"] = 300, b"a scan"
    nibabel.save(image, tmp_path / "scan.nii.gz")
    assert main(["predict", "--run", str(trained), "--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    scan, mask = nibabel.load(tmp_path / "scan.nii.gz"), nibabel.load(tmp_path / "out" / "scan_seg.nii.gz")
    assert [int(mask.header[name]) for name in ("qform_code", "sform_code")] == list(codes)
    assert np.allclose(mask.affine, scan.affine)
    assert mask.header.get_xyzt_units() == ("micron", "msec")
    assert mask.get_data_dtype() == np.uint8
    assert float(mask.header["cal_max"]) == 0
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def test_masks_are_not_taken_for_scans(trained, tmp_path, capsys):
    image = np.random.default_rng(1).random((2, 9, 8), dtype=np.float32)
    for name in ("a.nii.gz", "b_seg.nii.gz"):
        write_nifti(tmp_path / name, image)
    words = ["predict", "--run", str(trained), "--input", str(tmp_path), "--output", str(tmp_path)]
    assert main(words) == main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.nii.gz",
        "a_seg.nii.gz",
        "b_seg.nii.gz",
        "b_seg_seg.nii.gz",
    ]
    assert "Left out, as masks of scans beside them: a_seg.nii.gz, b_seg_seg.nii.gz" in capsys.readouterr().out


def test_two_scans_for_one_mask_are_refused(trained, tmp_path, capsys):
    image = np.random.default_rng(1).random((2, 9, 8), dtype=np.float32)
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, image)
    assert main(["predict", "--run", str(trained), "--input", str(tmp_path)]) == 2
    assert "would give one mask" in capsys.readouterr().err


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
