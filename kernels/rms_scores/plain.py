"""The scores in plain torch, with a written-out backward pass that keeps vectors, scores and one number a pixel.

Used on CPUs, and on any device on request.
"""

import math

from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.rms_scores.reference import as_map, as_patches, reciprocal_rms


def forward(vectors: Tensor, scores: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Divide, shift, lay out as a map; arguments of ``rms_scores``.

    Returns:
        Logits (B, K, H s, W s) of the scores' type; and 1 / root mean square (B, H s, W s), float32 (float64 for
        float64 inputs). Both contiguous.
    """
    wide = state_dtype(vectors, scores, shift)
    reciprocal = reciprocal_rms(vectors, eps, wide).unsqueeze(-1)
    logits = scores.to(wide) * reciprocal + shift.to(wide)
    return as_map(logits.to(scores.dtype)), as_map(reciprocal).squeeze(1)


def backward(grad_logits: Tensor, vectors: Tensor, scores: Tensor, reciprocal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate ``forward``.

    Args:
        grad_logits: (B, K, H s, W s).
        vectors: (B, H, W, s², C).
        scores: (B, H, W, s², K).
        reciprocal: 1 / root mean square, (B, H s, W s).

    Returns:
        Gradients of vectors (B, H, W, s², C) and scores (B, H, W, s², K), in their types, and of the shift (K,) in the
        type of ``reciprocal``. All contiguous.
    """
    wide, side = reciprocal.dtype, math.isqrt(vectors.shape[3])
    grad = as_patches(grad_logits, side).to(wide)
    of_pixel = as_patches(reciprocal.unsqueeze(1), side)
    along = (grad * scores).sum(-1, keepdim=True)
    factor = along * of_pixel.pow(3) * (-1 / vectors.shape[-1])
    grad_vectors, grad_scores = vectors * factor.to(vectors.dtype), (grad * of_pixel).to(scores.dtype)
    return grad_vectors.contiguous(), grad_scores.contiguous(), grad.sum((0, 1, 2, 3))
