"""Two processes do what one does."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from mambaseg.lightning_cli import build
from mambaseg.reports.tables import read_scores
from tests.methods.test_training import experiment


def shared_batch(steps):
    """An experiment whose loss over a batch is the mean of those over its halves: no batch norm, dense labels, CE."""
    config = experiment(steps)
    config["data"]["init_args"] |= {"transform": "published", "labelled_patients": None, "batch_labelled": 4}
    config["data"]["init_args"] |= {"batch_unlabelled": 0, "held_out": 3}
    student = config["model"]["init_args"]["students"]["mamba"]
    student["options"]["drop_path_rate"] = 0.0
    student |= {"optimizer": {"name": "sgd", "lr": 0.05}, "schedule": {"name": "constant"}}
    config["model"] = {
        "class_path": "mambaseg.methods.Supervised",
        "init_args": {
            "ce_weight": 1.0,
            "dice_weight": 0.0,
            "inference": {"size": [32, 32]},
            "students": {"mamba": student},
        },
    }
    return config


def two_processes(tmp_path, config, run, *words):
    path = tmp_path / "ddp.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "mambaseg", "fit", "--config", str(path), "--run-dir", str(run), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MAMBASEG_RUN_DIR": ""}
    return [*command, "--trainer.devices=2", "--trainer.strategy=ddp"], environment


@pytest.mark.slow
def test_two_processes_learn_and_score_as_one(tmp_path):
    config = shared_batch(4)
    run = tmp_path / "run"
    command, environment = two_processes(tmp_path, config, run)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    together = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    cli = build(config, tmp_path / "one.yaml", tmp_path / "one", track=True)
    start = {key: value.clone() for key, value in cli.model.state_dict().items()}
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    alone = cli.model.state_dict()
    assert max(float((alone[key] - start[key]).abs().max()) for key in alone) > 1e-3
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, atol=1e-6, rtol=1e-5, msg=key)

    # The same weights give the same scores, row by row, without a case counted twice.
    one = build(config, tmp_path / "two.yaml", tmp_path / "two", track=False)
    one.model.load_state_dict(together)
    one.trainer.validate(one.model, datamodule=one.datamodule, verbose=False)
    rows = {(r.case_id, r.class_index): (r.dice, r.iou, r.empty) for r in one.model.last_scores}
    both = [(r.case_id, r.class_index, r.dice, r.iou, r.empty) for r in read_scores(run / "scores_val" / "scores.json")]
    assert len(both) == len(rows)
    assert {(case, index): rest for case, index, *rest in both} == {key: list(value) for key, value in rows.items()}


@pytest.mark.slow
def test_a_stop_reaches_both_processes(tmp_path):
    config = shared_batch(4000)
    config["tracking"]["checkpoint_every"] = 5000
    run = tmp_path / "run"
    command, environment = two_processes(tmp_path, config, run)
    training = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record, end = run / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < end and not (record.exists() and len(record.read_text().splitlines()) > 4):
        time.sleep(0.1)
    training.send_signal(signal.SIGTERM)
    assert training.wait(60) == 143
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < saved["global_step"] < 4000
    assert saved["global_step"] % 10 == 0
