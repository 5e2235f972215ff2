"""Contrast between pixels: InfoNCE across two networks with class-aware negatives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mambaseg.losses.over_processes import over_processes, processes

IGNORE_INDEX = 255


@dataclass(frozen=True)
class PixelSample:
    """Pixels chosen from a batch.

    Attributes:
        image: (N,) int64, index of the image in the batch.
        position: S tensors (N,) int64, one a spatial axis, at full resolution.
        classes: (N,) int64, the class of each pixel.
        valid: (N,) bool; where the batch has fewer usable pixels than N, the rest is invalid.
    """

    image: Tensor
    position: tuple[Tensor, ...]
    classes: Tensor
    valid: Tensor


@torch.no_grad()
def sample_pixels(class_map: Tensor, count: int) -> PixelSample:
    """Draw pixels without replacement, every present class equally often in expectation.

    Gumbel top-k over the whole map: no loop over classes, no wait for the GPU, and always ``count`` results.

    Args:
        class_map: (B, *S) int64, 255 where the class is not known well enough to contrast.
        count: N, how many pixels to draw.

    Returns:
        The sample, of ``min(count, number of pixels)`` entries.
    """
    flat = class_map.flatten()
    usable = flat != IGNORE_INDEX
    log_weight = -_histogram(flat).clamp(min=1).float().log()[flat]
    uniform = torch.rand(flat.shape, device=flat.device).clamp_(1e-12, 1 - 1e-7)
    score = (log_weight - torch.log(-torch.log(uniform))).masked_fill(~usable, -torch.inf)
    chosen = score.topk(min(count, flat.numel()), sorted=False).indices
    image, *position = _places(chosen, class_map.shape)
    return PixelSample(image, tuple(position), flat[chosen], usable[chosen])


def _places(index: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """Return where in a tensor of a shape its flat indices lie, a tensor for each axis.

    ``torch.unravel_index`` sends the shape to a GPU, which the host waits for.
    """
    places: list[Tensor] = []
    for size in reversed(shape):
        places.insert(0, index % size)
        index = index // size
    return places


def _histogram(values: Tensor) -> Tensor:
    """Return how often each of 0 ... 255 is in ``values`` (N,), (256,)."""
    # On a GPU, bincount would make the host wait for the largest value.
    return _histogram_by_sorting(values) if values.is_cuda else torch.bincount(values, minlength=IGNORE_INDEX + 1)


def _histogram_by_sorting(values: Tensor) -> Tensor:
    each = torch.arange(IGNORE_INDEX + 1, dtype=torch.uint8, device=values.device)
    up_to = torch.searchsorted(values.to(torch.uint8).sort().values, each, right=True)
    return torch.diff(up_to, prepend=up_to.new_zeros(1))


def gather_at(features: Tensor, sample: PixelSample, stride: int) -> Tensor:
    """Return the feature vectors (N, F) at sampled pixels.

    Args:
        features: (B, F, *S') map whose cell covers ``stride`` pixels a side.
        sample: Pixels at full resolution.
        stride: Pixels a cell.
    """
    channels_last = features.movedim(1, -1)
    return channels_last[(sample.image, *(p // stride for p in sample.position))]


def pixel_info_nce(anchors: Tensor, keys: Tensor, sample: PixelSample, temperature: float) -> Tensor:
    """Return the InfoNCE loss of one network's pixels against the other's, for one pair of networks or several.

    A pixel's positive is the same pixel seen by the other network; its negatives are the other network's vectors at
    sampled pixels of every *other* class, on all DDP ranks. Pixels of the same class elsewhere are neither: pushing
    them away would tear a class apart. Keys get no gradient. Memory is N x (N · ranks) a pair, whatever the image size.

    Args:
        anchors: (..., N, E) unit vectors of the network that learns.
        keys: (..., N, E) unit vectors of the other network at the same pixels.
        sample: Classes and validity of the pixels.
        temperature: Divides the cosine similarities.

    Returns:
        The mean over pairs and valid anchors, those of all ranks; 0 where there is none.
    """
    keys = keys.detach()
    all_keys, all_classes, all_valid = _of_all_ranks(keys, sample)
    positive = (anchors * keys).sum(-1, keepdim=True) / temperature
    similarity = anchors @ all_keys.mT / temperature
    is_negative = (sample.classes[:, None] != all_classes[None, :]) & all_valid[None, :]
    logits = torch.cat([positive, similarity.masked_fill(~is_negative, -torch.inf)], dim=-1)
    per_anchor = torch.logsumexp(logits, dim=-1) - positive.squeeze(-1)
    total, count = over_processes((per_anchor * sample.valid).sum(-1), sample.valid.sum())
    return (total / count.clamp(min=1)).mean()


def _of_all_ranks(keys: Tensor, sample: PixelSample) -> tuple[Tensor, Tensor, Tensor]:
    """Return the keys (..., M, E), classes (M,) and validity (M,) of all ranks' pixels, by one exchange."""
    if processes() == 1:
        return keys, sample.classes, sample.valid
    by_pixel = keys.movedim(-2, 0)
    # Classes are below 256, which a floating-point number holds exactly.
    own = torch.cat([by_pixel.flatten(1), sample.classes[:, None], sample.valid[:, None]], dim=1)
    parts = [torch.empty_like(own) for _ in range(processes())]
    dist.all_gather(parts, own)
    vectors, classes, valid = torch.split(torch.cat(parts), [own.shape[1] - 2, 1, 1], dim=1)
    all_keys = vectors.reshape(-1, *by_pixel.shape[1:]).movedim(0, -2)
    return all_keys, classes.squeeze(1).long(), valid.squeeze(1).bool()


def unit(vectors: Tensor) -> Tensor:
    """Return ``vectors`` (N, E) scaled to length 1, in fp32."""
    return F.normalize(vectors.float(), dim=-1)
