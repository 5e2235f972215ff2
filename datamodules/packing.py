"""A batch in one piece of memory: one message from a loader's worker, and one copy to a GPU."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaseg.datamodules.batch import Batch

ALIGNMENT = 64
"""Bytes that every tensor begins at a multiple of: kernels read 16 at once, and a line of a processor's cache is 64."""


class Place(NamedTuple):
    """Where a contiguous tensor lies in a piece of memory.

    Attributes:
        start: Its first byte.
        dtype: Its type.
        shape: Its shape.
    """

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class PackedBatch:
    """A batch as one tensor and a list of what is where in it.

    Between processes every tensor costs a file descriptor and a connection, and in pinned memory an allocation.

    Attributes:
        flat: (bytes,) uint8.
        fields: The fields of the batch, with a ``Place`` for every tensor that lies in ``flat``.
    """

    flat: Tensor
    fields: dict[str, Any]

    def pin_memory(self) -> "PackedBatch":
        """Return the batch in pinned memory; a loader calls it where it pins what it loads."""
        rest = {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in self.fields.items()}
        return PackedBatch(self.flat.pin_memory(), rest)


def stack(arrays: Mapping[str, Sequence[NDArray[Any]]]) -> dict[str, Tensor]:
    """Stack arrays into tensors that lie one after the other in one piece of memory.

    Args:
        arrays: For each name B arrays of one shape.

    Returns:
        For each name a tensor (B, *shape).
    """
    places: dict[str, Place] = {}
    end = 0
    for name, alike in arrays.items():
        dtype = torch.from_numpy(np.empty(0, np.result_type(*alike))).dtype
        places[name] = Place(-(-end // ALIGNMENT) * ALIGNMENT, dtype, (len(alike), *alike[0].shape))
        end = places[name].end
    flat = torch.empty(end, dtype=torch.uint8)
    tensors = {name: _tensor_at(place, flat) for name, place in places.items()}
    for name, tensor in tensors.items():
        np.stack(arrays[name], out=tensor.numpy())
    return tensors


def pack(batch: Batch) -> PackedBatch:
    """Describe a batch as one tensor; nothing is copied.

    Tensors that do not lie in a row with the image, as those put into the batch later, stay fields of their own.
    """
    image = batch["image"]
    beside = {name: place for name, value in batch.items() if (place := _place_beside(image, value)) is not None}
    start = end = min((place.start for place in beside.values()), default=0)
    places: dict[str, Place] = {}
    for name, place in sorted(beside.items(), key=lambda item: item[1].start):
        if 0 <= place.start - end < ALIGNMENT:
            places[name] = place._replace(start=place.start - start)
            end = place.end
    whole = torch.empty(0, dtype=torch.uint8, device=image.device).set_(image.untyped_storage())
    return PackedBatch(whole[start:end], {**batch, **places})


def unpack(packed: PackedBatch) -> Batch:
    """Return the batch; its tensors are where they are in ``flat``."""
    fields = {
        name: _tensor_at(value, packed.flat) if isinstance(value, Place) else value
        for name, value in packed.fields.items()
    }
    return cast(Batch, fields)


def move(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with those of its tensors moved, in one copy, that lie in a row in memory."""
    packed = pack(batch)
    if packed.flat.device == device:
        return batch
    return unpack(replace(packed, flat=packed.flat.to(device, non_blocking=device.type == "cuda")))


def _tensor_at(place: Place, flat: Tensor) -> Tensor:
    """Return the tensor at a place in ``flat`` (bytes,).

    It shares the memory but is no view: to autograd, a change of one view in place is a change of all.
    """
    first = int(flat.storage_offset()) + place.start
    empty = torch.empty(0, dtype=place.dtype, device=flat.device)
    strides = [math.prod(place.shape[axis + 1 :]) for axis in range(len(place.shape))]
    return empty.set_(flat.untyped_storage(), first // place.dtype.itemsize, place.shape, strides)


def _place_beside(image: Tensor, value: object) -> Place | None:
    """Return where in the image's memory a tensor lies; None for what lies elsewhere or is more than its bytes."""
    if type(value) is not Tensor or value.layout is not torch.strided or not value.is_contiguous():
        return None
    if value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg():
        return None
    start = int(value.storage_offset()) * value.dtype.itemsize
    if start % ALIGNMENT or value.untyped_storage().data_ptr() != image.untyped_storage().data_ptr():
        return None
    return Place(start, value.dtype, tuple(value.shape))
