"""The linear recurrence itself, in place, on bulk tensors: one step at a time, or all segments of time together."""

from math import isqrt

import torch
from torch import Tensor

FEW_ELEMENTS = 1 << 13
"""Below so many elements a step, the cost of a step is calling it, and walking segments side by side pays."""

FEWEST_STEPS = 16
"""Shorter stretches are walked step by step."""


def recur_(values: Tensor, decay: Tensor, first: Tensor, *, reverse: bool = False) -> None:
    """Solve ``values[t] += decay[t] * values[t - 1]`` in place; with ``reverse``, ``values[t + 1]`` instead.

    Args:
        values: (T, *S), overwritten by the solution.
        decay: (T, *S).
        first: (*S), what comes before the first step that is walked.
        reverse: Walk from the last step to the first.
    """
    length = values.shape[0]
    if length < FEWEST_STEPS or values[0].numel() > FEW_ELEMENTS:
        _walk(values, decay, first, reverse)
        return
    steps = isqrt(length)
    whole = length // steps * steps
    if reverse:
        _walk(values[whole:], decay[whole:], first, reverse)
        first = values[whole] if whole < length else first
    segments = torch.unflatten(values[:whole], 0, (-1, steps))
    _walk_segments(segments, torch.unflatten(decay[:whole], 0, (-1, steps)), first, reverse)
    if not reverse:
        _walk(values[whole:], decay[whole:], values[whole - 1], reverse)


def _walk(values: Tensor, decay: Tensor, first: Tensor, reverse: bool) -> None:
    steps = list(zip(values.unbind(0), decay.unbind(0), strict=True))
    for now, factor in reversed(steps) if reverse else steps:
        first = now.addcmul_(factor, first)


def _walk_segments(values: Tensor, decay: Tensor, first: Tensor, reverse: bool) -> None:
    """Solve ``recur_`` for (segments, steps, *S): every segment from nothing, then what reaches it from the one before.

    ``reach`` is the product of decays from a segment's border to each of its steps.
    """
    reach = decay.clone()
    inside = range(values.shape[1])
    before: int | None = None
    for step in reversed(inside) if reverse else inside:
        if before is not None:
            values[:, step].addcmul_(decay[:, step], values[:, before])
            reach[:, step].mul_(reach[:, before])
        before = step
    border = 0 if reverse else -1
    segments = range(values.shape[0])
    for segment in reversed(segments) if reverse else segments:
        values[segment].addcmul_(reach[segment], first)
        first = values[segment, border]
