"""The public operator."""

import math

from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.rms_scores.op import rms_scores_forward
from mambaseg.kernels.rms_scores.reference import rms_scores_reference


def rms_scores(vectors: Tensor, scores: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Return scores over the root mean square of the vectors they belong to, shifted, as a map of pixels.

    What is left of a LayerNorm and a linear classifier behind a centred projection once both are multiplied into it:
    the scores are projections, and of the vectors only their lengths are taken. Sums are float32 whatever the types.

    Args:
        vectors: Vectors of the s x s pixels of each patch, row by row, (B, H, W, s², C).
        scores: Scores of the same pixels, (B, H, W, s², K).
        shift: Added to the scores of each class, (K,).
        eps: Added to the mean square.

    Returns:
        Logits (B, K, H s, W s) of the scores' type, contiguous.

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(vectors, scores, shift)
    if backend.forced_backend() == "reference":
        return rms_scores_reference(vectors, scores, shift, eps)
    logits: Tensor = rms_scores_forward(vectors, scores, shift, eps)[0]
    return logits


def _check_shapes(vectors: Tensor, scores: Tensor, shift: Tensor) -> None:
    if vectors.dim() != 5 or 0 in vectors.shape or math.isqrt(vectors.shape[3]) ** 2 != vectors.shape[3]:
        raise ValueError(f"rms_scores takes non-empty vectors (B, H, W, s², C), not shape {tuple(vectors.shape)}")
    classes = shift.numel()
    for name, tensor, shape in (("scores", scores, (*vectors.shape[:4], classes)), ("shift", shift, (classes,))):
        if tuple(tensor.shape) != shape or classes == 0:
            raise ValueError(f"rms_scores: {name} has shape {tuple(tensor.shape)} where {shape} is needed")
