"""The command line: quick help, and one clear message for every wrong input."""

import errno
import subprocess
import sys
import time

import pytest

from mambaseg.cli import COMMANDS, main
from mambaseg.errors import InputError


def call(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "mambaseg", *words], capture_output=True, text=True, cwd=cwd, check=False
    )


def message(capsys, *words):
    """The status and the whole of standard error of a call in this process."""
    status = main(list(words))
    return status, capsys.readouterr().err


def test_every_command_has_help_without_heavy_imports():
    code = (
        "import sys\nfrom mambaseg.cli import main\n"
        "try:\n    main([sys.argv[1], '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('HEAVY', [name for name in ('torch', 'lightning', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    for command in COMMANDS:
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
        assert "usage: mambaseg" in done.stdout
        assert "HEAVY []" in done.stdout, command


def test_help_starts_at_once():
    start = time.monotonic()
    assert "demo" in call("--help").stdout
    assert time.monotonic() - start < 5  # a quarter of a second on an idle machine; never the seconds of torch


def test_a_file_that_may_not_be_touched_gets_one_line(capsys, monkeypatch, tmp_path):
    def refuse(arguments):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "report.html"))

    monkeypatch.setattr("mambaseg.commands.report.run", refuse)
    status, error = message(capsys, "report", "x")
    assert status == 2
    assert error == (
        f"mambaseg report: error: {tmp_path / 'report.html'}: Permission denied. "
        "Look at its permissions, or choose another place.\n"
    )


def test_an_unknown_command_lists_the_known_ones():
    done = call("trian")
    assert done.returncode == 2
    assert "fit" in done.stderr


