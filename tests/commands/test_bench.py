"""The benchmark of a training step: it does what training does, and its rows say what they mean."""

import argparse
import csv
import itertools
import json
import os
import subprocess

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from mambaseg.cli import main
from mambaseg.commands import bench as bench_command
from mambaseg.commands.bench import advice
from mambaseg.experiment import find_experiment, load_experiment
from mambaseg.lightning_cli import build
from mambaseg.networks.cost import build_on_meta, forward_cost
from mambaseg.peak_memory import PeakMemory
from mambaseg.reports.step_rows import Row
from mambaseg.step_benchmark import TrainingStep

CHANNELS = [4, 4, 4, 4, 4]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A co-training of two small U-Nets on the phantom, with a teacher."""
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "seed_everything: 7\n"
        "trainer: {accelerator: cpu, max_steps: 3, val_check_interval: 200, check_val_every_n_epoch: null,\n"
        "  num_sanity_val_steps: 0, use_distributed_sampler: false, gradient_clip_val: 0.5}\n"
        "tracking: {wandb: false}\n"
        "data:\n"
        "  class_path: mambaseg.datamodules.demo.DemoDataModule\n"
        "  init_args: {patients: 2, held_out: 1, frames: 1, depth: 2, size: [32, 32], labelled_patients: 1,\n"
        "    batch_labelled: 2, batch_unlabelled: 1}\n"
        "model:\n"
        "  class_path: mambaseg.methods.SemiMambaUNet\n"
        "  init_args:\n"
        "    inference: {size: [32, 32]}\n"
        "    cross: {teacher: ema, ema_decay: 0.5}\n"
        "    students:\n"
        f"      a: {{network: unet, options: {{channels: {CHANNELS}}}, schedule: {{name: constant}}}}\n"
        f"      b: {{network: unet, options: {{channels: {CHANNELS}}}, schedule: {{name: constant}}}}\n"
    )
    return path


def built(path, folder):
    return build(load_experiment(find_experiment(str(path))), path, folder, track=False)


def bench(path, *words):
    return main(["bench", "step", "--config", str(path), "--warmup", "1", "--steps", "2", *words])


def test_a_row_without_and_one_with_the_loader(tiny, tmp_path, capsys):
    files = tmp_path / "r.json", tmp_path / "r.csv"
    assert bench(tiny, "--json", str(files[0]), "--csv", str(files[1])) == 0
    assert bench(tiny, "--csv", str(files[1])) == 0
    bare, loader = json.loads(files[0].read_text())
    assert (bare["input"], loader["input"]) == ("bare", "loader")
    assert bare["batch"] == loader["batch"] == 3
    assert bare["pixels"] == 32 * 32
    assert bare["networks"] == "unet+unet"
    assert bare["img_per_s"] == pytest.approx(3 * bare["it_per_s"], rel=0.01)
    assert bare["step_ms"] == pytest.approx(1e3 / bare["it_per_s"], rel=0.01)
    assert bare["resident_gib"] > 0.1
    assert bare["reserved_gib"] is bare["mfu"] is None, "this is a CPU"
    assert loader["waiting"] > bare["waiting"]
    with files[1].open(newline="") as file:
        assert [row["input"] for row in csv.DictReader(file)] == ["bare", "loader"] * 2
    out = capsys.readouterr().out
    assert "resident GiB" in out
    assert "from the start of the process to the end of the first step" in out
    assert "Next: " in out


def test_one_row_a_size(tiny, tmp_path):
    path = tmp_path / "r.json"
    assert bench(tiny, "--sizes", "32", "64", "--json", str(path)) == 0
    assert [(row["input"], row["height"], row["pixels"]) for row in json.loads(path.read_text())] == [
        ("bare", 32, 1024),
        ("bare", 64, 4096),
    ]


def test_rows_are_kept_when_the_rest_is_cut_short(tiny, tmp_path, monkeypatch):
    whole = bench_command.measure

    def cut_short(*given):
        yield next(whole(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_command, "measure", cut_short)
    assert bench(tiny, "--csv", str(tmp_path / "r.csv")) == 130
    with (tmp_path / "r.csv").open(newline="") as file:
        assert [row["input"] for row in csv.DictReader(file)] == ["bare"]


def test_operators_are_named(tiny, capsys):
    assert bench(tiny, "--profile") == 0
    out = capsys.readouterr().out
    assert "aten::convolution_backward" in out
    assert "Next: make train" in out or "loading costs" in out


def test_a_study_is_measured_by_its_arm(tiny, capsys):
    tiny.write_text(tiny.read_text() + "study: {seeds: [1], arms: {one: {}, two: {data: {init_args: {workers: 0}}}}}\n")
    assert bench(tiny) == 0
    assert "tiny/two" in capsys.readouterr().out
    assert bench(tiny, "--arm", "on") == 2
    assert "Did you mean 'one'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config", "demoo"], "Did you mean 'demo'"),
        (["--config", "demo", "--steps", "0"], "--steps"),
        (["--config", "weak_acdc", "--arm", "semi"], "no study"),
        (["--config", "demo", "--set", "trainer.max_stpes=3"], "trainer.max_stpes"),
    ],
)
def test_wrong_arguments_get_one_line(capsys, repository, monkeypatch, words, told):
    monkeypatch.chdir(repository)
    assert main(["bench", "step", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def train_and_bench(tiny, folder, scalers=(None, None)):
    """Three steps of ``fit``, and three of the benchmark on the loader's batches: their models."""
    trained, measured = built(tiny, folder / "a"), built(tiny, folder / "b")
    for cli, scaler in zip((trained, measured), scalers, strict=True):
        if scaler is not None:  # Lightning replaces 16-mixed by bf16-mixed on a CPU, so the plugin is put in by hand
            cli.trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trained.trainer.fit(trained.model, datamodule=trained.datamodule)
    step = TrainingStep(measured)
    for batch in itertools.islice(step.batches(fresh=True), 3):
        step(batch)
    return trained.model, step.module


