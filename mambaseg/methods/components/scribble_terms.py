"""What students learn from scribbled images: the scribbles, and mixed pseudo-labels for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mambaseg.datamodules.batch import Batch
from mambaseg.errors import InputError
from mambaseg.methods.components.pseudo_label import convex_weights, mixed_pseudo_label, unknown_target
from mambaseg.methods.components.ramp_up import RampUp
from mambaseg.methods.components.segmentation_loss import SegmentationTerm
from mambaseg.methods.components.student_output import StudentOutput


@dataclass(frozen=True)
class ScribbleConfig:
    """Terms of the loss on scribbled images; the default is what Weak-Mamba-UNet publishes.

    Attributes:
        scribble_ce: Weight of the partial cross-entropy, the mean over the scribbled pixels of a batch.
        mixed_ce: Weight of the cross-entropy to the mixed pseudo-label.
        mixed_dice: Weight of the Dice loss to the mixed pseudo-label.
        ramp: Factor of the two mixed terms over training.
        mix: ``random`` draws the networks' shares anew each step; ``mean`` gives all the same.
        confidence: Pixels of the mixed pseudo-label with a lower probability are left out.
        where: Pixels that the pseudo-label teaches: ``everywhere``, as published, or only the ``unscribbled`` ones.

    Raises:
        InputError: ``mix`` or ``where`` is unknown.
    """

    scribble_ce: float = 1.0
    mixed_ce: float = 0.0
    mixed_dice: float = 1.0
    ramp: RampUp = field(default_factory=lambda: RampUp(1.0, 0))
    mix: Literal["random", "mean"] = "random"
    confidence: float = 0.0
    where: Literal["everywhere", "unscribbled"] = "everywhere"

    def __post_init__(self) -> None:
        for name, choices in (("mix", ("random", "mean")), ("where", ("everywhere", "unscribbled"))):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"scribble.{name} is {value!r}; it must be one of {', '.join(choices)}.")


def scribble_terms(
    config: ScribbleConfig,
    batch: Batch,
    outputs: dict[str, StudentOutput],
    teachers: Sequence[Tensor],
    step: int,
) -> dict[str, SegmentationTerm]:
    """Return ``scribble/<student>`` and ``mixed/<student>`` for every student.

    Args:
        config: The terms' weights.
        batch: Scribbled samples.
        outputs: The students' outputs on them.
        teachers: What the mixture is made of, one (B, K, *S) probability each.
        step: Training step, counted from 0.
    """
    count = len(teachers)
    weights = convex_weights(count, step) if config.mix == "random" else [1 / count] * count
    target = mixed_pseudo_label(teachers, weights, config.confidence)
    if config.where == "unscribbled":
        target = unknown_target(batch, target)
    ramp = config.ramp(step)
    terms: dict[str, SegmentationTerm] = {}
    for name, output in outputs.items():
        terms[f"scribble/{name}"] = SegmentationTerm(output, batch["label"], config.scribble_ce, 0.0)
        terms[f"mixed/{name}"] = SegmentationTerm(output, target, config.mixed_ce, config.mixed_dice, ramp)
    return terms
