"""The EMA teacher predicts in evaluation mode, and Lightning's warning of forgotten modes stays for those that are."""

import warnings

import pytest
import torch

from mambaseg.lightning_cli import build
from mambaseg.methods.components.ema_teacher import EmaTeacher
from tests.methods.test_training import experiment

FORGOTTEN = "eval mode at the start of training"


def fitted(folder, spoil=lambda model: None, checkpoint=None, max_steps=2):
    """Train with an EMA teacher, and return the parts and the warnings of forgotten modes."""
    config = experiment(max_steps)
    config["trainer"]["val_check_interval"] = 1
    config["model"]["init_args"]["cross"] = {"teacher": "ema"}
    cli = build(config, folder / "test.yaml", folder, track=True)
    spoil(cli.model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    return cli, [str(w.message) for w in caught if FORGOTTEN in str(w.message)]


def test_the_teacher_is_no_forgotten_module(tmp_path):
    cli, forgotten = fitted(tmp_path)
    assert forgotten == []
    assert not any(module.training for module in cli.model.teacher.modules()), "it has predicted"
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in cli.model.teacher.averages.state_dict().items():
        assert saved[f"teacher.averages.{name}"].shape == value.shape
    _, forgotten = fitted(tmp_path, checkpoint=tmp_path / "checkpoints" / "best.ckpt", max_steps=4)
    assert forgotten == [], "nor after a resume"


def test_a_second_fit_does_not_warn_either(tmp_path):
    _, forgotten = fitted(tmp_path, spoil=lambda model: model.teacher.eval())
    assert forgotten == []


def test_a_student_left_in_evaluation_mode_is_warned_of(tmp_path):
    _, forgotten = fitted(tmp_path, spoil=lambda model: model.students["cnn"].eval())
    assert len(forgotten) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_the_mode_asked_for_changes_neither_word_nor_statistics(asked):
    student = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5))
    teacher = EmaTeacher({"a": student}, decay=0.9).train(asked)
    image = torch.rand(2, 1, 4, 4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    torch.testing.assert_close(teacher(image), student.eval()(image).softmax(1))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
