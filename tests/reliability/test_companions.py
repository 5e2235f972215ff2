"""Where one process of a training fails, the others end soon after, and its error is told."""

import atexit
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml

from benchmarks.several_gpus.launcher import alive
from mambaseg import companions
from mambaseg.callbacks.stop_signals import StoppedError
from tests.methods.test_training import experiment
from tests.reliability.test_processes import environment

ONE_MINUTE = 60


@pytest.fixture
def left(monkeypatch):
    """How often this process would have left; nothing takes long meanwhile."""
    calls = []
    monkeypatch.setattr(companions, "POLL_S", 0.02)
    monkeypatch.setattr(companions, "GRACE_S", 0.2)
    monkeypatch.setattr(companions, "_leave", lambda: calls.append(1))
    return calls


@pytest.fixture
def started():
    """A function that starts processes from code; what is left of them at the end is killed."""
    processes = []

    def start(*codes):
        processes.extend(subprocess.Popen([sys.executable, "-c", code]) for code in codes)
        return processes

    yield start
    for process in processes:
        process.kill()
        process.wait()


SLEEP = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("raise SystemExit(3)", "Process 2 of 3 on this machine has ended with status 3; its error is above"),
        ("import os; os.kill(os.getpid(), 9)", "Process 2 of 3 on this machine was killed by SIGKILL"),
    ],
)
def test_the_first_process_ends_with_the_others_and_says_why(left, started, caplog, end, told):
    sleeping, _ = processes = started(SLEEP, end)
    companions._lead(processes)
    assert told in caplog.text
    assert left == [1]
    assert sleeping.wait(5) == -signal.SIGKILL


def test_an_end_that_all_agree_on_is_left_alone(left, started, caplog):
    """A stop by a signal: the first process may have to tell the scheduler and the tracker for as long as it takes."""
    companions._lead(started("raise SystemExit(143)", "raise SystemExit(0)"))
    assert (left, caplog.text) == ([], "")


def test_a_process_ends_after_the_one_that_started_it(left, monkeypatch):
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    companions._follow(7)
    assert left == [1]


@pytest.mark.parametrize(
    ("error", "processes", "at_once"),
    [(RuntimeError(), 2, True), (RuntimeError(), 1, False), (StoppedError(signal.SIGTERM, 3), 2, False)],
)
def test_a_failing_process_does_not_wait_for_the_others_at_its_exit(monkeypatch, error, processes, at_once):
    taken_back, alarms = [], []
    monkeypatch.setattr(atexit, "unregister", taken_back.append)
    monkeypatch.setattr(signal, "alarm", alarms.append)
    companions.LeaveAtOnce().on_exception(SimpleNamespace(world_size=processes), SimpleNamespace(), error)
    assert taken_back == [companions.distributed._destroy_dist_connection] * at_once
    assert alarms == [companions.LAST_RESORT_S] * at_once


@pytest.mark.parametrize(("first", "leaves"), [("none", False), ("alive", False), ("ended", True)])
def test_a_process_whose_first_is_gone_before_it_trains_leaves(left, started, monkeypatch, caplog, first, leaves):
    (ended,) = started("")
    ended.wait()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(companions.FIRST_VARIABLE, str({"none": 0, "alive": os.getpid(), "ended": ended.pid}[first]))
    monkeypatch.setattr(companions.subprocess_script, "_launch_process_observer", None)
    companions.end_together()
    assert left == [1] * leaves
    assert ("has ended before" in caplog.text) == leaves


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_process_of_a_real_training_is_not_left_behind(tmp_path, repository, rank):
    """The other one sleeps instead of waiting: on GPUs it never learns that the first is gone, on CPUs it would."""
    config = experiment(50)
    failing = {"rank": rank, "step": 2, "how": "raise", "others": "sleep"}
    config["trainer"] |= {
        "limit_val_batches": 0,
        "callbacks": [
            {"class_path": "benchmarks.several_gpus.record.ProcessRecord"},
            {"class_path": "benchmarks.several_gpus.record.Failing", "init_args": failing},
        ],
    }
    (tmp_path / "failing.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", str(tmp_path / "failing.yaml"), "--run-dir", str(tmp_path / "run"), "--allow-code=benchmarks"]
    command = [sys.executable, "-m", "mambaseg", "fit", *words, "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, cwd=repository, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert f"process {rank} fails on purpose" in done.stderr
    assert ("Process 1 of 2 on this machine has ended with status 1" in done.stderr) == (rank == 1)
    left = tmp_path / "run" / "processes"
    end = float((left / "failed").read_text()) + ONE_MINUTE
    pids = [int(path.read_text()) for path in left.glob("pid*")]
    assert len(pids) == 2
    while any(map(alive, pids)) and time.time() < end:
        time.sleep(0.1)
    assert not any(map(alive, pids))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("metrics.jsonl")] == ["run/metrics.jsonl"]
