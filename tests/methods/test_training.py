"""Whole trainings on the phantom: resume in mid-epoch, and two processes."""

import contextlib
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from mambaseg.callbacks.nonfinite_report import describe_nonfinite
from mambaseg.errors import InputError
from mambaseg.lightning_cli import build
from mambaseg.methods.components.optimizers import StudentConfig
from mambaseg.methods.cotraining import build_student
from mambaseg.reports.run_record import read_rows
from mambaseg.reports.tables import read_scores

STEPS = 7


def test_rows_hold_the_loss_of_their_own_step(tmp_path, monkeypatch):
    config = experiment(7)
    config["trainer"] |= {"log_every_n_steps": 3, "limit_val_batches": 0}
    cli = build(config, tmp_path / "x.yaml", tmp_path / "run", track=True)
    losses, step = [], cli.model.training_step
    monkeypatch.setattr(cli.model, "training_step", lambda *given: losses.append(step(*given)) or losses[-1])
    cli.trainer.fit(cli.model, cli.datamodule)
    rows, _ = read_rows(tmp_path / "run" / "metrics.jsonl")
    logged = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert logged == {step: pytest.approx(losses[step].item()) for step in (2, 5)}
    assert cli.trainer.callback_metrics["loss"].item() == pytest.approx(losses[6].item()), "shown at the end"


def test_a_run_without_end_needs_schedules_with_one(tmp_path):
    config = experiment(-1)
    config["trainer"]["max_time"] = "00:00:00:30"
    for student in config["model"]["init_args"]["students"].values():
        student["schedule"] = {"name": "poly"}
    cli = build(config, tmp_path / "x.yaml", tmp_path / "run", track=False)
    with pytest.raises(InputError, match="max_steps is not set, but the schedule of cnn, mamba follows"):
        cli.trainer.fit(cli.model, cli.datamodule)


def test_averages_in_half_precision_are_refused(tmp_path):
    config = experiment(2)
    config["trainer"]["precision"] = "bf16-true"
    config["model"]["init_args"]["cross"] = {"teacher": "ema"}
    cli = build(config, tmp_path / "x.yaml", tmp_path / "run", track=False)
    with pytest.raises(InputError, match="bf16-mixed"):
        cli.trainer.fit(cli.model, cli.datamodule)


@pytest.mark.parametrize("words", [[], ["--trainer.max_steps=2"]])
def test_a_short_run_is_validated_at_its_end(tmp_path, words):
    cli = build(experiment(3), tmp_path / "x.yaml", tmp_path / "run", words, track=False)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert "val/dice" in cli.trainer.callback_metrics


@pytest.mark.parametrize("settings", [{"strong_view": True}, {"cross": {"cutmix": {}}}])
def test_teaching_passes_are_split_as_the_others_are(tmp_path, settings):
    config = experiment(1)
    config["data"]["init_args"] |= {"transform": "weak_strong"} if "strong_view" in settings else {}
    config["model"]["init_args"] |= {"split_batch": True, **settings}
    cli = build(config, tmp_path / "x.yaml", tmp_path / "run", track=False)
    seen = []
    norm = next(m for m in cli.model.students["cnn"].modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])) if module.training else None)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert seen == [2, 2, 2, 2], "labelled and unlabelled, to learn and to teach"


def experiment(max_steps, workers=0):
    student = {"optimizer": {"name": "adamw", "lr": 1e-3}, "schedule": {"name": "cosine", "total_steps": 20}}
    return {
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": max_steps,
            "max_epochs": -1,
            "val_check_interval": 4,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
        },
        "tracking": {"wandb": False, "overlays": 0, "checkpoint_every": 3},
        "data": {
            "class_path": "mambaseg.datamodules.demo.DemoDataModule",
            "init_args": {
                "patients": 3,
                "held_out": 2,
                "frames": 1,
                "depth": 3,
                "size": [32, 32],
                "labelled_patients": 1,
                "batch_labelled": 2,
                "batch_unlabelled": 2,
                "batches_per_epoch": 5,
                "transform": "affine",
                "workers": workers,
            },
        },
        "model": {
            "class_path": "mambaseg.methods.SemiMambaUNet",
            "init_args": {
                "recipe": "paper",
                "inference": {"size": [32, 32]},
                "pixel_contrast": {"pixels": 64},
                "students": {
                    "cnn": {"network": "unet", "options": {"channels": [4, 4, 4, 4, 4]}, **student},
                    "mamba": {
                        "network": "mamba_unet",
                        "options": {"embed_dim": 8, "depths": [1, 1], "d_state": 2},
                        **student,
                    },
                },
            },
        },
    }


