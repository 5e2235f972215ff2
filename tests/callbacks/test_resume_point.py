"""When several processes stop together."""

import signal
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from mambaseg.callbacks.resume_point import ResumePoint

STEPS = 33


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(("told", "stopped"), [(3, 10), (14, 20), (20, 30), (26, 33), (32, 33), (33, 33), (None, None)])
def test_an_answer_is_read_later_but_before_the_end(told, stopped, group, tmp_path):
    point = ResumePoint(tmp_path / "last.ckpt", 100)
    trainer = SimpleNamespace(world_size=2, max_steps=STEPS, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    for trainer.global_step in range(1, STEPS + 1):
        if trainer.global_step == told:
            point._signals.received = signal.SIGTERM
        if point._agreed_stop(trainer) is not None:
            break
    else:
        trainer.global_step = None
    assert trainer.global_step == stopped
