"""The Mamba block: a selective scan over sequences between a gated pair of projections."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.causal_conv1d import causal_conv1d
from mambaseg.kernels.selective_scan import selective_scan
from mambaseg.networks.base import mark_no_decay, mark_wide_weights
from mambaseg.networks.layers.scan_init import decay_logs, step_bias


class Mamba(nn.Module):
    """Project, convolve causally, scan with input-dependent parameters, gate, project.

    Mamba, https://arxiv.org/abs/2312.00752. Parameter names and shapes are those of mamba_ssm. The recurrence
    accumulates in fp32 whatever the input type.

    Args:
        d_model: Channels of the input and output.
        d_state: States of the recurrence per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner channels over ``d_model``.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.A_log = nn.Parameter(decay_logs(d_inner, d_state))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        for layer in (self.conv1d, self.dt_proj):  # their weights go to the scan operators
            mark_wide_weights(layer)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_bias(d_inner))
        mark_no_decay(self.A_log, self.D, self.dt_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, d_model) of the sequences ``x`` (B, L, d_model); a step sees itself and those before."""
        sequence, gate = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        sequence = causal_conv1d(sequence, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        projected = self.x_proj(sequence.transpose(1, 2))
        low_rank, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        accumulated = state_dtype(sequence)
        y = selective_scan(
            sequence,
            F.linear(low_rank, self.dt_proj.weight).transpose(1, 2),
            -torch.exp(self.A_log.to(accumulated)),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D.to(accumulated),
            z=gate,
            delta_bias=self.dt_proj.bias.to(accumulated),
            delta_softplus=True,
        )
        out: Tensor = self.out_proj(y.transpose(1, 2))
        return out
