"""Projector heads and class maps around the pixel-level InfoNCE loss."""

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from mambaseg.datamodules.batch import IGNORE_INDEX, Batch
from mambaseg.losses.pixel_contrast import gather_at, pixel_info_nce, sample_pixels, unit
from mambaseg.methods.components.ramp_up import RampUp
from mambaseg.methods.components.student_output import StudentOutput, mean_probabilities


@dataclass
class PixelContrastConfig:
    """The contrastive term.

    Attributes:
        weight: Its weight over training; constant when ``steps`` is 0.
        pixels: Pixels drawn from each rank's batch; bounds time and memory.
        embedding: Length of the projected vectors.
        temperature: Divides the cosine similarities.
        confidence: A pixel without a label takes part where the students' mean probability of its class is at least
            this.
    """

    weight: RampUp = RampUp(weight=0.1, steps=0)  # noqa: RUF009  frozen, so sharing it is safe
    pixels: int = 1024
    embedding: int = 64
    temperature: float = 0.1
    confidence: float = 0.9


class PixelContrast(nn.Module):
    """InfoNCE between every two students at sampled pixels, through a projector of each student's own.

    A true pixel-level contrast in the sense of https://arxiv.org/abs/2101.11939 (class-aware negatives) between
    networks: sampled first and projected after, so its cost does not depend on the image size.

    Args:
        channels: Decoder channels of each student.
        strides: Pixels a cell of each student's decoder map.
        config: The term's options.
    """

    def __init__(self, channels: dict[str, int], strides: dict[str, int], config: PixelContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = strides
        self.projectors = nn.ModuleDict({name: projector(width, config.embedding) for name, width in channels.items()})

    def forward(self, batch: Batch, outputs: dict[str, StudentOutput]) -> Tensor:
        """Return the mean loss over ordered pairs of students, a scalar, not yet weighted."""
        sample = sample_pixels(self.class_map(batch, outputs), self.config.pixels)
        vectors = {
            name: unit(self.projectors[name](gather_at(output.decoded, sample, self.strides[name])))
            for name, output in outputs.items()
        }
        anchors, keys = (torch.stack(side) for side in zip(*permutations(vectors.values(), 2), strict=True))
        return pixel_info_nce(anchors, keys, sample, self.config.temperature)

    @torch.no_grad()
    def class_map(self, batch: Batch, outputs: dict[str, StudentOutput]) -> Tensor:
        """Return (B, *S) int64: the label where known, else the ensemble's class where it is sure, else 255."""
        confidence, pseudo_label = mean_probabilities(list(outputs.values())).max(1)
        sure = torch.where(confidence >= self.config.confidence, pseudo_label, IGNORE_INDEX)
        return torch.where(batch["label"] == IGNORE_INDEX, sure, batch["label"])

    def projector(self, name: str) -> nn.Module:
        """Return the head of one student."""
        return self.projectors[name]


def projector(channels: int, embedding: int) -> nn.Sequential:
    """Build a two-layer head on feature vectors (N, channels) -> (N, embedding).

    LayerNorm instead of the usual BatchNorm: the vectors of a sample are not i.i.d. over ranks.
    """
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, embedding)
    )
