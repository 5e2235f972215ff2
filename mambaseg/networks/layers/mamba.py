"""The Mamba block: a selective scan over sequences between a gated pair of projections."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.causal_conv1d import causal_conv1d
from mambaseg.kernels.selective_scan import gated, selective_scan
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
        self.d_inner = d_inner
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self._add_scan_weights()
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._start_steps()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, d_model) of the sequences ``x`` (B, L, d_model); a step sees itself and those before."""
        sequence, gate = self.in_proj(x).chunk(2, dim=-1)
        out: Tensor = self.out_proj(gated(self.mix(sequence), gate))
        return out

    def mix(self, sequence: Tensor) -> Tensor:
        """Return what places tell each other, (B, L, E) of ``sequence`` (B, L, E); all else acts on each by itself."""
        return self._convolve_and_scan(sequence)

    def _convolve_and_scan(self, sequence: Tensor, suffix: str = "") -> Tensor:
        """Return (B, L, E) of ``sequence`` (B, L, E) in the order of memory, with the weights of that suffix."""
        conv1d, x_proj, dt_proj = (getattr(self, f"{layer}{suffix}") for layer in ("conv1d", "x_proj", "dt_proj"))
        A_log, D = getattr(self, f"A{suffix}_log"), getattr(self, f"D{suffix}")
        u = causal_conv1d(sequence.transpose(1, 2), conv1d.weight.squeeze(1), conv1d.bias, activation="silu")
        low_rank, B, C = x_proj(u.transpose(1, 2)).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        accumulated = state_dtype(u)
        y = selective_scan(
            u,
            F.linear(low_rank, dt_proj.weight).transpose(1, 2),
            -torch.exp(A_log.to(accumulated)),
            B.transpose(1, 2),
            C.transpose(1, 2),
            D.to(accumulated),
            delta_bias=dt_proj.bias.to(accumulated),
            delta_softplus=True,
        )
        return y.transpose(1, 2)

    def _add_scan_weights(self, suffix: str = "") -> None:
        """Register what one scan reads, by names that end in ``suffix``; as published it is A_b_log, not A_log_b."""
        self.register_parameter(f"A{suffix}_log", nn.Parameter(decay_logs(self.d_inner, self.d_state)))
        self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(self.d_inner)))
        layers = {
            "conv1d": nn.Conv1d(self.d_inner, self.d_inner, self.d_conv, groups=self.d_inner),
            "x_proj": nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False),
            "dt_proj": nn.Linear(self.dt_rank, self.d_inner),
        }
        for name, layer in layers.items():
            self.add_module(f"{name}{suffix}", layer)
        for name in ("conv1d", "dt_proj"):  # their weights go to the scan operators
            mark_wide_weights(layers[name])

    def _start_steps(self, suffix: str = "") -> None:
        """Draw the weights that step sizes come from, and mark what must not decay."""
        dt_proj: nn.Linear = getattr(self, f"dt_proj{suffix}")
        nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            dt_proj.bias.copy_(step_bias(self.d_inner))
        mark_no_decay(getattr(self, f"A{suffix}_log"), getattr(self, f"D{suffix}"), dt_proj.bias)
