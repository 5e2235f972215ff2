"""One headline: what is logged, picks the checkpoint, and stands in card, overlays and report is the same score."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mambaseg.callbacks.overlays import PredictionOverlays
from mambaseg.lightning_cli import build
from mambaseg.metrics.headline import headline_metric, headline_predictor
from mambaseg.reports.run_record import read_run
from mambaseg.reports.tables import read_scores
from tests.methods.test_training import experiment


@pytest.mark.parametrize("students", [["cnn"], ["cnn", "mamba"]])
def test_the_headline_is_one_score_everywhere(tmp_path, students):
    config = experiment(2)
    config["trainer"]["val_check_interval"] = 1
    config["tracking"]["overlays"] = 1
    arguments = config["model"]["init_args"]
    arguments["students"] = {name: arguments["students"][name] for name in students}
    config["model"] = {
        "class_path": "mambaseg.methods.Supervised",
        "init_args": {key: arguments[key] for key in ("inference", "students")},
    }
    cli = build(config, tmp_path / "test.yaml", tmp_path / "run", track=True)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)

    run = read_run(tmp_path / "run")
    predictor = headline_predictor(cli.model.predictor_names)
    assert predictor == ("ensemble" if len(students) > 1 else "cnn")
    headline = run.series[headline_metric()]
    assert headline == run.series[f"val/{predictor}/dice"]

    rows = [r for r in read_scores(tmp_path / "run" / "scores_val" / "scores.json") if r.predictor == predictor]
    by_class = {c: [r.dice for r in rows if r.class_index == c] for c in (1, 2, 3)}
    assert headline.last == pytest.approx(sum(sum(v) / len(v) for v in by_class.values()) / 3, abs=1e-6)

    best = next(c for c in cli.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor)
    step, value = headline.best
    assert best.best_model_score.item() == pytest.approx(value)
    overlays = next(c for c in cli.trainer.callbacks if isinstance(c, PredictionOverlays))
    assert (overlays.best_step, overlays.best_score) == (step + 1, pytest.approx(value))
    assert torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == step + 1
    assert json.loads((tmp_path / "run" / "run_card.json").read_text())["headline"]["metric"] in run.series
