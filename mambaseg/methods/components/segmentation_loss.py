"""Cross-entropy and Dice of one student over whatever pixels a target knows."""

from torch import Tensor

from mambaseg.losses.cross_entropy import partial_cross_entropy
from mambaseg.losses.dice import soft_dice_loss
from mambaseg.methods.components.student_output import StudentOutput


def segmentation_loss(output: StudentOutput, target: Tensor, ce_weight: float, dice_weight: float) -> Tensor:
    """Return the weighted sum of cross-entropy and Dice over the known pixels of ``target`` (B, *S) int64."""
    loss = output.logits.new_zeros((), dtype=output.probabilities.dtype)
    if ce_weight:
        loss = loss + ce_weight * partial_cross_entropy(output.logits, target)
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(output.probabilities, target)
    return loss
