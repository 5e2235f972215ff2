"""``mambaseg prepare`` from arguments to table."""

import argparse
import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mambaseg.commands import prepare
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.errors import InputError
from tests.datamodules.layouts import make_scans, write_challenge, write_nifti, write_wsl_volumes
from tests.datamodules.range_server import serving


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    for name in ("MAMBASEG_ACDC_URL", "MAMBASEG_ACDC_SHA256"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAMBASEG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def server():
    with serving() as server:
        yield server


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([str(word) for word in words]))


def row(output: str, name: str) -> str:
    return next(line for line in output.splitlines() if f"│ {name} " in line)


def test_table_and_next_command(tmp_path, capsys):
    write_challenge(tmp_path / "source", make_scans())
    assert run("acdc", "--source", tmp_path / "source") == 0
    output = capsys.readouterr().out
    assert PreparedDataset(tmp_path / "data" / "acdc").name == "acdc"
    assert "6 cases" in row(output, "imported now")
    assert "nifti" in row(output, "source")
    assert "3 " in row(output, "patients")
    assert "6 with 27 slices" in row(output, "cases")
    assert "4-5 × 11-11 × 9-9" in row(output, "shapes")
    assert "all" in row(output, "spacing")
    assert "all" in row(output, "scribbles")
    assert "6 clip99" in row(output, "normalisation")
    assert "Next: make train EXP=semi_acdc" in output


def test_second_run_says_that_nothing_changed(tmp_path, capsys):
    write_wsl_volumes(tmp_path / "source", make_scans())
    run("acdc", "--source", tmp_path / "source", "--out", tmp_path / "out")
    capsys.readouterr()
    run("acdc", "--source", tmp_path / "source", "--out", tmp_path / "out")
    output = capsys.readouterr().out
    assert "0 cases" in row(output, "imported now")
    assert "6 cases" in row(output, "kept, unchanged")
    assert "distances in voxels only" in row(output, "spacing")
    assert "Nothing had changed" in output


def test_two_patients_with_one_image_are_pointed_out(tmp_path, capsys):
    scans = make_scans()
    scans[2].image = scans[0].image
    scans[2].label, scans[2].scribble = scans[0].label, scans[0].scribble
    write_wsl_volumes(tmp_path / "source", scans)
    run("acdc", "--source", tmp_path / "source")
    assert "patient001_frame01 and patient002_frame01 have the same image" in capsys.readouterr().out


def test_own_folder(tmp_path, capsys):
    scan = make_scans()[0]
    write_nifti(tmp_path / "mine" / "images" / "a.nii.gz", scan.image)
    words = ("folder", "--source", tmp_path / "mine", "--name", "mine", "--classes", "background,RV,Myo,LV")
    run(*words)
    output = capsys.readouterr().out
    assert PreparedDataset(tmp_path / "data" / "mine").case_ids() == ["a"]
    assert "none" in row(output, "masks")
    assert "every image counts as a patient of its own" in output


def test_masks_saved_as_0_and_255_are_pointed_out(tmp_path, capsys):
    scan = make_scans()[0]
    write_nifti(tmp_path / "mine" / "images" / "a.nii.gz", scan.image)
    write_nifti(tmp_path / "mine" / "labels" / "a.nii.gz", np.where(scan.label > 0, 255, 0).astype(np.uint8))
    run("folder", "--source", tmp_path / "mine", "--name", "mine", "--classes", "background,heart")
    output = " ".join(capsys.readouterr().out.split())
    assert "1 masks hold 0 and 255 alone (a). 255 means unknown" in output
    assert "an experiment of your own with data.init_args.root:" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["acdd"], "no data set 'acdd'. Did you mean 'acdc'"),
        (["acdc"], "--source is missing"),
        (["acdc", "--name", "x", "--source", "."], "acdc keeps its own name"),
        (["acdc", "--classes", "a,b", "--source", "."], "acdc has the classes background, RV"),
        (["folder", "--source", "."], "--classes is None"),
        (["folder", "--source", ".", "--classes", "a,a"], "--classes is 'a,a'"),
        (["acdc", "--source", ".", "--layout", "nift"], "Did you mean 'nifti'"),
        (["acdc", "--download"], r"--download needs --url \(or \$MAMBASEG_ACDC_URL\): this program knows no public"),
    ],
)
def test_bad_arguments(words, message):
    with pytest.raises(InputError, match=message):
        run(*words)


def test_download_shows_the_licence_then_imports(tmp_path, capsys, server):
    write_wsl_volumes(tmp_path / "published", make_scans())
    with zipfile.ZipFile(tmp_path / "acdc.zip", "w") as archive:
        for path in (tmp_path / "published").rglob("*.h5"):
            archive.write(path, path.relative_to(tmp_path / "published"))
    server.content = (tmp_path / "acdc.zip").read_bytes()
    server.breaks = [len(server.content) // 2]
    digest = hashlib.sha256(server.content).hexdigest()

    run("acdc", "--download", "--url", server.url)
    output = capsys.readouterr().out
    assert output.index("CC BY-NC-SA 4.0") < output.index("Unpacked to")
    assert "Bernard et al." in output
    assert f"give --sha256 {digest}" in output
    assert len(PreparedDataset(tmp_path / "data" / "acdc").case_ids()) == 6
    assert len(server.asked) == 2

    run("acdc", "--download", "--url", server.url)
    assert len(server.asked) == 2
    assert "is there already" in capsys.readouterr().out


def test_download_checks_the_checksum(tmp_path, server):
    with pytest.raises(InputError, match="sha256 of the download"):
        run("acdc", "--download", "--url", server.url, "--sha256", "0" * 64)
    assert not (tmp_path / "data" / "acdc_source").exists()


def test_light_imports():
    code = (
        "import sys, mambaseg.datamodules.splits, mambaseg.datamodules.storage, mambaseg.commands.prepare;"
        "print([name for name in ('torch', 'h5py', 'nibabel', 'rich', 'scipy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
