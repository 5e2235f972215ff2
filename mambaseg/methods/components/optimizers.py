"""One optimizer and schedule for each student, joined into the single optimizer that Lightning's automation wants."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mambaseg.errors import InputError
from mambaseg.methods.components.step_on_shards import are_sharded, step_on_shards
from mambaseg.networks.base import NO_DECAY_MARK


@dataclass
class OptimizerConfig:
    """An optimizer by name.

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: Learning rate before the schedule.
        weight_decay: Decay; never applied to A_logs, Ds and the bias of delta.
        momentum: For SGD.
        betas: For AdamW.
        decay_vectors: Whether biases and norm weights decay too, as the public benchmarks do.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    weight_decay: float = 1e-4
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    decay_vectors: bool = True


@dataclass
class ScheduleConfig:
    """A learning-rate schedule by name, in training steps.

    Attributes:
        name: ``poly`` (1 - t/T)^power, ``cosine`` to ``final``, or ``constant``.
        warmup_steps: Steps of linear growth from 0 before the schedule.
        total_steps: T; the run's length when absent.
        power: For ``poly``.
        final: For ``cosine``: the last factor.
    """

    name: Literal["poly", "cosine", "constant"] = "poly"
    warmup_steps: int = 0
    total_steps: int | None = None
    power: float = 0.9
    final: float = 0.0

    def factor(self, step: int, run_steps: int) -> float:
        """Return the factor of the learning rate at ``step`` of a run of ``run_steps``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        total = max((self.total_steps or run_steps) - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / total, 1.0)
        if self.name == "poly":
            return float((1.0 - progress) ** self.power)
        if self.name == "cosine":
            return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0


@dataclass
class StudentConfig:
    """A network and how it learns.

    Attributes:
        network: Registered name, see ``mambaseg list networks``.
        options: The network's options.
        optimizer: Its optimizer.
        schedule: Its learning-rate schedule.
    """

    network: str
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers that step together.

    Lightning clips, accumulates, scales and checkpoints a single optimizer by itself; several would need manual
    optimization and lose all of it. Parameter groups and state are shared with the parts, so schedulers, ``state_dict``
    and gradient scalers see one ordinary optimizer.

    Args:
        parts: Optimizers over disjoint parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Give every part its slice of the joint groups (the same dictionaries) and the joint state."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
            start = end

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` of a joint optimizer of the same parts gave."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure`` once, if given, then step every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            if are_sharded(part):
                step_on_shards(part)
            else:
                part.step()
        return loss


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, label: str
) -> torch.optim.Optimizer:
    """Build one student's optimizer.

    Args:
        named: The student's parameters.
        config: What to build.
        label: The student's name; each parameter group carries it as ``student``.

    Returns:
        The optimizer, with one group that decays and one that does not.

    Raises:
        InputError: The learning rate or decay is negative.
    """
    if config.lr < 0 or config.weight_decay < 0:
        raise InputError(
            f"Student {label!r}: lr {config.lr} and weight_decay {config.weight_decay} must not be negative."
        )
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for _, parameter in named:
        exempt = getattr(parameter, NO_DECAY_MARK, False) or (parameter.ndim <= 1 and not config.decay_vectors)
        (kept if exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "student": label},
        {"params": kept, "weight_decay": 0.0, "student": label},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in decayed + kept)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def build_schedule(optimizer: JointOptimizer, students: dict[str, StudentConfig], run_steps: float) -> LambdaLR:
    """Build one scheduler that moves each group by its student's schedule over ``run_steps`` steps.

    Raises:
        InputError: The run has no end, and a schedule needs one.
    """
    endless = [n for n, s in students.items() if s.schedule.total_steps is None and s.schedule.name != "constant"]
    if math.isinf(run_steps) and endless:
        raise InputError(
            f"trainer.max_steps is not set, but the schedule of {', '.join(endless)} follows the run's length: set "
            f"trainer.max_steps, or model.init_args.students.{endless[0]}.schedule.total_steps."
        )
    length = 0 if math.isinf(run_steps) else int(run_steps)

    def factor_of(name: str) -> Callable[[int], float]:
        return lambda step: students[name].schedule.factor(step, length)

    return LambdaLR(optimizer, [factor_of(group["student"]) for group in optimizer.param_groups])
