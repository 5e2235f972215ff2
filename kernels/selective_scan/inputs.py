"""What a grouped scan computes from, as one record, and the step sizes' projection from a low rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.cross_scan.positions import DIRECTIONS, scan_positions


@dataclass(frozen=True)
class ScanInputs:
    """The arguments of ``grouped_scan``, which says what each holds."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    dt_weight: Tensor | None = None
    order: Tensor | None = None
    delta_softplus: bool = False
    map_height: int = 0

    @property
    def state_dtype(self) -> torch.dtype:
        """Type the state accumulates in: float64 when an input is float64, else float32."""
        return state_dtype(self.u, self.delta, self.A, self.B, self.C, self.D, self.delta_bias, self.dt_weight)

    @property
    def d_state(self) -> int:
        """States of a channel, N."""
        return self.A.shape[-1]

    @property
    def rank(self) -> int:
        """Coefficients that a step size is made of; 0 when step sizes are given themselves."""
        return 0 if self.dt_weight is None else self.dt_weight.shape[-1]

    def reading_order(self) -> Tensor | None:
        """Return the position that each group reads at each step, (G, L) int64; None where that is the step itself.

        Raises:
            ValueError: ``map_height`` does not fit L or G, or ``order`` has not (G, L) entries.
        """
        length, groups = self.u.shape[1:3]
        if self.order is not None:
            if self.order.shape != (groups, length):
                raise ValueError(f"order has shape {tuple(self.order.shape)} where {(groups, length)} is needed")
            return self.order.long()
        if self.map_height == 0:
            return None
        if groups != DIRECTIONS or length % self.map_height:
            raise ValueError(
                f"a map of height {self.map_height} takes 4 groups and whole rows, not {groups} of length {length}"
            )
        return scan_positions(self.map_height, length // self.map_height, self.u.device)

    def step_sizes(self) -> Tensor:
        """Return the step sizes before bias and softplus, (batch, L, G, D), projected if need be."""
        return self.delta if self.dt_weight is None else project_up(self.delta, self.dt_weight)


def project_up(coefficients: Tensor, weight: Tensor) -> Tensor:
    """Map step sizes from their rank up to the channels: one batched product, whose result is used as it lies.

    Args:
        coefficients: (batch, L, G, R).
        weight: (G, D, R).

    Returns:
        (batch, L, G, D), groups outermost in memory.
    """
    by_group = coefficients.flatten(0, 1).transpose(0, 1)
    delta = torch.bmm(by_group, weight.to(coefficients.dtype).transpose(1, 2))
    return torch.unflatten(delta, 1, coefficients.shape[:2]).permute(1, 2, 0, 3)


def project_down(grad_delta: Tensor, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Differentiate ``ScanInputs.step_sizes``: return the gradients of ``inputs.delta`` and of its weight.

    Args:
        grad_delta: (batch, L, G, D).
        inputs: What the step sizes were made of; where they are given themselves, the weight's gradient is empty.
    """
    if inputs.dt_weight is None:
        return grad_delta, grad_delta.new_empty(0)
    weight, coefficients = inputs.dt_weight.to(grad_delta.dtype), inputs.delta.to(grad_delta.dtype)
    return (
        torch.einsum("blgd,gdr->blgr", grad_delta, weight).contiguous(),
        torch.einsum("blgd,blgr->gdr", grad_delta, coefficients).contiguous(),
    )
