"""Cross-entropy and Dice of students over whatever pixels targets know, those of a whole step computed together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.softmax_sums import losses_of_sums, stacked_softmax_sums
from mambaseg.losses.cross_entropy import cross_entropy_sums, mean_of_sums
from mambaseg.losses.dice import SMOOTH, dice_of_sums, dice_sums
from mambaseg.losses.over_processes import over_processes
from mambaseg.methods.components.sent_to import sent_to
from mambaseg.methods.components.student_output import StudentOutput
from mambaseg.networks.layers.layer_norm import on_own_kernels


@dataclass(frozen=True)
class SegmentationTerm:
    """What one student shall learn from one target: ``factor · (ce · CE + dice · Dice)`` over its known pixels.

    Attributes:
        output: The student's output on a batch.
        target: (B, *S) int64, 255 where nothing is known.
        ce: Weight of the cross-entropy; 0 leaves it out.
        dice: Weight of the Dice loss; 0 leaves it out.
        factor: Of both, over training.
    """

    output: StudentOutput
    target: Tensor
    ce: float
    dice: float
    factor: float = 1.0


def segmentation_losses(terms: Mapping[str, SegmentationTerm]) -> dict[str, Tensor]:
    """Return each term's loss, a scalar in fp32 (fp64 for fp64 logits).

    The terms' sums are stacked, so that one exchange between processes and one row of operators serve them all. On a
    GPU they come from one kernel a student, and the gradient of its logits from another.
    """
    # The terms of a student side by side.
    outputs = dict.fromkeys(term.output for term in terms.values())
    grouped = {name: term for output in outputs for name, term in terms.items() if term.output is output}
    computed = {name: term for name, term in grouped.items() if term.ce or term.dice}
    losses = dict(zip(computed, _losses(list(computed.values())), strict=True)) if computed else {}
    return {name: losses[name] if name in losses else _zero(term) for name, term in terms.items()}


def _losses(terms: Sequence[SegmentationTerm]) -> tuple[Tensor, ...]:
    logits = [term.output.logits for term in terms]
    dtype = np.float64 if state_dtype(*logits) == torch.float64 else np.float32
    weights = np.array([(term.factor * term.ce, term.factor * term.dice) for term in terms], dtype)
    losses_of = _by_kernels if all(on_own_kernels(each) for each in logits) else _readable
    return losses_of(terms, sent_to(logits[0].device, weights)).unbind()


def _zero(term: SegmentationTerm) -> Tensor:
    return term.output.logits.new_zeros((), dtype=state_dtype(term.output.logits))


def _readable(terms: Sequence[SegmentationTerm], weights: Tensor) -> Tensor:
    """Return the losses (N,) of N terms with ``weights`` (N, 2), by the losses as they are written down."""
    rows = [_sums(term) for term in terms]
    overlap, size, total, known = over_processes(*(torch.stack(column) for column in zip(*rows, strict=True)))
    ce_weights, dice_weights = weights.unbind(1)
    return ce_weights * mean_of_sums(total, known) + dice_weights * dice_of_sums(overlap, size)


def _sums(term: SegmentationTerm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the losses are ratios of, (K,), (K,), () and (); zeros, whose loss is 0, for one that is left out."""
    logits = term.output.logits
    overlap = size = logits.new_zeros(logits.shape[1], dtype=state_dtype(logits))
    total = known = logits.new_zeros((), dtype=state_dtype(logits))
    if term.dice:
        overlap, size = dice_sums(term.output.probabilities, term.target)
    if term.ce:
        total, known = cross_entropy_sums(logits, term.target)
    return overlap, size, total, known


def _by_kernels(terms: Sequence[SegmentationTerm], weights: Tensor) -> Tensor:
    """Do the same with one pass over each student's logits, and one kernel for all that follows from the sums."""
    outputs = dict.fromkeys(term.output for term in terms)
    pairs = [(output.logits, [term.target for term in terms if term.output is output]) for output in outputs]
    (sums,) = over_processes(stacked_softmax_sums(pairs))
    return losses_of_sums(sums, weights, SMOOTH)
