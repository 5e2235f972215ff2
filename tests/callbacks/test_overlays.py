"""Overlays: the same cases each time, the right slice, last and best kept."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from mambaseg.callbacks.overlays import PredictionOverlays, most_foreground
from tests.callbacks.conftest import VAL_CASES, StubData, StubModule, make_trainer

DICE = {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.6}


def scripted_module():
    module = StubModule()
    module.dice_after = lambda predictor, step: DICE[step]
    return module


def names(run):
    return sorted(path.name for path in (run / "overlays").iterdir())


def test_last_and_best_are_kept(run):
    overlays = PredictionOverlays(num_cases=2)
    make_trainer(run, [overlays], val_check_interval=2).fit(scripted_module(), datamodule=StubData())
    shown = (VAL_CASES[0], VAL_CASES[-1])
    assert names(run) == [f"step{step:06d}_{case}.png" for step in (4, 6) for case in shown]
    picture = Image.open(run / "overlays" / names(run)[0])
    assert picture.size[0] > 6 * 288, "image, truth, two students, ensemble, disagreement"
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50


def test_best_is_remembered_through_a_resume(run):
    checkpoint = ModelCheckpoint(run / "checkpoints", monitor="val/unet/dice", mode="max", save_last=True)
    make_trainer(run, [PredictionOverlays(1), checkpoint], val_check_interval=2, enable_checkpointing=True).fit(
        scripted_module(), datamodule=StubData()
    )
    make_trainer(run, [PredictionOverlays(1)], val_check_interval=2, max_steps=8).fit(
        scripted_module(), datamodule=StubData(), ckpt_path=run / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert [name[:10] for name in names(run)] == ["step000004", "step000008"]


def test_named_cases_are_shown(run):
    make_trainer(run, [PredictionOverlays(cases=[VAL_CASES[2]])], max_steps=3).fit(StubModule(), datamodule=StubData())
    assert names(run) == [f"step000003_{VAL_CASES[2]}.png"]


def test_validate_leaves_the_pictures_of_the_fit_alone(run):
    module = StubModule()
    trainer = make_trainer(run, [PredictionOverlays(1)], max_steps=3)
    trainer.fit(module, datamodule=StubData())
    before = names(run)
    make_trainer(run, [PredictionOverlays(1)]).validate(module, datamodule=StubData(), verbose=False)
    assert names(run) == before


def test_one_student_alone_is_drawn(run):
    make_trainer(run, [PredictionOverlays(1)], max_steps=3).fit(StubModule(names=("unet",)), datamodule=StubData())
    assert len(names(run)) == 1


@pytest.mark.parametrize(
    ("foreground", "unknown", "expected"),
    [
        ([0, 3, 5, 1, 0], [0, 0, 0, 0, 0], 2),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], 2),
        ([4, 0, 0, 4, 0], [0, 0, 0, 0, 0], 3),
        ([1, 0, 0, 0, 0], [0, 0, 9, 0, 0], 0),
    ],
)
def test_slice_with_the_most_foreground_nearest_the_middle(foreground, unknown, expected):
    label = torch.zeros(5, 4, 4, dtype=torch.long)
    for z, (known, ignored) in enumerate(zip(foreground, unknown, strict=True)):
        label[z].view(-1)[:known] = 1
        label[z].view(-1)[known : known + ignored] = 255
    assert most_foreground(label) == expected


def test_nothing_is_drawn_in_the_sanity_check(run):
    make_trainer(run, [PredictionOverlays()], max_steps=1).fit(StubModule(), datamodule=StubData())
    assert not (run / "overlays").exists()
    assert all("val/unet/dice" not in json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
