"""Host side of the Triton kernels: tiles and launches."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError
from mambaseg.kernels.launch import launch, on_device, refuse_float64
from mambaseg.kernels.rms_scores.triton_kernels import rms_scores_bwd_kernel, rms_scores_fwd_kernel
from mambaseg.kernels.share_sums import share_sums

MOST_CHANNELS, MOST_CLASSES = 1 << 13, 1 << 8
"""More would not fit in the registers of a program."""
FEWEST_OF_CHUNK = 8
"""Channels of a chunk at least: a load of 16 bytes where they are half precision."""
CHUNK_VALUES, SCORES = 2048, 4096
"""Values of a chunk, and scores, that a program of ``WARPS`` warps holds at most: 16 and 32 a lane."""
WARPS = 4
MOST_PROGRAMS = 132 * 6
"""Programs of a backward pass, what an H100 or H200 holds at once; each leaves a share of the shift's gradient."""


@dataclass(frozen=True)
class Tile:
    """What a program holds; it depends on channels and classes alone, so a new map or batch compiles nothing.

    Attributes:
        pixels: Pixels of one image.
        chunk: Channels of each of the two to four pieces that vectors are held in; 96 are three of 32, where a tile of
            128 would leave a quarter of the lanes idle.
        classes: A power of two not below the classes.
    """

    pixels: int
    chunk: int
    classes: int


def choose_tile(channels: int, classes: int) -> Tile:
    """Choose the tile for vectors of so many channels.

    Raises:
        ScanBackendError: There are too many channels or classes.
    """
    if channels > MOST_CHANNELS or classes > MOST_CLASSES:
        raise ScanBackendError(
            f"rms_scores on a GPU takes at most {MOST_CHANNELS} channels and {MOST_CLASSES} classes, not {channels} "
            f"and {classes}: set MAMBASEG_SCAN_BACKEND=cpu to run the torch path there"
        )
    chunk = max(FEWEST_OF_CHUNK, int(triton.next_power_of_2(channels)) // 4)
    padded = int(triton.next_power_of_2(classes))
    return Tile(min(CHUNK_VALUES // chunk, SCORES // padded), chunk, padded)


def forward(vectors: Tensor, scores: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Divide, shift, lay out as a map; arguments and results of ``plain.forward``."""
    refuse_float64("rms_scores", vectors, scores, shift)
    batch, height, width, pixels, _ = vectors.shape
    side, classes = math.isqrt(pixels), scores.shape[-1]
    tile = choose_tile(vectors.shape[-1], classes)
    programs, sizes = _divide(vectors, tile)
    size = (height * side, width * side)
    logits = torch.empty(batch, classes, *size, dtype=scores.dtype, device=scores.device)
    reciprocal = torch.empty(batch, *size, dtype=torch.float32, device=scores.device)
    with on_device(vectors.device):
        launch(rms_scores_fwd_kernel, programs)(
            vectors.contiguous(),
            scores.contiguous(),
            shift.contiguous(),
            logits,
            reciprocal,
            eps,
            *sizes,
            **_constants(vectors, classes, tile),
        )
    return logits, reciprocal


def backward(grad_logits: Tensor, vectors: Tensor, scores: Tensor, reciprocal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate ``forward``; arguments and results of ``plain.backward``."""
    classes = scores.shape[-1]
    tile = choose_tile(vectors.shape[-1], classes)
    blocks, sizes = _divide(vectors, tile)
    turns = triton.cdiv(blocks, MOST_PROGRAMS)
    programs = triton.cdiv(blocks, turns)
    grad_vectors, grad_scores = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (vectors, scores)
    )
    shares = torch.empty(programs, 1, classes, dtype=torch.float32, device=vectors.device)
    with on_device(vectors.device):
        launch(rms_scores_bwd_kernel, programs)(
            grad_logits.contiguous(),
            vectors.contiguous(),
            scores.contiguous(),
            reciprocal,
            grad_vectors,
            grad_scores,
            shares,
            *sizes,
            blocks,
            turns,
            **_constants(vectors, classes, tile),
        )
    return grad_vectors, grad_scores, share_sums(shares)[1]


def _divide(vectors: Tensor, tile: Tile) -> tuple[int, tuple[int, int, int]]:
    """Return the blocks of all maps; and the width, the pixels and the blocks of one map."""
    batch, height, width, pixels, _ = vectors.shape
    of_map = height * width * pixels
    blocks = int(triton.cdiv(of_map, tile.pixels))
    return batch * blocks, (width * math.isqrt(pixels), of_map, blocks)


def _constants(vectors: Tensor, classes: int, tile: Tile) -> dict[str, Any]:
    """Return the compile-time arguments that both kernels take."""
    return {
        "SIDE": math.isqrt(vectors.shape[3]),
        "C": vectors.shape[-1],
        "CHUNK": tile.chunk,
        "K": classes,
        "PADDED": tile.classes,
        "BLOCK": tile.pixels,
        "num_warps": WARPS,
    }
