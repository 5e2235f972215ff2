"""The plot of time and memory over the size of the image."""

import csv
import importlib.util
import subprocess
import sys

import pytest


@pytest.fixture
def scaling(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    spec = importlib.util.spec_from_file_location("scaling", repository / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(network, pixels, step_ms, device="new", reserved="2"):
    named = {"networks": network, "pixels": pixels, "step_ms": step_ms, "device": device, "reserved_gib": reserved}
    return {**named, "precision": "bf16-mixed", "batch": 4, "resident_gib": ""}


def test_only_the_newest_rows_of_one_device_are_drawn(scaling, tmp_path):
    rows = [
        row("mamba_unet", 4096, 99, device="old"),
        row("mamba_unet", 4096, 50),
        row("unet+mamba_unet", 4096, 77),
        row("mamba_unet", 16384, 40, reserved=""),
        row("swin_unet", 4096, 30),
        row("mamba_unet", 4096, 10),
    ]
    with (tmp_path / "r.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    chosen = scaling.read(tmp_path / "r.csv")
    times, memory = (scaling.curves(chosen, columns) for columns in scaling.PANELS.values())
    assert times == {"mamba_unet": [(0.004096, 10.0), (0.016384, 40.0)], "swin_unet": [(0.004096, 30.0)]}
    assert memory == {"mamba_unet": [(0.004096, 2.0)], "swin_unet": [(0.004096, 2.0)]}
    scaling.draw(chosen, tmp_path / "images" / "scaling.png")
    assert (tmp_path / "images" / "scaling.png").stat().st_size > 5000


def test_its_experiment_can_be_built_with_both_networks(scaling, repository, monkeypatch, tmp_path):
    from mambaseg.experiment import load_experiment
    from mambaseg.lightning_cli import build

    monkeypatch.chdir(repository)
    path = repository / "benchmarks" / "scaling.yaml"
    for network in ("mamba_unet", "swin_unet"):
        overrides = [f"model.init_args.students.student.network={network}", "tracking.wandb=false"]
        cli = build(load_experiment(path, overrides), path, tmp_path, track=False)
        assert cli.model.student_configs["student"].network == network


def test_a_plain_vit_is_timed_like_the_networks(repository, tmp_path):
    words = ["--config", str(repository / "benchmarks" / "scaling.yaml"), "--sizes", "32", "--steps", "1"]
    words += [
        "--warmup",
        "1",
        "--set",
        "model.init_args.students.student.network=plain_vit",
        "--csv",
        str(tmp_path / "r.csv"),
    ]
    command = [sys.executable, str(repository / "benchmarks" / "plain_vit.py"), *words]
    subprocess.run(command, check=True, cwd=repository, timeout=120)
    assert "plain_vit" in (tmp_path / "r.csv").read_text()
