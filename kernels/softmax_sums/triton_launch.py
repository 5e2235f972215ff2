"""Host side of the Triton kernels: tiles, launches, and the sum over shares."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError
from mambaseg.kernels.launch import inner_contiguous, launch, on_device, refuse_float64
from mambaseg.kernels.softmax_sums.triton_kernels import softmax_sums_bwd_kernel, softmax_sums_fwd_kernel

MOST_CLASSES = 1 << 8
"""More would not fit in the registers of a program."""
FEWEST_PIXELS = 32
"""Pixels of a program at least: they lie side by side in memory."""
WARP_VALUES = 512
"""Logits that a warp holds: 16 a lane, which leaves registers for enough warps in any layout."""


@dataclass(frozen=True)
class Tile:
    """What a program holds; it depends on the classes alone, so a new map or batch compiles nothing.

    Attributes:
        classes: A power of two not below the classes.
        pixels: Pixels of one image.
        warps: Warps; few classes lie in one warp, whose sums need no shared memory.
    """

    classes: int
    pixels: int
    warps: int


def choose_tile(classes: int) -> Tile:
    """Choose the tile for so many classes.

    Raises:
        ScanBackendError: There are too many.
    """
    if classes > MOST_CLASSES:
        raise ScanBackendError(
            f"softmax_sums on a GPU takes at most {MOST_CLASSES} classes, not {classes}: "
            "set MAMBASEG_SCAN_BACKEND=cpu to run the torch path there"
        )
    padded = int(triton.next_power_of_2(classes))
    pixels = max(FEWEST_PIXELS, WARP_VALUES // padded)
    return Tile(padded, pixels, max(1, padded * pixels // WARP_VALUES))


def forward(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Sum over the known pixels; arguments and results of ``plain.forward``."""
    refuse_float64("softmax_sums", logits)
    classes, target = logits.shape[1], inner_contiguous(target)
    tile = choose_tile(classes)
    programs, sizes = _divide(logits, tile)
    shares = torch.empty(3 * classes + 1, programs, dtype=torch.float32, device=logits.device)
    with on_device(logits.device):
        launch(softmax_sums_fwd_kernel, programs)(
            logits,
            target,
            shares,
            *logits.stride(),
            target.stride(0),
            *sizes,
            ignore_index,
            **_constants(classes, tile),
        )
    return shares.sum(1)


def backward(grad_sums: Tensor, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Differentiate ``forward``; arguments and result of ``plain.backward``."""
    classes, target = logits.shape[1], inner_contiguous(target)
    tile = choose_tile(classes)
    programs, sizes = _divide(logits, tile)
    grad = torch.empty_like(logits)
    with on_device(logits.device):
        launch(softmax_sums_bwd_kernel, programs)(
            grad_sums.contiguous(),
            logits,
            target,
            grad,
            *logits.stride(),
            target.stride(0),
            *grad.stride(),
            *sizes,
            ignore_index,
            **_constants(classes, tile),
        )
    return grad


def _divide(logits: Tensor, tile: Tile) -> tuple[int, tuple[int, int]]:
    """Return the number of programs, and the pixels and blocks of an image."""
    batch, _, pixels = logits.shape
    blocks = int(triton.cdiv(pixels, tile.pixels))
    return batch * blocks, (pixels, blocks)


def _constants(classes: int, tile: Tile) -> dict[str, Any]:
    """Return the compile-time arguments that both kernels take."""
    return {"K": classes, "PADDED": tile.classes, "BLOCK": tile.pixels, "num_warps": tile.warps}
