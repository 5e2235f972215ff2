"""The gated four-direction scan layer of VMamba."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.kernels import ss2d
from mambaseg.networks.base import mark_no_decay

DIRECTIONS = 4
DELTA_MIN, DELTA_MAX, DELTA_FLOOR = 1e-3, 1e-1, 1e-4


class SS2D(nn.Module):
    """2-D selective scan with a gate: project, convolve, scan in four directions, normalise, gate, project.

    VMamba, https://arxiv.org/abs/2401.10166. Parameter names and shapes are those of its first release.

    Args:
        d_model: Channels of the input and output.
        d_state: States of the recurrence per channel.
        ssm_ratio: Inner channels over ``d_model``.
        d_conv: Side of the depthwise convolution before the scan.
    """

    def __init__(self, d_model: int, d_state: int = 16, ssm_ratio: float = 2.0, d_conv: int = 3) -> None:
        super().__init__()
        d_inner = int(ssm_ratio * d_model)
        dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv2d = nn.Conv2d(d_inner, d_inner, d_conv, padding=d_conv // 2, groups=d_inner)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, dt_rank + 2 * d_state, d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, d_inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, d_inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * d_inner, d_state))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * d_inner))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._reset_scan_parameters()
        mark_no_decay(self.A_logs, self.Ds, self.dt_projs_bias)

    @torch.no_grad()
    def _reset_scan_parameters(self) -> None:
        _, d_inner, dt_rank = self.dt_projs_weight.shape
        nn.init.uniform_(self.x_proj_weight, -(d_inner**-0.5), d_inner**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(dt_rank**-0.5), dt_rank**-0.5)
        log_min, log_max = math.log(DELTA_MIN), math.log(DELTA_MAX)
        delta = torch.rand_like(self.dt_projs_bias).mul_(log_max - log_min).add_(log_min).exp_().clamp_(min=DELTA_FLOOR)
        self.dt_projs_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # inverse softplus
        self.A_logs.copy_(torch.arange(1, self.A_logs.shape[1] + 1).log().expand_as(self.A_logs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, d_model) of ``x`` (B, H, W, d_model)."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        y = ss2d(x, self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds)
        y = self.out_norm(y.permute(0, 2, 3, 1)).to(gate.dtype)
        projected: Tensor = self.out_proj(y * F.silu(gate))
        return projected
