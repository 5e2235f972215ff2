"""Each student's best weights: the right step, whole, and remembered through a resume."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import load_file

from mambaseg.callbacks.best_students import BestStudents
from tests.callbacks.conftest import StubData, StubModule, make_trainer

DICE = {"unet": {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.8}, "mamba_unet": {2: 0.8, 4: 0.6, 6: 0.9, 8: 0.95}}


def scripted(predictor, step):
    return DICE.get(predictor, {}).get(step, 0.0)


class Keeper(StubModule):
    """Keeps the students' weights of every validation, to compare with the files."""

    def __init__(self):
        super().__init__()
        self.dice_after = scripted
        self.kept = {}

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            weights = {n: {k: v.clone() for k, v in s.state_dict().items()} for n, s in self.students.items()}
            self.kept[self.trainer.global_step] = weights


def header(path):
    with safe_open(path, "pt") as opened:
        return opened.metadata()


def assert_holds(path, weights):
    loaded = load_file(path)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_best_of_each_student_is_kept(run):
    module = Keeper()
    make_trainer(run, [BestStudents()], val_check_interval=2).fit(module, datamodule=StubData())
    assert_holds(run / "best_unet.safetensors", module.kept[4]["unet"])
    assert_holds(run / "best_mamba_unet.safetensors", module.kept[6]["mamba_unet"])
    told = header(run / "best_unet.safetensors")
    assert (told["student"], told["metric"], told["step"]) == ("unet", "val/unet/dice", "4")
    assert float(told["score"]) == pytest.approx(0.9)
    assert not list(run.glob(".best*")), "no temporary file is left"


def test_a_resumed_run_remembers_the_best(run):
    checkpoint = ModelCheckpoint(run / "checkpoints", monitor="val/unet/dice", mode="max", save_last=True)
    first = Keeper()
    make_trainer(run, [BestStudents(), checkpoint], val_check_interval=2, enable_checkpointing=True).fit(
        first, datamodule=StubData()
    )
    best = BestStudents()
    second = Keeper()
    make_trainer(run, [best], val_check_interval=2, max_steps=8).fit(
        second, datamodule=StubData(), ckpt_path=run / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert_holds(run / "best_unet.safetensors", first.kept[4]["unet"])
    assert_holds(run / "best_mamba_unet.safetensors", second.kept[8]["mamba_unet"])
    assert best.best["mamba_unet"]["step"] == 8


def test_a_best_without_its_file_is_forgotten(run, caplog):
    best = BestStudents()
    best.load_state_dict({"best": {"unet": {"score": 0.99, "step": 1}}})
    make_trainer(run, [best], val_check_interval=2, max_steps=2).fit(Keeper(), datamodule=StubData())
    assert "best_unet.safetensors (score 0.9900) is not in" in caplog.text
    assert best.best["unet"]["step"] == 2


def test_a_score_that_is_not_a_number_is_never_the_best(run):
    module = StubModule()
    module.dice_after = lambda predictor, step: float("nan")
    make_trainer(run, [BestStudents()], max_steps=3).fit(module, datamodule=StubData())
    assert not list(run.glob("best_*"))


def test_weights_of_a_compiled_student_have_plain_names(run):
    module = StubModule(names=("unet",))
    module.students["unet"] = torch.compile(module.students["unet"], backend="eager")
    make_trainer(run, [BestStudents()], max_steps=3).fit(module, datamodule=StubData())
    assert set(load_file(run / "best_unet.safetensors")) == {"weight", "bias"}
