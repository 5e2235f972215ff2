"""What trainings leave in the tables of learning and of precision."""

import json

import pytest

from mambaseg.errors import InputError


@pytest.fixture(autouse=True)
def importable(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))


def model_of(total_steps=None, network="unet"):
    return {"init_args": {"students": {"unet": {"network": network, "schedule": {"total_steps": total_steps}}}}}


def leave_run(folder, precision="32-true", seed=1, losses=(4.0, 2.0), dice=0.5, model=None):
    """Write what the benchmarks read of a run: a loss at each step, a validation at its end."""
    folder.mkdir(parents=True)
    rows = [{"step": step, "time": 1.8e9, "loss": loss, "speed/steps_per_s": 2.0} for step, loss in enumerate(losses)]
    rows[-1] |= {"val/unet/dice": dice, "val/unet/dice_with_background": dice}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = {
        "seed": seed,
        "method": "Supervised",
        "students": {"unet": {}},
        "training": {"precision": precision, "max_steps": len(losses)},
        "device": {"type": "cpu", "name": "a CPU"},
        "packages": {"torch": "2"},
    }
    (folder / "run_card.json").write_text(json.dumps(card))
    config = {"model": model or model_of(), "data": {"class_path": "x"}, "trainer": {"max_steps": len(losses)}}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def test_rows_of_a_run_are_not_written_twice(tmp_path):
    import learning

    from mambaseg.io.csv_record import append_rows

    rows = learning.rows("r", leave_run(tmp_path / "run"))
    assert [(row["recipe"], row["step"], row["dice"], row["seed"]) for row in rows] == [("r", 2, 0.5, 1)]
    append_rows(tmp_path / "t.csv", learning.not_in(tmp_path / "t.csv", rows), learning.COLUMNS)
    assert learning.not_in(tmp_path / "t.csv", rows) == []
    assert learning.not_in(tmp_path / "t.csv", [rows[0] | {"seed": 2}]) == [rows[0] | {"seed": 2}]


def test_a_run_that_was_cut_short_is_told_from_a_finished_one(tmp_path):
    import learning

    assert learning.steps_of(tmp_path / "none") == 0
    assert learning.steps_of(leave_run(tmp_path / "run", losses=(3.0, 2.0, 1.0))) == 3
    names = {learning.folder_name("a", [f"steps={steps}", "trainer.precision=32-true"]) for steps in (600, 2700)}
    assert names == {"a-steps_600-precision_32-true", "a-steps_2700-precision_32-true"}


def test_a_changed_recipe_needs_a_name(monkeypatch, capsys):
    import learning

    monkeypatch.setattr("sys.argv", ["learning.py", "semi_acdc", "--set", "model.init_args.recipe=paper"])
    with pytest.raises(SystemExit):
        learning.parse()
    assert "name it with --label" in capsys.readouterr().err


def compared(folders, tmp_path, monkeypatch, capsys, window=2):
    """Run the comparison and return its status and what it printed."""
    import precision

    words = [*map(str, folders), "--window", str(window), "--output", str(tmp_path / "p.csv")]
    monkeypatch.setattr("sys.argv", ["precision.py", *words, "--image", str(tmp_path / "new" / "p.png")])
    return precision.main(), capsys.readouterr()


def test_a_curve_is_placed_in_the_spread_of_others(tmp_path, monkeypatch, capsys):
    folders = [
        leave_run(tmp_path / "a", losses=(4, 4, 2, 2, 1)),
        leave_run(tmp_path / "b", losses=(6, 6, 4, 4, 1), seed=2),
        leave_run(tmp_path / "c", "bf16-mixed", losses=(5, 5, 5, 5, 1)),
    ]
    status, shown = compared(folders, tmp_path, monkeypatch, capsys)
    assert status == 0
    assert "in 1 of 2 windows, outside by at most 0.50 of its width; on average +33.3 %" in shown.out
    assert (tmp_path / "new" / "p.png").stat().st_size > 5000
    assert (tmp_path / "p.csv").read_text().splitlines()[1].startswith("Supervised,unet,32-true,1,2,4.0,2,a CPU")


def test_what_cannot_be_compared_is_said(tmp_path, monkeypatch, capsys):
    one, two = leave_run(tmp_path / "a"), leave_run(tmp_path / "b", model=model_of(network="other"))
    assert "model not as in" in compared([one, two], tmp_path, monkeypatch, capsys)[1].err
    assert "two or more seeds in float32" in compared([one], tmp_path, monkeypatch, capsys)[1].err
    status, shown = compared([one], tmp_path, monkeypatch, capsys, window=200)
    assert (status, "fewer than --window 200" in shown.err) == (2, True)
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(("total_steps", "refused"), [(None, True), (100, False)])
def test_lengths_matter_where_a_schedule_takes_them(total_steps, refused, tmp_path, monkeypatch, capsys):
    model = model_of(total_steps)
    folders = [leave_run(tmp_path / str(seed), seed=seed, losses=[4.0] * (2 + seed), model=model) for seed in (1, 2)]
    folders.append(leave_run(tmp_path / "c", "bf16-mixed", losses=[4.0] * 3, model=model))
    status, shown = compared(folders, tmp_path, monkeypatch, capsys)
    assert (status, "max_steps not as in" in shown.err) == (2 if refused else 0, refused)


def test_two_runs_of_one_name_are_refused(tmp_path, monkeypatch, capsys):
    folders = [leave_run(tmp_path / name) for name in "ab"]
    assert "two runs are 32-true, seed 1" in compared(folders, tmp_path, monkeypatch, capsys)[1].err


def test_spread_of_no_width():
    from precision import verdict

    assert "outside by at most inf of its width" in verdict({1: 2.0}, [{1: 1.0}, {1: 1.0}])
    assert "in 1 of 1 windows" in verdict({1: 1.0}, [{1: 1.0}, {1: 1.0}])


def test_errors_are_of_the_kind_that_the_command_catches(tmp_path):
    from precision import by_precision

    with pytest.raises(InputError):
        by_precision([])
