"""Where the parameters of selective scans start."""

import math

import torch
from torch import Tensor

DELTA_MIN, DELTA_MAX, DELTA_FLOOR = 1e-3, 1e-1, 1e-4


def decay_logs(channels: int, d_state: int) -> Tensor:
    """Return log(1) ... log(N) for every channel, (channels, d_state): decay rates as of S4D-real."""
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(channels, 1)


def step_bias(*shape: int) -> Tensor:
    """Return biases of that shape whose softplus, the step size, is log-uniform between 0.001 and 0.1."""
    log_min, log_max = math.log(DELTA_MIN), math.log(DELTA_MAX)
    delta = torch.rand(shape).mul_(log_max - log_min).add_(log_min).exp_().clamp_(min=DELTA_FLOOR)
    return delta + torch.log(-torch.expm1(-delta))  # inverse softplus
