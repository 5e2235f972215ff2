"""Semi-Mamba-UNet: two different networks teach each other on unlabelled images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mambaseg.datamodules.batch import IGNORE_INDEX, Batch, Supervision, kinds_of
from mambaseg.errors import InputError
from mambaseg.losses.pooled_contrast import Reduction, pooled_contrast_loss
from mambaseg.methods.components.cutmix import CutMix, CutMixConfig, draw_cutmix, mixed_target
from mambaseg.methods.components.ema_teacher import EmaTeacher
from mambaseg.methods.components.pixel_contrast import PixelContrast, PixelContrastConfig
from mambaseg.methods.components.pseudo_label import confident_label, partner_label, unknown_target
from mambaseg.methods.components.ramp_up import RampUp
from mambaseg.methods.components.segmentation_loss import SegmentationTerm, segmentation_losses
from mambaseg.methods.components.sent_to import sent_to
from mambaseg.methods.components.student_output import StudentOutput
from mambaseg.methods.cotraining import CoTrainingModule

Term = Literal["supervised", "cross", "pooled_contrast", "pixel_contrast"]


@dataclass(frozen=True)
class Recipe:
    """Weights of the published terms.

    Attributes:
        supervised_ce: Cross-entropy on labelled pixels, for each student.
        supervised_dice: Dice on labelled pixels, for each student.
        cross_ce: Cross-entropy to the partner's pseudo-label, for each student.
        cross_dice: Dice to the partner's pseudo-label, for each student.
        cross_ramp: Factor of the two cross terms over training.
        pooled_contrast: Weight of the pooled-logit agreement, once for each pair of students.
        pooled_reduction: Its normalisation.
    """

    supervised_ce: float
    supervised_dice: float
    cross_ce: float
    cross_dice: float
    cross_ramp: RampUp
    pooled_contrast: float
    pooled_reduction: Reduction


RECIPES: dict[str, Recipe] = {
    # Equations 1-8 of https://arxiv.org/abs/2402.07245: a plain sum of all terms.
    "paper": Recipe(1.0, 1.0, 1.0, 1.0, RampUp(1.0, 0), 1.0, "paper"),
    # The released code: halved supervision, Dice alone across networks, a ramp that ends at 0.1.
    "released": Recipe(0.5, 0.5, 0.0, 1.0, RampUp(0.1, 30_000, 150), 1.0, "released"),
}


@dataclass
class CrossConfig:
    """How pseudo-labels are made and used, apart from the recipe's weights.

    Attributes:
        ramp: Replaces the recipe's ramp of the cross-supervision terms.
        teacher: ``partner`` is the published way: each student learns from the others' present predictions. ``ema``
            takes the mean probability of slow averages of all students, the same for every student.
        ema_decay: Share of the old average that a step keeps.
        trust: For the ``ema`` teacher: how much more a student counts that does better on labelled pixels; 0 counts
            all alike.
        confidence: Pixels whose pseudo-label has a lower probability are left out; 0 keeps all, as published.
        teacher_norm: For the ``ema`` teacher: whether batch norm uses ``running`` statistics or those of the ``batch``
            of unlabelled images at hand.
        cutmix: Paste boxes of other images into the unlabelled ones that students learn on; pseudo-labels are made
            before, on whole images, and pasted alike.
        ce: Replaces the recipe's weight of the cross-entropy to pseudo-labels.
        dice: Replaces the recipe's weight of the Dice loss to pseudo-labels.
    """

    ramp: RampUp | None = None
    teacher: Literal["partner", "ema"] = "partner"
    ema_decay: float = 0.99
    trust: float = 0.0
    confidence: float = 0.0
    teacher_norm: Literal["running", "batch"] = "running"
    cutmix: CutMixConfig | None = None
    ce: float | None = None
    dice: float | None = None


class SemiMambaUNet(CoTrainingModule):
    """Semi-supervised co-training (Semi-Mamba-UNet, https://arxiv.org/abs/2402.07245), for two or more students.

    Paper and released code define different losses: ``recipe`` names the one meant. Neither contrasts pixels, although
    the paper's title says so; ``pixel_contrast`` adds a term that does. ``cross`` holds what goes beyond both.

    Args:
        recipe: ``released`` or ``paper``.
        cross: How pseudo-labels are made and used; the default is the published way.
        pixel_contrast: Adds the pixel-level InfoNCE between students.
        ablate: Terms to leave out.
        **kwargs: See ``CoTrainingModule``.

    Raises:
        InputError: Fewer than two students.
    """

    def __init__(
        self,
        *,
        recipe: Literal["released", "paper"] = "released",
        cross: CrossConfig | None = None,
        pixel_contrast: PixelContrastConfig | None = None,
        ablate: list[Term] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(self.students) < 2:
            raise InputError(
                f"SemiMambaUNet needs two or more students, got {self.student_names}; use Supervised for one."
            )
        self.recipe = RECIPES[recipe]
        self.cross = cross or CrossConfig()
        self.cross_ramp = self.cross.ramp or self.recipe.cross_ramp
        self.ablated = frozenset(ablate or ())
        self.teacher: EmaTeacher | None = None
        if self.cross.teacher == "ema":
            self.teacher = EmaTeacher(self.networks, self.cross.ema_decay, self.cross.trust, self.cross.teacher_norm)
        self.pixel_contrast: PixelContrast | None = None
        if pixel_contrast is not None and "pixel_contrast" not in self.ablated:
            channels = {name: network.decoder_channels for name, network in self.networks.items()}
            strides = {name: network.decoder_stride for name, network in self.networks.items()}
            self.pixel_contrast = PixelContrast(channels, strides, pixel_contrast)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the teacher follow."""
        super().optimizer_step(*args, **kwargs)
        if self.teacher is not None:
            self.teacher.update(self.networks)

    def student_parameters(self, name: str) -> Any:
        """Yield the network's parameters and those of its contrast head."""
        yield from super().student_parameters(name)
        if self.pixel_contrast is not None:
            yield from self.pixel_contrast.projector(name).named_parameters(prefix="projector")

    def training_view(self, batch: Batch) -> Tensor:
        """Return the images (B, C, *S) that the students learn on, with the boxes of ``cross.cutmix`` pasted."""
        view, mix = super().training_view(batch), self._mix(batch)
        return view if mix is None else mix(view)

    def teaching_outputs(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, StudentOutput]:
        """Return the outputs that students teach each other with: those on whole images where boxes were pasted."""
        if self.cross.cutmix is None or self.strong_view:
            return super().teaching_outputs(batch, outputs)
        with torch.no_grad():
            return self.passes(batch["image"], batch)

    def audited_batch(self, batch: Batch) -> Batch:
        """Return the batch with the boxes pasted into ``label`` and ``audit_label`` too; see the base class."""
        mix = self._mix(batch)
        if mix is None:
            return batch
        mixed = batch | {"label": mix(batch["label"])}
        return mixed | {"audit_label": mix(batch["audit_label"])} if "audit_label" in batch else mixed

    def _mix(self, batch: Batch) -> CutMix | None:
        """Return the boxes of this step; asked twice, they are the same."""
        if self.cross.cutmix is None:
            return None
        return draw_cutmix(self.cross.cutmix, batch, self.global_step, self.part_of_step)

    def training_losses(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, Tensor]:
        """Return the configured terms; those of one student end in its name: ``cross/<student>``."""
        return self.losses_beside({}, batch, outputs)

    def losses_beside(
        self, others: Mapping[str, SegmentationTerm], batch: Batch, outputs: dict[str, StudentOutput]
    ) -> dict[str, Tensor]:
        """Return the configured terms, and ``others`` of a subclass, which are computed together with them."""
        losses: dict[str, Tensor] = {}
        supervised = {} if "supervised" in self.ablated else self._supervised(batch, outputs)
        if self.teacher is not None and supervised:
            # What it teaches depends on how well each student does, so it hears that first.
            losses = segmentation_losses(supervised)
            self.teacher.hear({name: losses[f"supervised/{name}"] for name in outputs})
            supervised = {}
        cross = {} if "cross" in self.ablated else self._cross(batch, outputs)
        losses |= segmentation_losses({**supervised, **cross, **others})
        if "pooled_contrast" not in self.ablated:
            losses["pooled_contrast"] = self._pooled_contrast(outputs)
        if self.pixel_contrast is not None:
            weight = self.pixel_contrast.config.weight(self.global_step)
            losses["pixel_contrast"] = weight * self.pixel_contrast(batch, outputs)
        return losses

    def _supervised(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, SegmentationTerm]:
        ce, dice = self.recipe.supervised_ce, self.recipe.supervised_dice
        return {f"supervised/{n}": SegmentationTerm(output, batch["label"], ce, dice) for n, output in outputs.items()}

    def _cross(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, SegmentationTerm]:
        ramp = self.cross_ramp(self.global_step)
        ce = self.recipe.cross_ce if self.cross.ce is None else self.cross.ce
        dice = self.recipe.cross_dice if self.cross.dice is None else self.cross.dice
        targets = self._cross_targets(batch, outputs)
        return {f"cross/{n}": SegmentationTerm(outputs[n], target, ce, dice, ramp) for n, target in targets.items()}

    def _cross_targets(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, Tensor]:
        """Return each student's pseudo-label (B, *S), known only where the batch's label is not."""
        mix = self._mix(batch)

        def target(pseudo_label: Tensor) -> Tensor:
            return unknown_target(batch, pseudo_label) if mix is None else mixed_target(batch, pseudo_label, mix)

        if self.teacher is not None:
            return dict.fromkeys(outputs, target(self._taught_label(self.teacher, batch)))
        views = self.teaching_outputs(batch, outputs)
        targets = {}
        for name in outputs:
            partners = [output for other, output in views.items() if other != name]
            targets[name] = target(partner_label(partners, self.cross.confidence))
        return targets

    def _taught_label(self, teacher: EmaTeacher, batch: Batch) -> Tensor:
        """Return the teacher's label (B, *S) of images without a mask of their own, ``IGNORE_INDEX`` for the others."""
        label = torch.full_like(batch["label"], IGNORE_INDEX)
        without = [row for row, kind in enumerate(kinds_of(batch)) if kind != Supervision.DENSE]
        if without:
            rows = sent_to(label.device, np.array(without))
            label[rows] = confident_label(teacher(batch["image"][rows]), self.cross.confidence)
        return label

    def _pooled_contrast(self, outputs: dict[str, StudentOutput]) -> Tensor:
        logits = [output.logits for output in outputs.values()]
        return self.recipe.pooled_contrast * pooled_contrast_loss(logits, self.recipe.pooled_reduction)
