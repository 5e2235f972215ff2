"""Checkpoints and configurations from strangers run no code."""

import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from mambaseg.callbacks.overlays import _safe_name
from mambaseg.cli import main
from mambaseg.commands.predict import stem
from mambaseg.datamodules import download
from mambaseg.errors import InputError
from mambaseg.io.checkpoint_io import SafeCheckpointIO
from mambaseg.lightning_cli import build
from mambaseg.trained_model import load_trained
from tests.methods.test_training import experiment


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def hostile(tmp_path):
    """A module that leaves a mark when imported, beside it an experiment."""
    (tmp_path / "strange_package.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w')\nfrom lightning.pytorch import Callback\n"
        "class Thing(Callback):\n    pass\n"
    )
    return experiment(1)


def places():
    callback = {"class_path": "strange_package.Thing"}
    function = {"class_path": "lightning.pytorch.callbacks.LambdaCallback"}
    yield {"trainer": {"callbacks": [callback]}}
    yield {"trainer": {"callbacks": callback}}
    yield {"trainer": {"profiler": "strange_package.Thing"}}
    yield {"model": {"class_path": "strange_package.Thing"}}
    yield {"data": {"class_path": "strange_package.Thing"}}
    yield {"trainer": {"callbacks": [function | {"init_args": {"on_fit_start": "strange_package.Thing"}}]}}
    yield {"trainer": {"callbacks": [function | {"init_args": {"on_fit_start": "os.system"}}]}}


@pytest.mark.parametrize("place", list(places()))
def test_a_configuration_imports_nothing_from_elsewhere(hostile, tmp_path, monkeypatch, place):
    monkeypatch.syspath_prepend(str(tmp_path))
    for section, settings in place.items():
        hostile[section] = hostile[section] | settings
    with pytest.raises(InputError):
        build(hostile, tmp_path / "x.yaml", tmp_path / "run", track=False)
    assert not (tmp_path / "imported").exists()


def test_arguments_import_nothing_either_unless_told(hostile, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MAMBASEG_ALLOW_CODE", "")
    monkeypatch.setenv("MAMBASEG_RUN_DIR", "")
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(hostile))
    words = ["fit", "--config", str(path), "--run-dir", str(tmp_path / "run")]
    words += ["--trainer.callbacks+=strange_package.Thing"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "--allow-code" in error
    assert not (tmp_path / "imported").exists()
    assert main([*words, "--allow-code", "strange_package"]) == 0
    assert (tmp_path / "imported").exists()
    monkeypatch.setenv("MAMBASEG_ALLOW_CODE", "")
    assert main(words) == 2, "allowed for one command only"


def spoiled(saved, path, mark):
    """Write a checkpoint whose pickle makes a folder, with all checksums in order."""
    torch.save(saved | {"extra": Bomb(mark)}, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_checkpoint_runs_no_code(tmp_path):
    path, mark = tmp_path / "last.ckpt", tmp_path / "mark"
    spoiled({"state_dict": {}, "task": {}}, path, mark)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_trained(tmp_path, path)
    with pytest.raises(pickle.UnpicklingError):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not mark.exists()


def test_the_configuration_of_a_strange_run_is_not_trusted_either(hostile, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"state_dict": {}, "task": {}}, tmp_path / "last.ckpt")
    hostile["model"]["class_path"] = "strange_package.Thing"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(hostile))
    with pytest.raises(InputError):
        load_trained(tmp_path, tmp_path / "last.ckpt")
    assert not (tmp_path / "imported").exists()


def test_an_archive_may_fill_neither_the_disk_nor_the_file_table(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**6))
        archive.writestr("one", b"1")
    monkeypatch.setattr(download, "MOST_MEMBERS", 1)
    with pytest.raises(InputError, match="more than 1 members"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    with pytest.raises(InputError, match="100000 bytes that are free"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b", "..", "nul\0byte"])
def test_names_from_data_stay_in_the_output_folder(tmp_path, name):
    written = (tmp_path / f"step000001_{_safe_name(name)}.png").resolve()
    assert written.parent == tmp_path
    assert "\0" not in written.name
    mask = tmp_path / f"{stem(Path(name.replace(chr(0), '') + '.nii.gz'))}_seg.nii.gz"
    assert mask.resolve().parent == tmp_path
