"""Reading a run folder back: resumed, torn, poor, or none at all."""

import json

import pytest

from mambaseg.errors import InputError
from mambaseg.reports.run_record import collect_series, read_rows, read_run


def loss_row(step, loss):
    return {"step": step, "epoch": 0, "time": 1.0, "loss": loss}


def test_a_restart_overtakes_what_came_after_its_step():
    rows = [loss_row(s, 1.0) for s in range(6)] + [{"event": "train_start", "step": 4, "time": 2.0}, loss_row(4, 0.5)]
    series = collect_series(rows)
    assert series["loss"].steps == (0, 1, 2, 3, 4)
    assert series["loss"].values == (1.0, 1.0, 1.0, 1.0, 0.5)
    assert set(series) == {"loss"}, "epoch, time and step are no metrics"


def test_values_that_are_no_numbers_are_left_out():
    series = collect_series(
        [loss_row(0, None), loss_row(1, 0.5), {"step": None, "loss": 3.0}, {"step": 2, "loss": "x"}]
    )
    assert (series["loss"].steps, series["loss"].values) == ((1,), (0.5,))


def test_best_and_last():
    series = collect_series([loss_row(s, v) for s, v in enumerate((0.1, 0.9, 0.9, 0.4))])["loss"]
    assert series.best == (1, 0.9)
    assert series.last == 0.4


def test_torn_and_foreign_lines_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(loss_row(0, 1.0)) + '\n\n[1]\n{"step": 1, "lo')
    rows, skipped = read_rows(path)
    assert (len(rows), skipped) == (1, 2)


def test_a_poor_folder_still_is_a_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    run = read_run(tmp_path)
    assert (run.series, run.card, run.config, run.scores, run.overlays) == ({}, {}, "", {}, [])


def test_a_finished_run_has_everything(finished_run):
    run = read_run(finished_run)
    assert run.series["loss"].steps == tuple(range(12))
    assert {"val/unet/dice", "val/ensemble/dice", "test/ensemble/dice", "speed/data_wait"} <= set(run.series)
    assert run.card["method"] == "StubModule"
    assert "<script>" in run.config
    assert set(run.scores) == {"val", "test"}
    assert run.scores["val"].about["step"] == 12
    assert 1 <= len(run.overlays) <= 2


def test_what_is_no_run_folder_is_told(tmp_path):
    with pytest.raises(InputError, match=r"has no metrics\.jsonl"):
        read_run(tmp_path)


def test_a_broken_card_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "run_card.json").write_text("[")
    with pytest.raises(InputError, match=r"run_card\.json is no JSON object"):
        read_run(tmp_path)
