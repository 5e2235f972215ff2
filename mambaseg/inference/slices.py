"""Volumes segmented slice by slice, at the size that the networks were trained for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENSEMBLE = "ensemble"


def full_size(logits: Tensor | list[Tensor]) -> Tensor:
    """Return the logits of the whole image from what a network gives: just those, or a list that starts with them."""
    return logits[0] if isinstance(logits, list) else logits


@dataclass(frozen=True)
class SliceInference:
    """How a volume becomes a label map.

    Attributes:
        size: Height and width that the networks see.
        resize: ``nearest`` is the published protocol: nearest-neighbour zoom there, argmax, nearest-neighbour zoom
            back. ``linear`` resizes the image and the probabilities bilinearly and takes the argmax at native size.
        batch_size: Slices in one forward pass.
    """

    size: tuple[int, int] = (224, 224)
    resize: Literal["nearest", "linear"] = "nearest"
    batch_size: int = 32

    @torch.no_grad()
    def __call__(self, students: Mapping[str, nn.Module], volume: Tensor) -> dict[str, Tensor]:
        """Segment one volume with every student and, where there are several, with their mean probability.

        Args:
            students: Networks in evaluation mode, by name.
            volume: (C, D, H, W) image.

        Returns:
            A label map (D, H, W) uint8 at native size for each student, and for ``ensemble``.
        """
        slices = volume.transpose(0, 1)
        labels: dict[str, list[Tensor]] = {}
        for start in range(0, len(slices), self.batch_size):
            images = self._to_network_size(slices[start : start + self.batch_size])
            probabilities = {name: full_size(network(images)).float().softmax(1) for name, network in students.items()}
            if len(students) > 1:
                probabilities[ENSEMBLE] = torch.stack(list(probabilities.values())).mean(0)
            for name, probability in probabilities.items():
                labels.setdefault(name, []).append(self._to_native_size(probability, volume.shape[2:]))
        return {name: torch.cat(parts) for name, parts in labels.items()}

    def _to_network_size(self, images: Tensor) -> Tensor:
        if self.resize == "linear":
            return F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        return zoom_nearest(images, self.size)

    def _to_native_size(self, probability: Tensor, size: torch.Size) -> Tensor:
        if self.resize == "linear":
            return F.interpolate(probability, size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)
        return zoom_nearest(probability.argmax(1).to(torch.uint8), (size[0], size[1]))


def zoom_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``x`` (..., H, W) at another size, with the sampling grid of ``scipy.ndimage.zoom(order=0)``.

    For some pairs of sizes rounding makes scipy lose the last row or column; it is kept here.
    """
    rows, columns = (zoom_index(n_in, n_out, x.device) for n_in, n_out in zip(x.shape[-2:], size, strict=True))
    return x[..., rows[:, None], columns]


def zoom_index(n_in: int, n_out: int, device: torch.device | None = None) -> Tensor:
    """Return (n_out,) int64: which of ``n_in`` samples each output takes when both grids' corners coincide."""
    step = (n_in - 1) / (n_out - 1) if n_out > 1 else 0.0
    position = torch.arange(n_out, dtype=torch.float64, device=device) * step
    return torch.floor(position + 0.5).long().clamp_(max=n_in - 1)
