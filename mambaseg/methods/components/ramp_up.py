"""How the weight of unreliable targets grows."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RampUp:
    """A sigmoid-shaped ramp, ``weight · exp(-5 (1 - t/T)²)``, then constant (https://arxiv.org/abs/1610.02242).

    Attributes:
        weight: The final weight.
        steps: T, training steps until it is reached; 0 means from the start.
        every: The ramp moves once in so many steps (the public benchmarks update it every 150).
    """

    weight: float = 0.1
    steps: int = 30_000
    every: int = 1

    def __post_init__(self) -> None:
        if self.weight < 0 or self.steps < 0 or self.every < 1:
            raise ValueError(f"RampUp needs weight >= 0, steps >= 0 and every >= 1, got {self}")

    def __call__(self, step: int) -> float:
        """Return the weight at a training step, counted from 0."""
        if self.steps == 0:
            return self.weight
        progress = min(step // self.every * self.every, self.steps) / self.steps
        return self.weight * math.exp(-5.0 * (1.0 - progress) ** 2)
