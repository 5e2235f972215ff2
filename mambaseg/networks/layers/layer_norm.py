"""LayerNorm in the type that reads it."""

import torch
from torch import Tensor, nn

from mambaseg.kernels.accumulation import autocast_dtype
from mambaseg.kernels.norm_gate import layer_norm


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis.

    Under autocast it returns the type that the next product computes in, which it would be cast to anyway. On a GPU
    that is one kernel forward and one backward, where torch runs two and three and casts between them.

    Args:
        dim: Channels.
        into_product: Whether linear layers and convolutions alone read the result. Otherwise, as where a residual
            stream begins, it stays float32 under autocast.
    """

    def __init__(self, dim: int, into_product: bool = True) -> None:
        super().__init__(dim)
        self.into_product = into_product

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C) of ``x`` (..., C)."""
        dtype = self._result_type(x)
        if on_own_kernels(x):
            return layer_norm(x, self.weight, self.bias, self.eps, dtype)
        return super().forward(x).to(dtype)

    def _result_type(self, x: Tensor) -> torch.dtype:
        half = autocast_dtype(x.device.type)
        if half is None:
            return x.dtype
        return half if self.into_product else torch.float32


def on_own_kernels(x: Tensor) -> bool:
    """Tell whether norms of ``x`` run as kernels of our own: on a GPU; ``torch.compile`` fuses better by itself."""
    return x.is_cuda and x.dtype != torch.float64 and not torch.compiler.is_compiling()
