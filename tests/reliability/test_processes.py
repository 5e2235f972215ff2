"""Several processes, on one machine or two, do what one does."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import yaml

from mambaseg.datamodules.batch import Supervision
from mambaseg.lightning_cli import build
from mambaseg.reports.run_record import read_rows
from mambaseg.reports.tables import read_scores
from tests.methods.test_training import experiment
from tests.reliability.recorder import Recorder, recorded

STEPS = 4


def shared_batch(steps, method="Supervised", supervision="dense"):
    """An experiment without batch norm and random numbers of a process's own: what several processes share is exact."""
    config = experiment(steps)
    config["data"]["init_args"] |= {"transform": "published", "labelled_patients": None, "batch_labelled": 4}
    config["data"]["init_args"] |= {"batch_unlabelled": 0, "held_out": 5, "supervision": supervision}
    student = config["model"]["init_args"]["students"]["mamba"]
    student["options"]["drop_path_rate"] = 0.0
    student |= {"optimizer": {"name": "sgd", "lr": 0.05}, "schedule": {"name": "constant"}}
    config["model"] = {
        "class_path": "mambaseg.methods.Supervised",
        "init_args": {
            "ce_weight": 1.0,
            "dice_weight": 1.0,
            "inference": {"size": [32, 32]},
            "students": {"mamba": student},
        },
    }
    if method == "SemiMambaUNet":
        config["data"]["init_args"] |= {"labelled_patients": 1, "batch_unlabelled": 4}
        cross = {"teacher": "ema", "trust": 1.0, "confidence": 0.3}
        config["model"] = {
            "class_path": "mambaseg.methods.SemiMambaUNet",
            "init_args": {
                "recipe": "paper",
                "cross": cross,
                "inference": {"size": [32, 32]},
                "students": {"mamba": student, "second": student},
            },
        }
    return config


def fit_words(tmp_path, config, *words):
    """The command line that trains ``config`` in tmp_path/run and records what each process saw."""
    recorder = {"class_path": "tests.reliability.recorder.Recorder", "init_args": {"folder": str(tmp_path / "seen")}}
    path = tmp_path / "processes.yaml"
    callbacks = [*config["trainer"].get("callbacks", ()), recorder]
    path.write_text(yaml.safe_dump(config | {"trainer": config["trainer"] | {"callbacks": callbacks}}))
    named = ["--config", str(path), "--run-dir", str(tmp_path / "run"), "--allow-code", "tests"]
    return ["-m", "mambaseg", "fit", *named, "--trainer.strategy=ddp", *words]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "MAMBASEG_RUN_DIR": ""}


def one_node(tmp_path, config, world_size):
    """Start as a user does on one machine: Lightning starts the other processes."""
    return [[sys.executable, *fit_words(tmp_path, config, f"--trainer.devices={world_size}")]]


