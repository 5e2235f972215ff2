"""Speed: what the clock says, and that it never waits for the GPU."""

import json
import time

import pytest

from mambaseg.callbacks.step_clock import StepClock
from mambaseg.callbacks.throughput import Throughput
from mambaseg.errors import InputError
from tests.callbacks.conftest import StubData, StubModule, make_trainer


class FakeTime:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_clock_splits_time_into_work_and_waiting_and_leaves_validation_out():
    now = FakeTime()
    clock = StepClock(now)
    for _ in range(2):
        now.seconds += 1.0
        clock.start_batch()
        now.seconds += 3.0
        clock.end_batch(8)
    clock.pause()
    now.seconds += 1000.0
    clock.start_batch()
    now.seconds += 3.0
    clock.end_batch(8)
    window = clock.take()
    assert (window.steps, window.images) == (3, 24)
    assert window.seconds == pytest.approx(3 + 1 + 3 + 3), "nothing before the first batch, nothing of the pause"
    assert window.waiting_seconds == pytest.approx(1)
    assert window.steps_per_second == pytest.approx(0.3)
    assert window.images_per_second == pytest.approx(2.4)
    assert clock.take().steps_per_second == 0.0


def test_speed_is_logged_for_every_window_and_for_the_rest(run):
    make_trainer(run, [Throughput(every_n_steps=4)], max_steps=6).fit(StubModule(), datamodule=StubData())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "speed/steps_per_s" in row]
    assert [row["step"] for row in rows] == [3, 5]
    for row in rows:
        assert row["speed/images_per_s"] == pytest.approx(2 * row["speed/steps_per_s"])
        assert 0 <= row["speed/data_wait"] < 1
        assert "memory/peak_gib" not in row


class SlowData(StubData):
    def train_dataloader(self):
        loader = super().train_dataloader()
        fast = loader.collate_fn

        def slow(samples):
            time.sleep(0.05)
            return fast(samples)

        loader.collate_fn = slow
        return loader


def test_waiting_for_data_shows(run):
    make_trainer(run, [Throughput(every_n_steps=100)], max_steps=6).fit(StubModule(), datamodule=SlowData())
    (row,) = [
        row
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if "speed/data_wait" in (row := json.loads(line))
    ]
    seconds = 6 / row["speed/steps_per_s"]
    # Two epochs of three batches have four waits between batches; a loaded machine never makes them shorter.
    assert row["speed/data_wait"] * seconds >= 4 * 0.05


def test_window_must_have_a_step():
    with pytest.raises(InputError, match="every_n_steps is 0"):
        Throughput(every_n_steps=0)
