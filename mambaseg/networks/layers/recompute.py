"""Trading time for memory."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(layer: nn.Module, recompute: bool, *inputs: Tensor) -> Tensor:
    """Return what ``layer`` makes of ``inputs``.

    Args:
        layer: From tensors to one tensor.
        recompute: Recompute its activations in the backward pass instead of keeping them.
        inputs: Its inputs.
    """
    out: Tensor = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
    return out
