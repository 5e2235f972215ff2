"""Learning from labels alone: dense masks, scribbles, or any mixture of them."""

from typing import Any

from torch import Tensor

from mambaseg.datamodules.batch import Batch
from mambaseg.methods.components.segmentation_loss import SegmentationTerm, segmentation_losses
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
        terms = {
            f"supervised/{name}": SegmentationTerm(output, batch["label"], self.ce_weight, self.dice_weight)
            for name, output in outputs.items()
        }
        return segmentation_losses(terms)
