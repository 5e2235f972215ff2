"""The public operator."""

from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.largest_class.op import largest_class_forward


def largest_class(logits: Tensor) -> Tensor:
    """Return the class of each pixel's largest logit, the first of equal ones, without gradient.

    Logits are read in place as long as one stride leads along all their pixels.

    Args:
        logits: (B, K, *S).

    Returns:
        (B, *S) int64. NaN counts as the largest, as in ``torch.argmax``.

    Raises:
        ScanBackendError: The implementation asked for cannot run here.
    """
    if backend.forced_backend() == "reference":
        return logits.detach().argmax(1)
    # A last axis of one, for logits without a spatial one.
    classes: Tensor = largest_class_forward(logits.detach().unsqueeze(-1).flatten(2))
    return classes.view(logits.shape[:1] + logits.shape[2:])
