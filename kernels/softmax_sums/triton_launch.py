"""Host side of the Triton kernels: tiles, launches, and the sum over shares."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError
from mambaseg.kernels.launch import launch, on_device, refuse_float64
from mambaseg.kernels.softmax_sums.plain import Pairs
from mambaseg.kernels.softmax_sums.triton_kernels import (
    losses_of_sums_bwd_kernel,
    losses_of_sums_fwd_kernel,
    softmax_sums_bwd_kernel,
    softmax_sums_fwd_kernel,
)

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


def forward(pairs: Pairs, ignore_index: int) -> Tensor:
    """Sum over the known pixels; arguments and results of ``plain.forward``."""
    refuse_float64("softmax_sums", *(logits for logits, _ in pairs))
    classes = pairs[0][0].shape[1]
    tile = choose_tile(classes)
    programs = [divide(logits, tile)[0] for logits, _ in pairs]
    # Programs that exist for larger maps alone have no share in the others' sums.
    allocate = torch.empty if len(set(programs)) == 1 else torch.zeros
    rows, width = sum(len(targets) for _, targets in pairs), max(programs)
    shares = allocate(rows, 3 * classes + 1, width, dtype=torch.float32, device=pairs[0][0].device)
    for first, logits, targets in _with_rows(pairs):
        count, sizes = divide(logits, tile)
        with on_device(logits.device):
            launch(softmax_sums_fwd_kernel, count)(
                logits,
                targets,
                shares,
                first,
                width,
                *logits.stride(),
                *sizes,
                ignore_index,
                **constants(classes, tile),
            )
    return shares.sum(2)


def backward(grad_sums: Tensor, pairs: Pairs, ignore_index: int) -> list[Tensor]:
    """Differentiate ``forward``; arguments and result of ``plain.backward``."""
    classes, grad_sums = pairs[0][0].shape[1], grad_sums.contiguous()
    tile = choose_tile(classes)
    grads = [torch.empty_like(logits) for logits, _ in pairs]
    for grad, (first, logits, targets) in zip(grads, _with_rows(pairs), strict=True):
        count, sizes = divide(logits, tile)
        with on_device(logits.device):
            launch(softmax_sums_bwd_kernel, count)(
                grad_sums,
                logits,
                targets,
                grad,
                first,
                *logits.stride(),
                *grad.stride(),
                *sizes,
                ignore_index,
                **constants(classes, tile),
            )
    return grads


def losses_forward(sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Make losses of sums; arguments and results of ``plain.losses_forward``."""
    refuse_float64("losses_of_sums", sums)
    losses = torch.empty(len(sums), dtype=sums.dtype, device=sums.device)
    with on_device(sums.device):
        launch(losses_of_sums_fwd_kernel, len(sums))(
            sums.contiguous(), weights.contiguous(), losses, smooth, **_classes(sums)
        )
    return losses


def losses_backward(grad_losses: Tensor, sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Differentiate ``losses_forward``; arguments and result of ``plain.losses_backward``."""
    grad = torch.empty_like(sums, memory_format=torch.contiguous_format)
    with on_device(sums.device):
        launch(losses_of_sums_bwd_kernel, len(sums))(
            grad_losses.contiguous(), sums.contiguous(), weights.contiguous(), grad, smooth, **_classes(sums)
        )
    return grad


def _with_rows(pairs: Pairs) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
    """Yield the row of each logits' first target, the logits, and the targets as the kernels read them."""
    first = 0
    for logits, targets in pairs:
        yield first, logits, tuple(target.contiguous() for target in targets)
        first += len(targets)


def divide(logits: Tensor, tile: Tile) -> tuple[int, tuple[int, int]]:
    """Return the number of programs, and the pixels and blocks of an image."""
    batch, _, pixels = logits.shape
    blocks = int(triton.cdiv(pixels, tile.pixels))
    return batch * blocks, (pixels, blocks)


def constants(classes: int, tile: Tile) -> dict[str, Any]:
    """Return the compile-time arguments that both kernels over pixels take."""
    return {"K": classes, "PADDED": tile.classes, "BLOCK": tile.pixels, "num_warps": tile.warps}


def _classes(sums: Tensor) -> dict[str, Any]:
    """Return the compile-time arguments that both kernels over sums take."""
    classes = (sums.shape[1] - 1) // 3
    return {"K": classes, "PADDED": choose_tile(classes).classes, "num_warps": 1}
