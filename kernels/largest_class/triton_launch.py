"""Host side of the Triton kernel."""

import torch
from torch import Tensor

from mambaseg.kernels.largest_class.triton_kernels import largest_class_kernel
from mambaseg.kernels.launch import launch, on_device, refuse_float64
from mambaseg.kernels.softmax_sums.triton_launch import choose_tile, constants, divide


def forward(logits: Tensor) -> Tensor:
    """Choose; argument and result of ``plain.forward``."""
    refuse_float64("largest_class", logits)
    batch, classes, pixels = logits.shape
    tile = choose_tile(classes)
    programs, sizes = divide(logits, tile)
    chosen = torch.empty(batch, pixels, dtype=torch.int64, device=logits.device)
    with on_device(logits.device):
        launch(largest_class_kernel, programs)(logits, chosen, *logits.stride(), *sizes, **constants(classes, tile))
    return chosen
