"""Joined optimizers behave like the separate ones that they are made of."""

import copy
import math

import pytest
import torch
from torch import nn

from mambaseg.errors import InputError
from mambaseg.methods.components.optimizers import (
    JointOptimizer,
    OptimizerConfig,
    ScheduleConfig,
    StudentConfig,
    build_optimizer,
    build_schedule,
)
from mambaseg.networks import create_network
from mambaseg.networks.base import no_decay_names

CONFIGS = {"a": OptimizerConfig("sgd", 0.1), "b": OptimizerConfig("adamw", 0.01, decay_vectors=False)}


def models():
    torch.manual_seed(0)
    return {"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}


def parts_of(nets):
    return [build_optimizer(nets[name].named_parameters(), config, name) for name, config in CONFIGS.items()]


def train(nets, optimizers, steps, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        x = torch.randn(5, 3)
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(net(x).square().sum() for net in nets.values()).backward()
        for optimizer in optimizers:
            optimizer.step()


def same(nets, others):
    return all(
        torch.equal(p, q) for n in nets for p, q in zip(nets[n].parameters(), others[n].parameters(), strict=True)
    )


def test_joint_step_equals_separate_steps():
    joint, separate = models(), models()
    train(joint, [JointOptimizer(parts_of(joint))], 5)
    train(separate, parts_of(separate), 5)
    assert same(joint, separate)


def test_state_survives_a_round_trip():
    whole = models()
    train(whole, [JointOptimizer(parts_of(whole))], 6)
    first = models()
    optimizer = JointOptimizer(parts_of(first))
    train(first, [optimizer], 3)
    state, second = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(first)
    resumed = JointOptimizer(parts_of(second))
    resumed.load_state_dict(state)
    train(second, [resumed], 3, start=3)
    assert same(whole, second)


def test_scheduler_moves_each_student_by_its_own_rule_also_after_loading():
    nets = models()
    optimizer = JointOptimizer(parts_of(nets))
    students = {
        "a": StudentConfig("unet", optimizer=CONFIGS["a"], schedule=ScheduleConfig("poly", power=1.0)),
        "b": StudentConfig("unet", optimizer=CONFIGS["b"], schedule=ScheduleConfig("cosine", warmup_steps=2)),
    }
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = build_schedule(optimizer, students, run_steps=10)
    seen = []
    for _ in range(4):
        seen.append({group["student"]: group["lr"] for part in optimizer.parts for group in part.param_groups})
        optimizer.step()
        schedule.step()
    assert [s["a"] for s in seen] == pytest.approx([0.1, 0.09, 0.08, 0.07])
    assert [s["b"] for s in seen] == pytest.approx([0.005, 0.01, 0.01, 0.01 * 0.5 * (1 + math.cos(math.pi / 8))])


def test_scan_parameters_are_never_decayed():
    network = create_network("mamba_unet", embed_dim=8, depths=[1, 1], d_state=2)
    exempt = set(no_decay_names(network))
    assert {name.rsplit(".", 1)[-1] for name in exempt} == {"A_logs", "Ds", "dt_projs_bias"}
    optimizer = build_optimizer(network.named_parameters(), OptimizerConfig("sgd", 0.01, weight_decay=0.1), "m")
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert decays[id(parameter)] == (0.0 if name in exempt else 0.1)


def test_negative_rates_are_refused():
    with pytest.raises(InputError, match="lr -1"):
        build_optimizer(nn.Linear(1, 1).named_parameters(), OptimizerConfig(lr=-1), "x")


def test_poly_schedule_is_the_published_one():
    schedule = ScheduleConfig("poly", power=0.9, total_steps=30_000)
    assert schedule.factor(15_000, run_steps=2_700) == pytest.approx(0.5**0.9)
    assert schedule.factor(40_000, run_steps=2_700) == 0.0
