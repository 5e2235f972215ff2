"""What the record of a run that is still training tells."""

import json

import pytest

from mambaseg.dashboards.live_run import read_live


def write(folder, rows, max_steps=100):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run_card.json").write_text(json.dumps({"training": {"max_steps": max_steps}}))
    return folder


def start(step, time):
    return {"event": "train_start", "step": step, "time": time}


def test_steps_pace_and_time_left(tmp_path):
    run = read_live(write(tmp_path, [start(0, 1000.0), {"step": 19, "time": 1040.0, "loss": 0.5}]), "r")
    assert (run.name, run.steps, run.total_steps, run.is_done) == ("r", 20, 100, False)
    assert run.seconds_per_step == pytest.approx(2.0)
    assert run.seconds_left(now=1040.0) == pytest.approx(160.0)
    assert run.seconds_left(now=1050.0) == pytest.approx(150.0)
    assert run.seconds_left(now=9999.0) == 0.0
    assert run.series["loss"].values == (0.5,)


def test_a_resumed_run_counts_from_its_newest_start(tmp_path):
    rows = [start(0, 0.0), {"step": 79, "time": 10.0, "loss": 9.0}, start(50, 5000.0)]
    run = read_live(write(tmp_path, rows), "r")
    assert (run.steps, run.seconds_per_step, run.last_time) == (50, None, 5000.0)
    assert run.seconds_left(5000.0) is None
    run = read_live(write(tmp_path, [*rows, {"step": 59, "time": 5030.0, "loss": 1.0}]), "r")
    assert run.seconds_per_step == pytest.approx(3.0)
    assert run.series["loss"].values == (1.0,), "what the first attempt logged after step 50 was overtaken"


def test_a_run_is_done_with_its_last_step(tmp_path):
    assert read_live(write(tmp_path, [start(0, 0.0), {"step": 99, "time": 1.0}]), "r").is_done
    assert not read_live(write(tmp_path, [start(0, 0.0), {"step": 98, "time": 1.0}]), "r").is_done


def test_a_run_without_end_has_no_total(tmp_path):
    run = read_live(write(tmp_path, [start(0, 0.0), {"step": 5, "time": 1.0}], max_steps=-1), "r")
    assert run.total_steps is None
    assert run.seconds_left(2.0) is None
    assert not run.is_done


def test_an_empty_folder_is_a_run_that_has_not_begun(tmp_path):
    run = read_live(tmp_path, "r")
    assert (run.steps, run.last_time, dict(run.series)) == (0, None, {})


def test_a_half_written_line_is_left_for_the_next_look(tmp_path):
    folder = write(tmp_path, [start(0, 0.0), {"step": 3, "time": 1.0, "loss": 2.0}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')
    assert read_live(folder, "r").steps == 4
