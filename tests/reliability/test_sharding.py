"""Sharded training (FSDP2) computes what DDP computes, keeps a part of everything, scores alike, and resumes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mambaseg.lightning_cli import build
from mambaseg.reports.tables import read_scores
from tests.methods.test_training import experiment
from tests.reliability.recorder import recorded
from tests.reliability.test_processes import one_node, run_to_the_end

STEPS = 6
SMALL_UNITS = json.dumps({"class_path": "mambaseg.sharding.ShardedStrategy", "init_args": {"smallest_unit": 300}})


def everything(steps):
    """Co-training with all that touches weights: batch norm, EMA teacher, contrast heads, strong decay, clipping.

    Three cases are evaluated by two processes, so one has more to do than the other.
    """
    config = experiment(steps)
    config["trainer"] |= {"gradient_clip_val": 0.5, "val_check_interval": 3}
    config["data"]["init_args"] |= {"held_out": 3}
    arguments = config["model"]["init_args"]
    arguments["cross"] = {"teacher": "ema", "trust": 2.0}
    # AdamW would blow up the rounding in biases in front of batch norm, whose gradient is 0, to steps of full size.
    arguments["students"]["cnn"]["optimizer"] = {"name": "sgd", "lr": 0.01, "weight_decay": 0.05}
    arguments["students"]["mamba"]["optimizer"] = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.5}
    return config


class Run:
    """A training by several processes, and what it left."""

    def __init__(self, folder, repository, strategy, steps=STEPS, resume=False, processes=2):
        folder.mkdir(exist_ok=True)
        (command,) = one_node(folder, everything(steps), processes)
        words = ["--resume", str(folder / "run")] if resume else []
        run_to_the_end([[*command, f"--trainer.strategy={strategy}", *words]], repository)
        self.folder = folder / "run"
        saved = torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)
        self.weights, self.optimizer, self.step = (
            saved["state_dict"],
            saved["optimizer_states"][0],
            saved["global_step"],
        )
        self.seen = recorded(folder / "seen", processes)

    def scores(self):
        rows = read_scores(self.folder / "scores_val" / "scores.json")
        return {(row.case_id, row.predictor, row.class_index): row.dice for row in rows}


def assert_same_weights(run, expected, atol=1e-6, rtol=1e-5):
    assert run.step == expected.step
    assert run.weights.keys() == expected.weights.keys()
    for key, value in expected.weights.items():
        torch.testing.assert_close(
            run.weights[key], value, atol=atol, rtol=rtol, msg=lambda said, key=key: f"{key}: {said}"
        )


# Rounding may give a pixel whose classes are nearly equal another pseudo-label, which moves weights by some 1e-5; a
# step moves them by some 1e-3.
ONE_LABEL = {"atol": 5e-5, "rtol": 1e-3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repository):
    root = tmp_path_factory.mktemp("sharding")
    return {name: Run(root / name, repository, choice) for name, choice in (("ddp", "ddp"), ("sharded", SMALL_UNITS))}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_losses_weights_and_scores_are_those_of_ddp(runs):
    ddp, sharded = runs["ddp"], runs["sharded"]
    for mine, theirs in zip(sharded.seen, ddp.seen, strict=True):
        assert [step["cases"] for step in mine] == [step["cases"] for step in theirs]
        assert [step["loss"] for step in mine] == pytest.approx([step["loss"] for step in theirs], rel=1e-6)
    assert_same_weights(sharded, ddp)
    assert sharded.scores().keys() == ddp.scores().keys()
    assert len(sharded.scores()) == 3 * 3 * 4  # cases, two students and the ensemble, classes
    for name in ("cnn", "mamba"):
        best = load_file(sharded.folder / f"best_{name}.safetensors")
        assert best.keys() == load_file(ddp.folder / f"best_{name}.safetensors").keys()
        assert all(best[key].shape == ddp.weights[f"students.{name}.{key}"].shape for key in best)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_scores_are_those_of_the_checkpoint(runs, tmp_path):
    sharded = runs["sharded"]
    cli = build(everything(STEPS), tmp_path / "one.yaml", tmp_path / "one", track=False)
    cli.model.load_state_dict(sharded.weights)
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    again = {(row.case_id, row.predictor, row.class_index): row.dice for row in cli.model.last_scores}
    assert again == pytest.approx(sharded.scores(), abs=1e-6, nan_ok=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_process_keeps_about_half(runs):
    whole = [seen[-1]["kept"] for seen in runs["ddp"].seen]
    parts = [seen[-1]["kept"] for seen in runs["sharded"].seen]
    assert whole[0] == whole[1]
    assert max(parts) < 0.62 * whole[0]  # tiny layers do not halve evenly
    assert sum(parts) >= whole[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sharded_run_resumes_where_it_stopped(runs, tmp_path, repository):
    Run(tmp_path, repository, SMALL_UNITS, steps=3)
    resumed, whole = Run(tmp_path, repository, SMALL_UNITS, resume=True), runs["sharded"]
    assert resumed.step == whole.step == STEPS
    assert [key for key in whole.weights if not torch.equal(resumed.weights[key], whole.weights[key])] == []
    for index, state in whole.optimizer["state"].items():
        assert all(torch.equal(value, resumed.optimizer["state"][index][key]) for key, value in state.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ddp_goes_on_from_a_sharded_checkpoint_and_one_sharded_process_from_that(runs, tmp_path, repository):
    Run(tmp_path, repository, SMALL_UNITS, steps=3)
    assert_same_weights(Run(tmp_path, repository, "ddp", resume=True), runs["ddp"], **ONE_LABEL)
    assert Run(tmp_path, repository, "fsdp2", steps=STEPS + 2, resume=True, processes=1).step == STEPS + 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_word_turns_it_on_and_goes_on_from_a_checkpoint_of_ddp(runs, tmp_path, repository):
    Run(tmp_path, repository, "ddp", steps=3)
    assert_same_weights(Run(tmp_path, repository, "fsdp2", resume=True), runs["ddp"], **ONE_LABEL)
