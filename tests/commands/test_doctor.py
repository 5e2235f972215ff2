"""The doctor: what it says of kernels and data, and when it says that something is wrong."""

import json
import math

import numpy as np
import pytest

from mambaseg.cli import main
from mambaseg.commands import doctor
from tests.datamodules.examination.planted import hearts, only, write
from tests.datamodules.layouts import write_nifti


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """Run the doctor in an empty folder; return its status and what it printed, with single spaces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAMBASEG_DATA", raising=False)
    monkeypatch.delenv("MAMBASEG_SCAN_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("COLUMNS", "300")

    def run():
        status = main(["doctor"])
        return status, " ".join(capsys.readouterr().out.split())

    return run


def test_a_sound_machine(examine):
    status, text = examine()
    assert status == 0
    assert "plain PyTorch" in text
    assert "selective scan right" in text
    assert "acdc not prepared" in text
    assert "make data DATASET=acdc SOURCE=" in text
    assert "torch 2." in text
    assert text.endswith("Next: make train EXP=demo")


@pytest.mark.parametrize("error", [0.2, math.nan])
def test_a_wrong_kernel_is_not_passed_over(examine, monkeypatch, error):
    monkeypatch.setattr("mambaseg.kernels.self_check.operator_errors", lambda device: {"selective scan": error})
    status, text = examine()
    assert status == 1
    assert "selective scan WRONG" in text
    assert "Do not train a Mamba network here" in text
    assert "make train" not in text


def test_a_backend_that_cannot_run_is_explained(examine, monkeypatch):
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "triton")
    status, text = examine()
    assert status == 1
    assert "all operators cannot run" in text
    assert "cannot serve a cpu tensor" in text
    assert "unset it to let the device decide" in text


def test_prepared_data_is_summed_up(examine, tmp_path, capsys):
    for patient in range(3):
        image = np.random.default_rng(patient).random((2, 9, 8), dtype=np.float32)
        write_nifti(tmp_path / "source" / "images" / f"p{patient}.nii.gz", image)
    write_nifti(tmp_path / "source" / "labels" / "p1.nii.gz", np.ones((2, 9, 8), np.uint8))
    words = ["--source", "source", "--name", "mine", "--classes", "background,[b]tumour"]
    assert main(["prepare", "folder", *words]) == 0
    capsys.readouterr()
    (tmp_path / "data" / "torn").mkdir()
    (tmp_path / "data" / "torn" / "manifest.json").write_text("{")
    _, text = examine()
    assert "mine ready: 3 scans of 3 patients, 1 with masks, 0 with scribbles; classes background, [b]tumour" in text
    assert "torn CANNOT BE READ" in text


def test_data_of_which_a_file_is_gone(tmp_path, monkeypatch):
    image = np.random.default_rng(0).random((2, 9, 8), dtype=np.float32)
    write_nifti(tmp_path / "source" / "images" / "p.nii.gz", image)
    words = ["--source", str(tmp_path / "source"), "--out", str(tmp_path / "data"), "--classes", "background,tumour"]
    assert main(["prepare", "folder", *words]) == 0
    next((tmp_path / "data").rglob("*.npy")).unlink()
    assert doctor.prepared_state(tmp_path / "data").startswith("CANNOT BE READ")


def test_data_are_examined(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    cases = hearts()
    clean = write(cases, tmp_path / "clean")
    assert main(["doctor", "--data", str(clean)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "phantom: 6 scans of 6 patients" in text
    assert "No defects." in text

    only(cases).arrays["image"][0, 0, 0] = np.nan
    torn = write(cases, tmp_path / "torn")
    assert main(["doctor", "--data", str(torn), "--json", str(tmp_path / "found.json")]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "images are numbers DEFECT phantom003_frame01: 1 voxels are NaN or infinite Repair these files" in text
    assert "1 of 16 checks found defects" in text
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sound"] is False
    assert [r["name"] for r in found["results"] if r["findings"]] == ["images are numbers"]


def test_a_split_with_a_leak_is_found(tmp_path, capsys):
    root = write(hearts(), tmp_path / "clean")
    split = {"name": "mine", "dataset": "phantom", "train": ["phantom001"], "val": ["phantom001"], "test": []}
    (tmp_path / "split.json").write_text(json.dumps(split))
    assert main(["doctor", "--data", str(root), "--split", str(tmp_path / "split.json")]) == 1
    assert "DEFECT" in capsys.readouterr().out
    assert main(["doctor", "--split", str(tmp_path / "split.json")]) == 2
    assert "--data is missing" in capsys.readouterr().err
