"""The command that runs all benchmarks: each has its time, and none takes the others with it."""

import dataclasses
import sys
import time

import pytest


@pytest.fixture
def run(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    import run

    return run


@pytest.fixture
def job(run, monkeypatch, tmp_path):
    """Make a job of a few lines of Python."""
    monkeypatch.setattr(run, "HERE", tmp_path)

    def make(name, code, seconds=30.0):
        (tmp_path / f"{name}.py").write_text(f"import sys, time, subprocess\n{code}\n")
        return run.Job(name, (f"{name}.py",), seconds, f"{name}.csv", gpus=0)

    return make


WRITE = "open(sys.argv[sys.argv.index('--output') + 1], 'w').write('a\\n1\\n')"


def test_every_benchmark_there_is_has_a_script_and_can_be_asked_for(run, repository, monkeypatch, capsys):
    for job in run.JOBS:
        assert (repository / "benchmarks" / job.words[0]).is_file()
    monkeypatch.setattr(sys, "argv", ["run.py", "--list"])
    assert run.main() == 0
    shown = capsys.readouterr().out
    assert all(" ".join(job.words) in shown for job in run.JOBS)


def test_one_that_fails_leaves_the_others_alone(run, job, monkeypatch, tmp_path, capsys):
    jobs = (job("broken", "sys.exit(3)"), job("works", WRITE))
    monkeypatch.setattr(sys, "argv", ["run.py", "--results", str(tmp_path / "new" / "rows")])
    assert run.main(jobs) == 1
    assert (tmp_path / "new" / "rows" / "works.csv").read_text() == "a\n1\n"
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=3)[3] for line in shown if line.startswith(("broken ", "works "))] == [
        "exit status 3",
        "ok",
    ]


def test_what_a_job_has_started_may_tidy_up_before_it_ends(run, job, tmp_path):
    """As a training does, whose launcher is gone at once: it saves a checkpoint when it is asked to end."""
    mark = tmp_path / "saved"
    tidy = f"lambda *_: (time.sleep(1), open({str(mark)!r}, 'w').close(), sys.exit())"
    child = f"import signal, sys, time; signal.signal(signal.SIGTERM, {tidy}); time.sleep(60)"
    slow = job("slow", f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)", seconds=5.0)
    (outcome,) = run.run_all([slow], 60.0, None)
    assert outcome.problem == "stopped after 5 s"
    assert mark.exists()


def test_trainings_stay_with_the_results(run, job, tmp_path):
    told = job("told", f"{WRITE}; open({str(tmp_path / 'words')!r}, 'w').write(' '.join(sys.argv))")
    told = dataclasses.replace(told, folder_option="--folder")
    (outcome,) = run.run_all([told], 60.0, tmp_path / "rows")
    assert not outcome.problem
    assert (tmp_path / "words").read_text().endswith(f"--folder {tmp_path / 'rows' / 'runs'}")


def test_one_that_takes_too_long_ends_with_all_its_processes(run, job, tmp_path):
    mark = tmp_path / "alive"
    child = f"import time; [(open({str(mark)!r}, 'w').write(str(n)), time.sleep(0.1)) for n in range(600)]"
    slow = job("slow", f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)", seconds=5.0)
    (outcome,) = run.run_all([slow], 60.0, None)
    assert outcome.problem == "stopped after 5 s"
    written = mark.read_text()
    time.sleep(0.5)
    assert mark.read_text() == written


def test_what_was_not_begun_is_told(run, job):
    outcomes = list(run.run_all([job("works", "pass")], 0.0, None))
    assert [outcome.problem for outcome in outcomes] == ["not begun: the time was over"]


def test_unknown_jobs_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "kernel"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no job is called kernel; known: step" in capsys.readouterr().err
