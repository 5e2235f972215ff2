"""The benchmark of several GPUs: how runs are started and read, and a part of it on CPUs."""

import asyncio
import csv
import json
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def importable(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))


def record(ends, images=4, peak=1.0, wait=0.25):
    """What a process writes whose steps end then, each after it has waited for its batch."""
    arrived = [0.0, *(end + wait for end in ends[:-1])]
    return {"done": ends, "arrived": arrived, "images": images, "peak_gib": peak, "workers": 2, "losses": [1.0, 3.0]}


def write_records(run, *records):
    (run / "processes").mkdir(parents=True)
    for rank, own in enumerate(records):
        (run / "processes" / f"rank{rank}.json").write_text(json.dumps(own))


def test_speed_is_that_of_the_steps_after_warm_up_and_hold(tmp_path):
    from several_gpus.facts import SETTLE, mean_losses, speed

    before = [float(step) for step in range(3)]
    held = [100.0 + 5 * step for step in range(SETTLE)]
    steady = [held[-1] + 0.5 * step for step in range(1, 6)]
    slower = [held[-1] + 0.625 * step for step in range(1, 6)]
    write_records(tmp_path, record(before + held + steady), record(before + held + slower, images=6, peak=2.5))
    values = speed(tmp_path, warmup=3)
    assert (values["it_per_s"], values["img_per_s"], values["batch"]) == (1.6, 16.0, 10)
    assert (values["peak_gib"], values["waiting"]) == (2.5, 0.5)
    assert values["detail"].startswith("5 steps, 1.600 a second by the mean; 2 workers; peaks 1.00 2.50 GiB")
    assert mean_losses(tmp_path) == [1.0, 3.0]
    assert speed(tmp_path / "none", warmup=3) == {}


def test_runs_end_with_a_status_a_reason_or_not_at_all(tmp_path):
    from several_gpus.launcher import Launcher, Run

    async def finish(words, seconds=60.0, timeout=60.0):
        launcher = Launcher([], seconds, timeout, together=2)
        return await launcher.finish(Run(tmp_path / words[0].strip("-"), words, 1))

    assert (asyncio.run(finish(["--version"])).status, (tmp_path / "version.out").exists()) == (0, True)
    refused = asyncio.run(finish(["fit", "--config", "nothing"]))
    assert refused.problem.startswith("status 2: mambaseg fit: error: ")
    assert asyncio.run(finish(["late"], seconds=-1)).problem == "not started: the time was over"
    assert asyncio.run(finish(["fit", "--config", "demo"], timeout=0.01)).problem.startswith("killed after")


def test_trainings_at_once_are_spread_over_the_gpus():
    from several_gpus.launcher import Launcher

    launcher = Launcher(["0", "1", "2", "3"], 1, 1, 1)
    assert [launcher._choose(count, spread=True) for count in (1, 1, 2, 4)] == [
        ["0"],
        ["1"],
        ["2", "3"],
        ["0", "1", "2", "3"],
    ]
    assert launcher._choose(2, spread=False) == ["0", "1"]


def test_the_exact_experiment_has_no_random_numbers_and_on_cpus_no_batch_norm(tmp_path, repository, monkeypatch):
    from argparse import Namespace

    from several_gpus.bench import Bench, batch

    monkeypatch.chdir(repository)
    for accelerator, students in (("gpu", {"unet", "mamba_unet"}), ("cpu", {"mamba_unet"})):
        arguments = Namespace(accelerator=accelerator, experiments=["semi_acdc_released"], set=[])
        bench = Bench(arguments, None, tmp_path, [1, 2])
        config = bench.exact_experiment(bench.first)
        assert config["model"]["init_args"]["students"].keys() == students
        assert config["model"]["init_args"]["students"]["mamba_unet"]["options"] == {"drop_path_rate": 0.0}
        assert config["trainer"]["sync_batchnorm"] == (accelerator == "gpu")
    shares = {key.rpartition("__")[2]: value for key, value in batch(config, 4).items()}
    assert shares == {"batch_labelled": 32, "batch_scribble": 0, "batch_unlabelled": 32}


def test_only_the_newest_rows_of_one_device_and_code_are_drawn(tmp_path):
    import gpus

    row = {"part": "weak", "experiment": "semi", "device": "H100", "code": "new", "precision": "bf16-mixed"}
    rows = [
        row | {"devices": 1, "it_per_s": 9, "efficiency": 1, "device": "old"},
        row | {"devices": 4, "it_per_s": 7, "efficiency": 0.7, "code": "old"},
        row | {"devices": 2, "it_per_s": 5, "efficiency": 0.5},
        row | {"devices": 1, "it_per_s": 10, "efficiency": 1},
        row | {"devices": 2, "it_per_s": 8, "efficiency": 0.8},
        row | {"devices": 4, "it_per_s": "", "efficiency": ""},
        row | {"devices": 2, "it_per_s": 3, "efficiency": "", "part": "fsdp2"},
    ]
    with (tmp_path / "r.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*row, "devices", "it_per_s", "efficiency"])
        writer.writeheader()
        writer.writerows(rows)
    chosen = gpus.read(tmp_path / "r.csv")
    assert [(own["devices"], own["it_per_s"]) for own in chosen] == [("1", "10"), ("2", "8")]
    chosen = gpus.read(tmp_path / "r.csv", ["old", "new"])
    assert [(own["code"], own["it_per_s"]) for own in chosen] == [("old", "7"), ("new", "10"), ("new", "8")]
    gpus.draw(chosen, tmp_path / "images" / "gpus.png")
    assert (tmp_path / "images" / "gpus.png").stat().st_size > 5000
    assert gpus.read(tmp_path / "none.csv") == []


@pytest.mark.slow
def test_a_timed_training_on_a_cpu_becomes_a_row(tmp_path, repository):
    places = ["--folder", str(tmp_path / "runs"), "--csv", str(tmp_path / "r.csv"), "--output", str(tmp_path / "g.png")]
    chosen = ["--parts", "weak", "--experiments", "demo", "--accelerator", "cpu", "--devices", "1"]
    command = [sys.executable, "benchmarks/gpus.py", "--measure", *chosen, "--steps", "16", "--warmup", "2", *places]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "r.csv").open())
    assert row["batch"], row["detail"]
    assert (row["part"], row["experiment"], row["devices"], row["batch"], row["efficiency"]) == (
        *("weak", "demo", "1", "16", "1.0"),
    )
    assert float(row["it_per_s"]) > 0
    assert float(row["img_per_s"]) == pytest.approx(16 * float(row["it_per_s"]), rel=0.01)
    assert (tmp_path / "g.png").exists()
