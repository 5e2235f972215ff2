"""The projection of all directions: how its parts lie in memory, and the products that differentiate it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mambaseg.kernels.selective_scan.op import FUSED_RANK

ALIGNMENT = 16
"""Elements that a part is a multiple of, so that kernels read it 16 bytes at a time and products find rows aligned."""
SHORT = 3
"""Parts up to this are not stretched."""


@dataclass(frozen=True)
class Layout:
    """Columns of the packed projection: the step sizes' coefficients of all directions, then B, then C.

    Zero rows of the weight stretch each direction's part; the columns they give are zero, and so are their gradients.

    Attributes:
        directions: G.
        rank: Coefficients that a step size is made of, R.
        d_state: States of a channel, N.
    """

    directions: int
    rank: int
    d_state: int

    @property
    def rank_columns(self) -> int:
        """Columns of a direction's coefficients."""
        return _stretched(self.rank)

    @property
    def state_columns(self) -> int:
        """Columns of a direction's B, and of its C."""
        return _stretched(self.d_state)

    @property
    def columns(self) -> int:
        """Columns of the projection."""
        return self.directions * (self.rank_columns + 2 * self.state_columns)

    @property
    def makes_step_sizes(self) -> bool:
        """Whether step sizes are made outside the scan, by a product, and kept for the backward pass."""
        return self.rank > FUSED_RANK

    @property
    def scan_rank(self) -> int:
        """Coefficients that step sizes are made from, the last ones zero: the scan unrolls over a power of two."""
        if SHORT < self.rank <= FUSED_RANK:
            return 1 << (self.rank - 1).bit_length()
        return self.rank_columns

    def split(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View (..., columns) as its parts, (..., G, rank_columns) and two (..., G, state_columns)."""
        widths = [self.directions * columns for columns in (self.rank_columns, self.state_columns, self.state_columns)]
        parts = torch.split(packed, widths, dim=-1)
        coefficients, B, C = (torch.unflatten(part, -1, (self.directions, -1)) for part in parts)
        return coefficients, B, C

    def read_by_scan(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View what a scan reads of (..., columns): (..., G, scan_rank) and two (..., G, N)."""
        coefficients, B, C = self.split(packed)
        return coefficients[..., : self.scan_rank], B[..., : self.d_state], C[..., : self.d_state]


@dataclass(frozen=True)
class Projection:
    """A projection as the forward pass made it.

    Attributes:
        layout: How ``packed`` lies.
        pixels: What was projected, (B, L, E).
        packed: The result, (B, L, columns), of the type that the product was computed in.
        weight: Its weight, (columns, E), of that type.
        dt_weight: Maps coefficients to step sizes, (G, E, scan_rank), of that type.
    """

    layout: Layout
    pixels: Tensor
    packed: Tensor
    weight: Tensor
    dt_weight: Tensor

    def add_to_pixels(self, grad_pixels: Tensor, grad_packed: Tensor) -> None:
        """Add what the projection passes back to ``grad_pixels`` (B, L, E), in place; a product alone if types agree.

        Args:
            grad_pixels: Gradient of the pixels from elsewhere, contiguous.
            grad_packed: (B, L, columns).
        """
        rows, grad_rows = grad_packed.flatten(0, 1), grad_pixels.view(-1, grad_pixels.shape[-1])
        if rows.dtype == grad_rows.dtype:
            grad_rows.addmm_(rows, self.weight)
        else:
            grad_rows.add_(rows @ self.weight)

    def weight_gradient(self, grad_packed: Tensor) -> Tensor:
        """Return the gradient of the packed weight, (columns, E)."""
        return grad_packed.flatten(0, 1).t() @ self.pixels.flatten(0, 1).to(grad_packed.dtype)


def _stretched(count: int) -> int:
    return count if count <= SHORT else count + -count % ALIGNMENT