def two_nodes(tmp_path, config, world_size):
    """Start torchrun twice, as on two machines: the agents meet at an address and start the processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={world_size // 2}"]
    agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two", "--local-addr=127.0.0.1"]
    words = fit_words(tmp_path, config, "--trainer.num_nodes=2", f"--trainer.devices={world_size // 2}")
    return [agent + words] * 2


def run_to_the_end(commands, repository):
    running = [
        subprocess.Popen(
            command, env=environment(), cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    for process in running:
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "world_size", "options"),
    [
        (one_node, 2, {"supervision": "scribble"}),
        (one_node, 2, {"method": "SemiMambaUNet"}),
        (one_node, 4, {}),
        (two_nodes, 2, {}),
    ],
    ids=["2 processes, scribbles", "2 processes, semi-supervised", "4 processes", "2 nodes by torchrun"],
)
def test_several_processes_learn_and_score_as_one(tmp_path, repository, launch, world_size, options):
    config = shared_batch(STEPS, **options)
    run_to_the_end(launch(tmp_path, config, world_size), repository)
    together = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    cli = build(config, tmp_path / "one.yaml", tmp_path / "one", track=True)
    alone = Recorder(str(tmp_path / "alone"))
    cli.trainer.callbacks.append(alone)
    start = {key: value.clone() for key, value in cli.model.state_dict().items()}
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert max(float((value - start[key]).abs().max()) for key, value in cli.model.state_dict().items()) > 1e-3
    for key, value in cli.model.state_dict().items():
        torch.testing.assert_close(together[key], value, atol=1e-6, rtol=1e-5, msg=key)

    # Each step has the same cases and the same loss; every process has an equal share of them.
    seen = recorded(tmp_path / "seen", world_size)
    for step, whole in enumerate(alone.steps):
        shares = [steps[step] for steps in seen]
        assert sorted(case for share in shares for case in share["cases"]) == sorted(whole["cases"])
        assert sum(share["loss"] for share in shares) / world_size == pytest.approx(whole["loss"], rel=3e-6)
    assert len(alone.steps) == STEPS

    # There is one record, and it is the first process's.
    (record,) = (tmp_path / "run").rglob("metrics.jsonl")
    logged = [(row["step"], row["loss"]) for row in read_rows(record)[0] if "loss" in row]
    assert {step for step, _ in logged} == set(range(STEPS))
    assert all(loss == pytest.approx(seen[0][step]["loss"], abs=1e-6) for step, loss in logged)

    # The same weights give the same scores, row by row, without a case counted twice.
    one = build(config, tmp_path / "two.yaml", tmp_path / "two", track=False)
    one.model.load_state_dict(together)
    one.trainer.validate(one.model, datamodule=one.datamodule, verbose=False)
    rows = {(r.case_id, r.class_index, r.predictor): (r.dice, r.iou, r.empty) for r in one.model.last_scores}
    scores = read_scores(tmp_path / "run" / "scores_val" / "scores.json")
    both = [((r.case_id, r.class_index, r.predictor), (r.dice, r.iou, r.empty)) for r in scores]
    patients_and_classes = 5 * 4  # five are no multiple of any number of processes
    assert len(both) == len(rows) == patients_and_classes * len(one.model.predictor_names)
    assert dict(both) == rows


@pytest.mark.slow
def test_one_process_whose_loss_is_not_finite_does_not_leave_the_others_waiting(tmp_path, repository):
    """Losses are sums over processes; the search for what is wrong is each one's own."""
    config = shared_batch(STEPS, method="SemiMambaUNet")
    config["tracking"]["nonfinite"] = "skip"
    poison = {"class_path": "tests.reliability.recorder.Poison", "init_args": {"rank": 1, "step": 1}}
    config["trainer"]["callbacks"] = [poison]
    run_to_the_end([[sys.executable, *fit_words(tmp_path, config, "--trainer.devices=2")]], repository)
    assert [path.name for path in (tmp_path / "run" / "nonfinite").iterdir()] == ["step000001_rank1.safetensors"]
    losses = [[step["loss"] for step in steps] for steps in recorded(tmp_path / "seen", 2)]
    assert [[step for step, loss in enumerate(own) if loss != loss] for own in losses] == [[1], [1]]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_both_streams_are_shared_and_every_unlabelled_case_is_seen(tmp_path, repository, world_size):
    config = experiment(STEPS)
    config["data"]["init_args"] |= {"depth": 4, "batch_labelled": 4, "batch_unlabelled": 4, "held_out": 4}
    run_to_the_end(one_node(tmp_path, config, world_size), repository)
    cli = build(config, tmp_path / "one.yaml", tmp_path / "one", track=False)
    cli.datamodule.setup("fit")
    dense, none = int(Supervision.DENSE), int(Supervision.NONE)
    unlabelled = set(cli.datamodule._cases(cli.datamodule.split.train[1:]))
    seen = recorded(tmp_path / "seen", world_size)
    for steps in seen:
        assert [step["supervision"] for step in steps] == [
            [dense] * (4 // world_size) + [none] * (4 // world_size)
        ] * STEPS
    reached = {
        case
        for steps in seen
        for step in steps
        for case, kind in zip(step["cases"], step["supervision"], strict=True)
        if kind == none
    }
    assert reached == unlabelled
    assert len(unlabelled) == 2
    losses = [tuple(step["loss"] for step in steps) for steps in seen]
    assert len(set(losses)) == world_size  # each process learned from samples of its own


@pytest.mark.slow
def test_a_stop_reaches_both_processes(tmp_path, repository):
    config = shared_batch(4000)
    config["tracking"]["checkpoint_every"] = 5000
    (command,) = one_node(tmp_path, config, 2)
    training = subprocess.Popen(
        command, env=environment(), cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    record, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < end and not (record.exists() and len(record.read_text().splitlines()) > 4):
        time.sleep(0.1)
    training.send_signal(signal.SIGTERM)
    assert training.wait(60) == 143
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < saved["global_step"] < 4000
    assert saved["global_step"] % 10 == 0
