"""Weak-Mamba-UNet: networks of different kinds learn from scribbles and from a random mixture of themselves."""

from typing import Any

from torch import Tensor

from mambaseg.datamodules.batch import Batch
from mambaseg.errors import InputError
from mambaseg.methods.components.scribble_terms import ScribbleConfig, scribble_terms
from mambaseg.methods.components.segmentation_loss import segmentation_losses
from mambaseg.methods.components.student_output import StudentOutput
from mambaseg.methods.cotraining import CoTrainingModule


class WeakMambaUNet(CoTrainingModule):
    """Scribble-supervised co-training (Weak-Mamba-UNet, https://arxiv.org/abs/2402.10887), for two or more students.

    Published with U-Net, Swin-UNet and Mamba-UNet: each minimises the partial cross-entropy on the scribbles plus the
    Dice loss to one hard label, the argmax of all students' probabilities under random weights that are drawn once a
    step. Every student has its own schedule and its own best checkpoint here; the released code decays two of three
    learning rates, keeps two students' best weights in one file and chooses them on the test fold.

    Args:
        scribble: Weights and details of the terms; the default is the published way.
        **kwargs: See ``CoTrainingModule``.

    Raises:
        InputError: Fewer than two students.
    """

    def __init__(self, *, scribble: ScribbleConfig | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(self.students) < 2:
            raise InputError(
                f"WeakMambaUNet needs two or more students, got {self.student_names}; "
                "use Supervised with dice_weight: 0 for one."
            )
        self.scribble = scribble or ScribbleConfig()

    def training_losses(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, Tensor]:
        """Return ``scribble/<student>`` and ``mixed/<student>`` for every student."""
        teachers = [output.probabilities.detach() for output in self.teaching_outputs(batch, outputs).values()]
        return segmentation_losses(scribble_terms(self.scribble, batch, outputs, teachers, self.global_step))
