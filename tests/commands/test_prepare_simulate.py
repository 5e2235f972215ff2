"""``mambaseg prepare --simulate``: annotations drawn from the masks at import."""

import numpy as np
import pytest
from PIL import Image

from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.errors import InputError
from tests.commands.test_prepare import row, run
from tests.datamodules.layouts import make_scans, write_nifti, write_wsl_volumes


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBASEG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")


def test_scribbles_are_simulated_beside_the_data_set_not_over_it(tmp_path, capsys):
    write_wsl_volumes(tmp_path / "source", make_scans())
    run("acdc", "--source", tmp_path / "source")
    given = PreparedDataset(tmp_path / "data" / "acdc")
    before = {case_id: given.sha256(case_id, "scribble") for case_id in given.case_ids()}
    capsys.readouterr()
    run("acdc", "--source", tmp_path / "source", "--simulate", "scribble", "--simulate-set", "coverage=[0.2]")
    output = capsys.readouterr().out
    made = PreparedDataset(tmp_path / "data" / "acdc_scribble")
    assert {case_id: given.sha256(case_id, "scribble") for case_id in given.case_ids()} == before
    assert all(made.sha256(case_id, "scribble") != before[case_id] for case_id in made.case_ids())
    assert "Scribbles(" in made.details("patient001_frame01")["simulated_scribble"]
    assert "seed 0" in made.details("patient001_frame01")["simulated_scribble"]
    assert "background " in row(output, "scribbled")
    assert "0 pixels unlike the mask" in row(output, "scribbled")
    assert "data.init_args.root: " in output
    with Image.open(made.root / "scribble_preview.png") as picture:
        assert picture.size == (1024, 512)  # six cases, four in a line
        assert np.asarray(picture).max() == 235


def test_the_same_simulation_is_kept_and_another_replaces_it(tmp_path, capsys):
    write_wsl_volumes(tmp_path / "source", make_scans())
    words = ("acdc", "--source", tmp_path / "source", "--simulate", "points")
    run(*words)
    first = PreparedDataset(tmp_path / "data" / "acdc_points")
    checksum = first.sha256("patient001_frame01", "scribble")
    capsys.readouterr()
    run(*words)
    assert "0 cases" in row(capsys.readouterr().out, "imported now")
    run(*words, "--simulate-seed", 3)
    again = PreparedDataset(tmp_path / "data" / "acdc_points")
    assert "6 cases" in row(capsys.readouterr().out, "imported now")
    assert again.sha256("patient001_frame01", "scribble") != checksum


def test_own_data_without_scribbles_gets_some(tmp_path, capsys):
    scan = make_scans()[0]
    write_nifti(tmp_path / "mine" / "images" / "a.nii.gz", scan.image)
    write_nifti(tmp_path / "mine" / "labels" / "a.nii.gz", scan.label)
    write_nifti(tmp_path / "mine" / "images" / "b.nii.gz", scan.image * 0.9)
    words = ("folder", "--source", tmp_path / "mine", "--name", "mine", "--classes", "background,RV,Myo,LV")
    run(*words, "--simulate", "slices", "--simulate-set", "count=1")
    dataset = PreparedDataset(tmp_path / "data" / "mine_slices")
    assert dataset.has("a", "scribble")
    assert not dataset.has("b", "scribble")
    assert (np.asarray(dataset.array("a", "scribble")) != 255).all(axis=(1, 2)).sum() == 1
    assert "1 of 2" in row(capsys.readouterr().out, "scribbles")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--simulate", "scribbles"], "Did you mean 'scribble'"),
        (["--simulate", "points", "--simulate-set", "clicks"], "write it as KEY=VALUE"),
        (["--simulate", "points", "--simulate-set", "dots=2"], "does not take the options"),
        (["--simulate-seed", "1"], "--simulate is missing"),
    ],
)
def test_bad_arguments(words, message):
    with pytest.raises(InputError, match=message):
        run("acdc", "--source", ".", *words)
