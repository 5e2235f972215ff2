"""The scores as torch composes them: readable, differentiable by autograd, the definition."""

import math

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype


def rms_scores_reference(vectors: Tensor, scores: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Divide, shift, lay out as a map; arguments and results of ``rms_scores``."""
    wide = state_dtype(vectors, scores, shift)
    logits = scores.to(wide) * reciprocal_rms(vectors, eps, wide).unsqueeze(-1) + shift.to(wide)
    return as_map(logits).to(scores.dtype)


def reciprocal_rms(vectors: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return 1 / sqrt(mean square + eps) of vectors (..., C), without a copy of them in the type of the sums."""
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=dtype)
    return torch.rsqrt(norm.square() / vectors.shape[-1] + eps)


def as_map(values: Tensor) -> Tensor:
    """Return the values of the pixels of patches, (B, H, W, s², K), as a map (B, K, H s, W s), contiguous."""
    side = math.isqrt(values.shape[3])
    pixels = torch.unflatten(values, 3, (side, side)).permute(0, 5, 1, 3, 2, 4)
    return pixels.flatten(4, 5).flatten(2, 3).contiguous()


def as_patches(maps: Tensor, side: int) -> Tensor:
    """Return a map (B, K, H s, W s) as values of the pixels of patches, (B, H, W, s², K); undoes ``as_map``."""
    pixels = torch.unflatten(torch.unflatten(maps, 3, (-1, side)), 2, (-1, side))
    return pixels.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