def test_an_unknown_experiment_gives_close_names(capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    status, error = message(capsys, "fit", "--config", "demoo")
    assert status == 2
    assert "Did you mean 'demo'" in error
    assert error.count("\n") == 1


def test_options_are_listed_and_nothing_is_trained(repository, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "demo", "--print-options"])
    assert end.value.code == 0
    assert "--trainer.max_steps" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An experiment file on the phantom, as text that a test may spoil."""
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "trainer: {accelerator: cpu, max_steps: 1, val_check_interval: 200, check_val_every_n_epoch: null,\n"
        "  num_sanity_val_steps: 0, use_distributed_sampler: false}\n"
        "tracking: {wandb: false}\n"
        "data:\n"
        "  class_path: mambaseg.datamodules.demo.DemoDataModule\n"
        "  init_args: {patients: 2, held_out: 1, frames: 1, depth: 2, size: [32, 32], labelled_patients: 1}\n"
        "model:\n"
        "  class_path: mambaseg.methods.Supervised\n"
        "  init_args:\n"
        "    inference: {size: [32, 32]}\n"
        "    students: {a: {network: unet, options: {channels: [4, 4, 4, 4, 4]}}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_steps: 1", "max_stpes: 1", ["max_stpes", "tiny.yaml"]),
        ("max_steps: 1", "max_steps: many", ["max_steps", "many"]),
        ("network: unet", "network: unett", ["no network 'unett'", "Did you mean 'unet'"]),
        ("channels:", "chanels:", ["no option 'chanels'", "'channels'"]),
        ("[4, 4, 4, 4, 4]", "[4, 4]", ["channels", "five values"]),
        ("depth: 2", "depth: 2, transform: publishd", ["publishd", "published"]),
        ("labelled_patients: 1", "labelled_patients: 9", ["9"]),
        ("methods.Supervised", "methods.Supervisd", ["Supervisd"]),
        ("methods.Supervised", "methods.SemiMambaUNet", ["two or more students"]),
        ("DemoDataModule", "DemoDataModul", ["DemoDataModul"]),
        ("a: {network", "ensemble: {network", ["ensemble"]),
    ],
)
def test_wrong_experiments_get_one_message(capsys, tiny, old, new, words):
    text = tiny.read_text()
    assert old in text
    tiny.write_text(text.replace(old, new))
    status, error = message(capsys, "fit", "--config", str(tiny))
    assert status == 2, error
    for word in words:
        assert word in error
    assert "Traceback" not in error
    assert len(error.splitlines()) < 6, error


def test_a_wrong_arm_of_a_study_is_refused_once_before_any_training(capfd, tiny, tmp_path):
    study = "study:\n  seeds: [1]\n  arms:\n    good: {}\n    bad: {trainer: {max_stpes: 1}}\n"
    tiny.write_text(tiny.read_text() + study)
    assert main(["fit", "--config", str(tiny)]) == 2
    printed = capfd.readouterr()
    assert printed.err.count("max_stpes") == printed.err.count("error:") == 1
    assert "arm 'bad'" in printed.err
    assert "trainings" not in printed.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("step 1\nmambaseg fit: error: x.yaml: is wrong\n", "x.yaml: is wrong"),
        ("step 1\nTraceback\nMemoryError\n", "{log} ends with:\nstep 1\nTraceback\nMemoryError"),
    ],
)
def test_why_a_training_of_a_study_stopped(tmp_path, log, expected):
    from mambaseg.study import reason

    path = tmp_path / "job.log"
    path.write_text(log)
    assert reason(path) == expected.format(log=path)


def test_a_scan_backend_that_cannot_run_gets_one_line(capsys, tiny, monkeypatch):
    options = "{network: mamba_unet, options: {embed_dim: 8, depths: [1, 1], d_state: 2}}"
    tiny.write_text(tiny.read_text().replace("{network: unet, options: {channels: [4, 4, 4, 4, 4]}}", options))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for backend, word in (("triton", "cannot serve a cpu tensor"), ("gpu", "reference, cpu, triton")):
        monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", backend)
        status, error = message(capsys, "fit", "--config", str(tiny))
        assert status == 2
        assert error.count("\n") == 1, error
        assert error.startswith("mambaseg fit: error:")
        assert word in error


def test_missing_data_says_how_to_get_it(capsys, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("MAMBASEG_DATA", str(tmp_path))
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    status, error = message(capsys, "fit", "--config", "semi_acdc_released", "--set", "trainer.accelerator=cpu")
    assert status == 2
    assert "make data DATASET=acdc SOURCE=" in error
    assert str(tmp_path) in error


def test_a_missing_split_file_is_named(capsys, tiny, tmp_path, monkeypatch):
    from mambaseg.datamodules.splits import load_split

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.json"):
        load_split("nowhere.json")
    text = tiny.read_text()
    start, end = text.index("data:"), text.index("model:")
    data = "data:\n  class_path: mambaseg.datamodules.acdc.ACDCDataModule\n  init_args: {split: nowhere.json}\n"
    tiny.write_text(text[:start] + data + text[end:])
    status, error = message(capsys, "fit", "--config", str(tiny))
    assert status == 2
    assert "nowhere.json" in error or "make data" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["validate", "--run", "nothing"], "no run 'nothing'"),
        (["test", "--run", "nothing"], "no run 'nothing'"),
        (["predict", "--run", "nothing", "--input", "missing.nii.gz"], "missing.nii.gz"),
        (["report", "nothing"], "no run 'nothing'"),
        (["fit", "--config", "demo", "--resume", "nowhere"], "--resume"),
    ],
)
def test_wrong_arguments_of_other_commands(capsys, repository, monkeypatch, tmp_path, words, expected):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path))
    status, error = message(capsys, *words)
    assert status == 2
    assert expected in error


def test_a_run_can_be_scored_reported_and_used(capsys, tiny, tmp_path):
    run = tmp_path / "run"
    assert main(["fit", "--config", str(tiny), "--run-dir", str(run)]) == 0
    assert "Next: make eval" in capsys.readouterr().out
    assert main(["validate", "--run", str(run), "--checkpoint", "last"]) == 0
    assert main(["test", "--run", str(run), "--checkpoint", "last"]) == 0
    out = capsys.readouterr().out
    assert "HD95 mm" in out
    assert (run / "scores_test" / "scores.json").is_file()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    _predict(run, tmp_path)


def _predict(run, tmp_path):
    import nibabel
    import numpy as np

    affine = np.array([[-1.5, 0.1, 0, 7], [0, 1.4, 0, -3], [0, 0, 8.0, 2], [0, 0, 0, 1]])
    scan = np.random.default_rng(0).integers(0, 900, (21, 33, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(scan, affine), tmp_path / "scan.nii.gz")
    words = ["--input", str(tmp_path / "scan.nii.gz"), "--output", str(tmp_path / "out"), "--checkpoint", "last"]
    assert main(["predict", "--run", str(run), *words]) == 0
    mask = nibabel.load(tmp_path / "out" / "scan_seg.nii.gz")
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, affine)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3}
