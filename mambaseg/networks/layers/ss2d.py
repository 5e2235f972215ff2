"""The four-direction scan layer of VMamba, in all its published forms."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.kernels.depthwise_conv2d import depthwise_conv2d
from mambaseg.kernels.directional_scan import directional_scan
from mambaseg.kernels.norm_gate import merge_norm_gate
from mambaseg.networks.base import mark_no_decay, mark_wide_weights
from mambaseg.networks.layers.layer_norm import on_own_kernels
from mambaseg.networks.layers.scan_init import decay_logs, step_bias
from mambaseg.networks.layers.split_projection import project_in_halves
from mambaseg.networks.layers.ss2d_form import OUT_NORMS, SS2DForm, initial_scan_parameters, parse_form

DIRECTIONS = 4


class SS2D(nn.Module):
    """2-D selective scan: project, convolve, scan in four directions, normalise, gate, project.

    VMamba, https://arxiv.org/abs/2401.10166. Parameter names and shapes are those of its first release.

    Args:
        d_model: Channels of the input and output.
        d_state: States of the recurrence per channel.
        ssm_ratio: Inner channels over ``d_model``.
        d_conv: Side of the depthwise convolution before the scan; below 2 there is none.
        conv_bias: Whether that convolution has a bias.
        forward_type: Gate and normalisation by VMamba's name, such as ``v0`` or ``v05_noz``; see ``parse_form``.
        ssm_init: How the scan starts, ``v0``, ``v1`` or ``v2``; see ``initial_scan_parameters``.

    Raises:
        InputError: ``forward_type`` or ``ssm_init`` is unknown.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        d_conv: int = 3,
        conv_bias: bool = True,
        forward_type: str = "v0",
        ssm_init: str = "v0",
    ) -> None:
        super().__init__()
        d_inner = int(ssm_ratio * d_model)
        dt_rank = math.ceil(d_model / 16)
        self.form = parse_form(forward_type)
        # The forms that merge_norm_gate computes: LayerNorm, then SiLU of the gate or no gate at all.
        self.fusible = self.form in (SS2DForm(), SS2DForm(gated=False))
        self.in_proj = nn.Linear(d_model, 2 * d_inner if self.form.gated else d_inner, bias=False)
        self.conv2d: nn.Module = nn.Identity()
        if d_conv > 1:
            self.conv2d = nn.Conv2d(d_inner, d_inner, d_conv, padding=d_conv // 2, groups=d_inner, bias=conv_bias)
            mark_wide_weights(self.conv2d)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, dt_rank + 2 * d_state, d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, d_inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, d_inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * d_inner, d_state))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * d_inner))
        self.out_norm = OUT_NORMS[self.form.out_norm](d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._reset_scan_parameters()
        initial_scan_parameters(ssm_init, self.dt_projs_bias, self.dt_projs_weight, self.A_logs)
        mark_no_decay(self.A_logs, self.Ds, self.dt_projs_bias)

    @torch.no_grad()
    def _reset_scan_parameters(self) -> None:
        _, d_inner, dt_rank = self.dt_projs_weight.shape
        nn.init.uniform_(self.x_proj_weight, -(d_inner**-0.5), d_inner**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(dt_rank**-0.5), dt_rank**-0.5)
        self.dt_projs_bias.copy_(step_bias(DIRECTIONS, d_inner))
        self.A_logs.copy_(decay_logs(*self.A_logs.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, d_model) of ``x`` (B, H, W, d_model)."""
        x, gate = self._project(x)
        x = self._convolve(x)
        out: Tensor = self.out_proj(self._merge(self._scan(x), gate, x.shape))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is scanned and, where there is one, the gate, (B, H, W, d_inner) each."""
        if not self.form.gated:
            return self.in_proj(x), None
        if on_own_kernels(x):
            return project_in_halves(x, self.in_proj.weight)
        scanned, gate = self.in_proj(x).chunk(2, dim=-1)
        return scanned, gate

    def _convolve(self, x: Tensor) -> Tensor:
        """Return SiLU of the convolution of ``x`` (B, H, W, d_inner)."""
        convolution = self.conv2d
        if isinstance(convolution, nn.Conv2d) and convolution.kernel_size[0] % 2 and on_own_kernels(x):
            return depthwise_conv2d(x, convolution.weight.squeeze(1), convolution.bias, "silu")
        return F.silu(convolution(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def _scan(self, x: Tensor) -> Tensor:
        """Return the scans of the directions, (B, H W, 4, d_inner), of ``x`` (B, H, W, d_inner)."""
        parameters = (self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds)
        return directional_scan(x.flatten(1, 2).contiguous(), *parameters, map_height=x.shape[1])

    def _merge(self, scans: Tensor, gate: Tensor | None, shape: torch.Size) -> Tensor:
        """Return the sum of ``scans`` (B, H W, 4, d_inner), normalised and gated, (B, H, W, d_inner)."""
        if self.fusible and on_own_kernels(scans):
            norm, gate = cast(nn.LayerNorm, self.out_norm), None if gate is None else gate.flatten(1, 2)
            return merge_norm_gate(scans, gate, norm.weight, norm.bias, norm.eps).view(shape)
        y: Tensor = self.out_norm(scans.sum(2).view(shape)).to(scans.dtype)
        if self.form.out_activation:
            y = F.gelu(y)
        if gate is not None:
            y = y * (F.silu(gate) if self.form.gate_activation else gate)
        return y
