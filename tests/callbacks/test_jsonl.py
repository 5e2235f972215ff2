"""The JSONL record: every row is there after a kill and a resume."""

import json
import math
import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mambaseg.callbacks.jsonl import JsonlLogger, plain_number, repair_last_line
from mambaseg.callbacks.run_card import RunCard
from mambaseg.reports.run_record import read_run
from tests.callbacks.conftest import StubData, StubModule, make_trainer


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_fit_is_recorded(run):
    make_trainer(run, []).fit(StubModule(), datamodule=StubData())
    rows = read(run / "metrics.jsonl")
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(6))
    assert [row["step"] for row in rows if "val/ensemble/dice" in row] == [2, 5]
    assert all(row["time"] > 1.7e9 and isinstance(row["epoch"], int) for row in rows)
    assert json.loads((run / "hparams.json").read_text())["note"] == 'quote " and 0.12345'


def test_values_that_are_not_finite_are_null(run):
    logger = JsonlLogger(run)
    logger.log_metrics({"nan": math.nan, "inf": torch.tensor(-math.inf), "int": torch.tensor(3), "half": 0.5}, step=1)
    (row,) = read(run / "metrics.jsonl")
    assert (row["nan"], row["inf"], row["int"], row["half"]) == (None, None, 3, 0.5)
    assert isinstance(plain_number(torch.tensor(3)), int)


@pytest.mark.parametrize(
    ("content", "repaired"),
    [
        (b"", b""),
        (b'{"step": 1}\n', b'{"step": 1}\n'),
        (b'{"step": 1}\n{"step": 2, "lo', b'{"step": 1}\n'),
        (b'{"step": 1}\n{"step": 2}', b'{"step": 1}\n{"step": 2}\n'),
        (b'{"step": 1}\n\x00\x00\x00', b'{"step": 1}\n'),
        (b'{"st', b""),
        (b'{"step": 1}\n12', b'{"step": 1}\n'),
    ],
)
def test_torn_last_line_is_repaired(tmp_path, content, repaired):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    repair_last_line(path)
    assert path.read_bytes() == repaired
    repair_last_line(tmp_path / "absent.jsonl")
    assert not (tmp_path / "absent.jsonl").exists()


def test_a_second_logger_goes_on_after_a_torn_line(run):
    JsonlLogger(run).log_metrics({"loss": 1.0}, step=1)
    with (run / "metrics.jsonl").open("ab") as record:
        record.write(b'{"step": 2, "loss": 0.')
    second = JsonlLogger(run)
    second.log_metrics({"loss": 0.5}, step=2)
    second.log_metrics({"loss": 0.4}, step=3)
    assert [(row["step"], row["loss"]) for row in read(run / "metrics.jsonl")] == [(1, 1.0), (2, 0.5), (3, 0.4)]


def test_a_killed_process_loses_no_row(run):
    child = os.fork()
    if child == 0:
        try:
            logger = JsonlLogger(run)
            for step in range(50):
                logger.log_metrics({"loss": 1.0}, step=step)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [row["step"] for row in read(run / "metrics.jsonl")] == list(range(50))


@pytest.mark.parametrize("saved", [{"every_n_train_steps": 4}, {"monitor": "val/unet/dice", "mode": "max"}])
def test_resumed_run_replaces_the_overtaken_rows(run, saved):
    checkpoint = ModelCheckpoint(run / "checkpoints", save_top_k=-1, filename="{step}", **saved)
    make_trainer(run, [checkpoint, RunCard()], enable_checkpointing=True, max_steps=6).fit(
        StubModule(), datamodule=StubData()
    )
    first = read_run(run).series["loss"]
    assert first.steps == tuple(range(6))
    path = min((run / "checkpoints").iterdir())
    done = int(path.stem.partition("=")[2])
    make_trainer(run, [RunCard()], max_steps=5).fit(
        StubModule(learning_rate=0.0), datamodule=StubData(), ckpt_path=path, weights_only=True
    )
    resumed = read_run(run).series["loss"]
    assert resumed.steps == (0, 1, 2, 3, 4), "step 5 of the first attempt was overtaken by the restart"
    assert resumed.values[:done] == first.values[:done]
    card = json.loads((run / "run_card.json").read_text())
    assert [start["step"] for start in card["starts"]] == [0, done]
