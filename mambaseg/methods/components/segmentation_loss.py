"""Cross-entropy and Dice of one student over whatever pixels a target knows."""

from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.softmax_sums import softmax_sums
from mambaseg.losses.cross_entropy import mean_of_sums, partial_cross_entropy
from mambaseg.losses.dice import dice_of_sums, soft_dice_loss
from mambaseg.losses.over_processes import over_processes
from mambaseg.methods.components.student_output import StudentOutput
from mambaseg.networks.layers.layer_norm import on_own_kernels


def segmentation_loss(output: StudentOutput, target: Tensor, ce_weight: float, dice_weight: float) -> Tensor:
    """Return the weighted sum of cross-entropy and Dice over the known pixels of ``target`` (B, *S) int64.

    On a GPU the sums that both are ratios of come from one kernel, and the gradient of the logits from another.
    """
    loss = output.logits.new_zeros((), dtype=state_dtype(output.logits))
    if not (ce_weight or dice_weight):
        return loss
    if on_own_kernels(output.logits):
        return _loss_of_sums(output.logits, target, ce_weight, dice_weight)
    if ce_weight:
        loss = loss + ce_weight * partial_cross_entropy(output.logits, target)
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(output.probabilities, target)
    return loss


def _loss_of_sums(logits: Tensor, target: Tensor, ce_weight: float, dice_weight: float) -> Tensor:
    overlap, squares, counts, total = softmax_sums(logits, target)
    overlap, size, known, total = over_processes(overlap, squares + counts, counts.sum(), total)
    terms = []
    if ce_weight:
        terms.append(ce_weight * mean_of_sums(total, known))
    if dice_weight:
        terms.append(dice_weight * dice_of_sums(overlap, size))
    return sum(terms[1:], terms[0])
