"""``mambaseg dashboard``: which runs are meant, one frame, the live view, and W&B asked for where it cannot be."""

import json
import os
import pty
import subprocess
import sys

import pytest

from mambaseg.cli import main
from mambaseg.commands import dashboard


def a_run(folder, last_step=9):
    folder.mkdir(parents=True)
    rows = [{"event": "train_start", "step": 0, "time": 1.0}, {"step": last_step, "time": 2.0, "val/unet/dice": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run_card.json").write_text(json.dumps({"training": {"max_steps": 10}}))
    (folder / "config.yaml").write_text("tracking: {project: hearts}\n")
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def test_one_frame_of_a_run(runs, capsys):
    assert main(["dashboard", "--run", str(a_run(runs / "one" / "first")), "--once"]) == 0
    out = capsys.readouterr().out
    assert "10/10" in out
    assert "unet" in out


def test_several_runs_side_by_side(runs, capsys):
    folders = [str(a_run(runs / name / "now")) for name in ("semi", "weak")]
    assert main(["dashboard", "--once", "--run", *folders]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["semi/now", "weak/now"]


def test_an_experiment_means_its_newest_run_and_a_study_all_of_the_newest(runs):
    a_run(runs / "one" / "20260101")
    newest = a_run(runs / "one" / "20260102")
    (runs / "one" / ".newest").write_text("20260102\n")
    assert dashboard.run_folders("one") == [newest]
    arms = [a_run(runs / "study" / "now" / arm) for arm in ("semi-seed1", "supervised-seed1")]
    (runs / "study" / ".newest").write_text("now\n")
    assert dashboard.run_folders("study") == arms
    assert dashboard.run_folders(str(runs / "study" / "now")) == arms


def test_a_misspelt_name_is_told_the_runs_and_studies_there_are(runs, capsys):
    (runs / "empty").mkdir()
    assert main(["dashboard", "--run", "demoo", "--once"]) == 2
    assert f"There is no run 'demoo': {runs} holds none yet." in capsys.readouterr().err
    a_run(runs / "demo" / "20260101" / "semi-seed1")
    a_run(runs / "weak_acdc" / "20260101-seed1")
    assert main(["dashboard", "--run", "demoo", "--once"]) == 2
    error = capsys.readouterr().err
    assert "There is no run 'demoo'. Did you mean 'demo'? Known: demo, weak_acdc." in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["report"], ["validate", "--run"]])
def test_where_one_run_is_wanted_a_study_tells_its_trainings(runs, capsys, command):
    arms = [a_run(runs / "demo" / "now" / arm) for arm in ("semi-seed1", "supervised-seed1")]
    (runs / "demo" / ".newest").write_text("now\n")
    assert main([*command, "demo"]) == 2
    assert f"'demo' is a study. Name one of its trainings: {arms[0]}, {arms[1]}." in capsys.readouterr().err


def test_it_follows_a_run_and_ends_with_it(runs):
    """In a terminal it draws again and again; here the run ends while it looks on."""
    folder = a_run(runs / "one" / "first", last_step=4)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mambaseg", "dashboard", "--run", str(folder), "--every", "0.1"]
    process = subprocess.Popen(command, stdout=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    seen = ""
    try:
        while "5/10" not in seen:
            seen += os.read(ours, 4096).decode(errors="replace")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 9, "time": 3.0, "val/unet/dice": 0.7}) + "\n")
        while "make report" not in seen:
            seen += os.read(ours, 4096).decode(errors="replace")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(ours)
    assert seen.index("5/10") < seen.index("10/10")


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--run", "nothing"], "no run 'nothing'"), (["--run", "nothing", "--every", "0"], "--every")],
)
def test_wrong_arguments_get_one_line(runs, capsys, words, told):
    assert main(["dashboard", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_wandb_needs_its_extra_and_a_login(runs, capsys, monkeypatch):
    folder = str(a_run(runs / "one" / "first"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", "--wandb", "--run", folder]) == 2
    assert "mambaseg[workspaces]" in capsys.readouterr().err
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(runs / "netrc"))
    monkeypatch.setattr("mambaseg.dashboards.workspace.wandb_workspaces", lambda: (None, None))
    assert main(["dashboard", "--wandb", "--run", folder]) == 2
    assert "wandb login" in capsys.readouterr().err


def test_a_view_is_saved_where_the_runs_were_recorded(runs, capsys, monkeypatch):
    asked = {}

    class View:
        url = "https://wandb.ai/me/hearts?nw=1"

        def save(self):
            asked["saved"] = True

    def compose(entity, project, names, logged, cases):
        asked.update(entity=entity, project=project, names=names, logged=logged, cases=cases)
        return View()

    folder = a_run(runs / "one" / "first")
    (folder / "overlays").mkdir()
    for step in (100, 200):
        (folder / "overlays" / f"step{step:06d}_patient01_ED.png").touch()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ENTITY", "me")
    monkeypatch.setattr("mambaseg.dashboards.workspace.wandb_workspaces", lambda: (None, None))
    monkeypatch.setattr("mambaseg.dashboards.workspace.compose", compose)
    assert main(["dashboard", "--wandb", "--run", str(folder)]) == 0
    assert asked == {
        "entity": "me",
        "project": "hearts",
        "names": ["one/first"],
        "logged": ["val/unet/dice"],
        "cases": ["patient01_ED"],
        "saved": True,
    }
    assert View.url in capsys.readouterr().out
