"""One seed, one machine, one result: every experiment and every method, bit for bit.

On the GPU with the deterministic switch, `--trainer.deterministic=true`: our kernels add in a fixed order anyway.
"""

import os

import pytest
import torch

from mambaseg.commands.list import methods
from mambaseg.experiment import merge
from mambaseg.lightning_cli import build
from tests.experiments.test_experiments import CONFIGS, shrunk

STEPS = 3


def trained(name, folder, trainer):
    """Train an experiment's small form for some steps; return its weights, optimizer and last loss."""
    path, config = CONFIGS[name]
    trainer = {"max_steps": STEPS, "val_check_interval": STEPS, "limit_val_batches": 0, **trainer}
    cli = build(merge(shrunk(config), {"trainer": trainer}), path, folder, track=False)
    start = {key: value.clone() for key, value in cli.model.state_dict().items()}
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step == STEPS
    weights = {key: value.cpu() for key, value in cli.model.state_dict().items()}
    assert any(not torch.equal(weights[key], start[key]) for key in weights)
    moments = [value for state in cli.trainer.optimizers[0].state.values() for value in state.values()]
    return weights | {f"moment {i}": torch.as_tensor(moment).cpu() for i, moment in enumerate(moments)}


def assert_equal_twice(name, tmp_path, trainer):
    first, second = (trained(name, tmp_path / run, trainer) for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_twice_the_same_on_the_cpu(name, tmp_path):
    assert_equal_twice(name, tmp_path, {"accelerator": "cpu"})


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_twice_the_same_on_the_gpu(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    try:
        assert_equal_twice(name, tmp_path, {"accelerator": "gpu", "devices": 1, "deterministic": True})
    finally:
        torch.use_deterministic_algorithms(False)


def test_another_seed_is_another_run(tmp_path, monkeypatch):
    name = "semi_acdc"
    first = trained(name, tmp_path / "first", {"accelerator": "cpu"})
    path, config = CONFIGS[name]
    monkeypatch.setitem(CONFIGS, name, (path, config | {"seed_everything": 7}))
    second = trained(name, tmp_path / "second", {"accelerator": "cpu"})
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_every_method_is_in_an_experiment():
    used = {config["model"]["class_path"].rpartition(".")[2] for _, config in CONFIGS.values()}
    assert used == {name for name, _ in methods()}
