"""Co-training from masks, scribbles and unlabelled images at once."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from mambaseg.datamodules.batch import Batch, Supervision, kinds_of
from mambaseg.methods.components.scribble_terms import ScribbleConfig, scribble_terms
from mambaseg.methods.components.segmentation_loss import segmentation_losses
from mambaseg.methods.components.student_output import StudentOutput, rows_of
from mambaseg.methods.semi_mamba_unet import SemiMambaUNet


class MixedMambaUNet(SemiMambaUNet):
    """Learns from each sample by what is known of it: Semi-Mamba-UNet and Weak-Mamba-UNet on one batch.

    Scribbled samples give the terms of Weak-Mamba-UNet (https://arxiv.org/abs/2402.10887), dense and unlabelled ones
    those of Semi-Mamba-UNet (https://arxiv.org/abs/2402.07245). So a batch without scribbles has exactly the losses of
    ``SemiMambaUNet``, and one of scribbles alone exactly those of ``WeakMambaUNet``. Nothing published does both.

    Args:
        scribble: Terms on the scribbled samples. With ``cross.teacher: ema`` their pseudo-labels are mixed from the
            same slow averages.
        scribble_share: Factor of these terms beside the others where a batch has both.
        **kwargs: See ``SemiMambaUNet``.
    """

    def __init__(self, *, scribble: ScribbleConfig | None = None, scribble_share: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scribble = scribble or ScribbleConfig()
        self.scribble_share = scribble_share

    def training_losses(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, Tensor]:
        """Return Semi-Mamba-UNet's terms on dense and unlabelled samples, Weak-Mamba-UNet's on scribbled ones."""
        kinds = kinds_of(batch)
        scribbled = [row for row, kind in enumerate(kinds) if kind == Supervision.SCRIBBLE]
        others = [row for row, kind in enumerate(kinds) if kind != Supervision.SCRIBBLE]
        if not scribbled:
            return super().training_losses(batch, outputs)
        part, part_outputs = rows_of(batch, outputs, scribbled)
        terms = scribble_terms(self.scribble, part, part_outputs, self._teachers(part, part_outputs), self.global_step)
        if not others:
            return segmentation_losses(terms)
        shared = {name: replace(term, factor=self.scribble_share * term.factor) for name, term in terms.items()}
        return self.losses_beside(shared, *rows_of(batch, outputs, others))

    def _teachers(self, batch: Batch, outputs: dict[str, StudentOutput]) -> list[Tensor]:
        """Return the probabilities (B, K, *S) that the scribbled samples' pseudo-label is mixed from."""
        if self.teacher is not None:
            return self.teacher.words(batch["image"])
        return [output.probabilities.detach() for output in self.teaching_outputs(batch, outputs).values()]