def train(folder, max_steps, workers, checkpoint=None):
    cli = build(experiment(max_steps, workers), folder / "test.yaml", folder, track=True)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    return cli


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_equals_an_uninterrupted_run(tmp_path, workers):
    whole = train(tmp_path / "whole", STEPS, workers)
    train(tmp_path / "part", 3, workers)
    resumed = train(tmp_path / "part", STEPS, workers, tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert resumed.trainer.global_step == STEPS
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    states = [cli.trainer.optimizers[0].state_dict()["state"] for cli in (whole, resumed)]
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


class Graphs:
    """Students' graphs of a GPU that is not there."""

    releases = 0

    def start_step(self):
        pass

    def release(self):
        self.releases += 1


class Silent:
    """Copies in other processes that must not be spoken to."""

    def start_step(self, takes_over):
        raise AssertionError("a message was sent")


def test_the_search_for_what_is_not_finite_speaks_to_no_other_process(tmp_path, monkeypatch):
    cli = build(experiment(1), tmp_path / "test.yaml", tmp_path, track=False)
    told = []

    def training_step(batch, batch_idx):
        silent = cli.model._replicas = Silent()
        told.append(describe_nonfinite(cli.model, batch, batch_idx))
        assert cli.model._replicas is silent
        cli.model._replicas = None
        return type(cli.model).training_step(cli.model, batch, batch_idx)

    monkeypatch.setattr(cli.model, "training_step", training_step)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert [text.partition(";")[0] for text in told] == ["Every module's output is finite"]


@pytest.mark.parametrize("error", [None, RuntimeError("out of memory"), KeyboardInterrupt(), SystemExit(143)])
def test_graphs_are_released_however_fit_ends(tmp_path, monkeypatch, error):
    cli = build(experiment(2), tmp_path / "test.yaml", tmp_path, track=False)
    graphs = Graphs()

    def training_step(batch, batch_idx):
        assert cli.model._graphs is graphs
        with cli.model.plain_passes():
            if error is not None:
                raise error
            return type(cli.model).training_step(cli.model, batch, batch_idx)

    def on_fit_start():
        type(cli.model).on_fit_start(cli.model)
        cli.model._graphs = graphs

    monkeypatch.setattr(cli.model, "training_step", training_step)
    monkeypatch.setattr(cli.model, "on_fit_start", on_fit_start)
    ends = contextlib.nullcontext() if error is None else pytest.raises((RuntimeError, SystemExit))
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with ends:
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning ignores it from the first one on
    assert cli.model._graphs is None
    assert graphs.releases == 1


@pytest.mark.slow
def test_two_processes_share_the_batch_and_score_every_case_once(tmp_path):
    config = tmp_path / "ddp.yaml"
    config.write_text(yaml.safe_dump(experiment(4)))
    command = [sys.executable, "-m", "mambaseg", "fit", "--config", str(config), "--run-dir", str(tmp_path / "run")]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_scores(tmp_path / "run" / "scores_val" / "scores.json")
    cases = {row.case_id for row in rows}
    assert len(cases) == 2
    assert len(rows) == 2 * 3 * 4  # cases x (two students and the ensemble) x classes


@pytest.mark.parametrize("name", ["unet_cct", "unet_urpc"])
def test_every_parameter_of_a_student_is_trained(name):
    config = StudentConfig(network=name, options={"channels": [4, 4, 8, 8, 8]})
    student = build_student("student", config, 1, 4)
    student.forward_with_features(torch.randn(2, 1, 32, 32))[0].sum().backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []
    options = config.options | {"deep_supervision": True}
    assert build_student("student", StudentConfig(network=name, options=options), 1, 4).deep_supervision
