"""Learning from labels alone: dense masks, scribbles, or any mixture of them."""

from typing import Any

from torch import Tensor

from mambaseg.datamodules.batch import Batch
from mambaseg.losses.cross_entropy import partial_cross_entropy
from mambaseg.losses.dice import soft_dice_loss
from mambaseg.methods.components.student_output import StudentOutput
from mambaseg.methods.cotraining import CoTrainingModule


class Supervised(CoTrainingModule):
    """Every student learns by itself from the known pixels; unlabelled samples contribute nothing.

    Args:
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of the Dice loss; set it to 0 for scribbles, whose known pixels are no shape.
        **kwargs: See ``CoTrainingModule``.
    """

    def __init__(self, *, ce_weight: float = 0.5, dice_weight: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight

    def training_losses(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, Tensor]:
        """Return ``supervised/<student>`` for every student."""
        return {
            f"supervised/{name}": segmentation_loss(output, batch["label"], self.ce_weight, self.dice_weight)
            for name, output in outputs.items()
        }


def segmentation_loss(output: StudentOutput, target: Tensor, ce_weight: float, dice_weight: float) -> Tensor:
    """Return the weighted sum of cross-entropy and Dice over the known pixels of ``target`` (B, *S) int64."""
    loss = output.logits.new_zeros((), dtype=output.probabilities.dtype)
    if ce_weight:
        loss = loss + ce_weight * partial_cross_entropy(output.logits, target)
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(output.probabilities, target)
    return loss