def unlike(expected, got):
    """Names of the weights, statistics and teacher's weights that differ."""
    return [name for name, value in expected.state_dict().items() if not torch.equal(value, got.state_dict()[name])]


def test_the_step_is_the_one_of_training(tiny, tmp_path):
    trained, measured = train_and_bench(tiny, tmp_path)
    assert any(name.startswith("teacher.") for name in trained.state_dict())
    assert unlike(trained, measured) == []


def test_the_step_scales_the_loss_as_training_does(tiny, tmp_path):
    """With 16-mixed, where gradients must be unscaled before they are clipped."""
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2) for _ in range(2)]
    trained, measured = train_and_bench(tiny, tmp_path, scalers)
    assert unlike(trained, measured) == []
    assert scalers[0].state_dict() == scalers[1].state_dict()
    assert scalers[1].get_scale() == 2.0**11
    plain, _ = train_and_bench(tiny, tmp_path)
    assert unlike(plain, measured)


def test_a_step_that_overflows_is_left_out(tiny, tmp_path):
    step = TrainingStep(built(tiny, tmp_path))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    step.trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    before = [p.clone() for p in step.module.students.parameters()]
    step(next(step.batches(fresh=False)))
    assert all(map(torch.equal, step.module.students.parameters(), before))
    assert scaler.get_scale() == 2.0**125


def test_bare_repeats_one_batch_and_the_loader_does_not(tiny, tmp_path):
    step = TrainingStep(built(tiny, tmp_path))
    for fresh in (False, True):
        first, second = itertools.islice(step.batches(fresh), 2)
        assert torch.equal(first["image"], second["image"]) is not fresh


def test_measurements_end_after_steps_or_after_seconds(tiny, tmp_path):
    step = TrainingStep(built(tiny, tmp_path))
    batches = step.batches(fresh=False)
    window = step.run(batches, steps=2, seconds=60)
    assert (window.steps, window.images) == (2, 6)
    assert 0 < window.waiting_seconds < window.seconds
    assert step.run(batches, steps=10**6, seconds=1e-9).steps == 1


def test_flops_of_a_step_are_those_of_the_networks(tiny, tmp_path):
    step = TrainingStep(built(tiny, tmp_path))
    cost = forward_cost(build_on_meta("unet", 1, 4, channels=CHANNELS), (32, 32))
    assert step.flops_per_image == 2 * (6 * cost.macs + 3 * cost.scan)


def test_peak_memory_starts_anew():
    big = torch.ones(1 << 26)
    with_big = PeakMemory(torch.device("cpu")).gib()
    del big
    assert PeakMemory(torch.device("cpu")).gib() < with_big - 0.2


@pytest.mark.parametrize(
    ("loader_ms", "profile", "told"),
    [(20, False, "workers"), (10.1, False, "--profile"), (10.1, True, "make train EXP=e")],
)
def test_advice(loader_ms, profile, told):
    rows = [Row(name, 1, (8, 8), ms, 0.0, None, None) for name, ms in (("bare", 10.0), ("loader", loader_ms))]
    assert told in advice(rows, argparse.Namespace(sizes=None, profile=profile, config="e"))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "benchmarks/run.py"),
        (["EXP=demo", "ARGS=--steps 3"], "-m mambaseg bench step --config demo --steps 3"),
    ],
)
def test_make_bench_measures_all_or_one_experiment(repository, words, command):
    # The suite itself may run under make, which hands its variables on.
    ours = ("PATH", "HOME")
    environment = {key: value for key, value in os.environ.items() if key in ours}
    command_line = ["make", "-n", "bench", *words]
    done = subprocess.run(command_line, cwd=repository, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1].strip().endswith(command)


@pytest.mark.gpu
def test_on_a_gpu_graphs_run_and_memory_is_what_is_reserved(tiny, tmp_path, capsys):
    on_gpu = "trainer.accelerator=gpu"
    path = tmp_path / "r.json"
    assert bench(tiny, "--set", on_gpu, "--profile", "--json", str(path)) == 0
    rows = json.loads(path.read_text())
    assert all(row["reserved_gib"] > 0 and row["resident_gib"] is None for row in rows)
    assert "aten::convolution_backward" in capsys.readouterr().out
    step = TrainingStep(build(load_experiment(tiny, [on_gpu]), tiny, tmp_path, track=False))
    step(next(step.batches(fresh=False)))
    assert step.module._graphs is not None
    memory = PeakMemory(step.device)
    step(next(step.batches(fresh=False)))
    assert memory.gib() * 2**30 == torch.cuda.max_memory_reserved() > torch.cuda.max_memory_allocated()
