"""What a batch holds: the one contract between data and methods."""

from enum import IntEnum
from typing import NotRequired, TypedDict

from torch import Tensor

IGNORE_INDEX = 255
"""Label value of a pixel about which nothing is known; every loss skips it."""


class Supervision(IntEnum):
    """How much of a sample's label map is known."""

    NONE = 0
    SCRIBBLE = 1
    DENSE = 2


class Batch(TypedDict):
    """A batch of samples; ``*S`` is (H, W) or (D, H, W).

    One label map serves dense masks, scribbles (mostly ``IGNORE_INDEX``) and unlabelled images (all ``IGNORE_INDEX``).

    Attributes:
        image: (B, C, *S) float32.
        label: (B, *S) int64, ``IGNORE_INDEX`` where unknown; uint8 on the way from a loader to a method.
        supervision: (B,) int64, values of ``Supervision``.
        case_id: B names such as ``patient001_frame01``.
        spacing_mm: B tuples, a number per axis in the order of the array's axes, NaN where the source gave none. No
            tensor: the trainer's precision would round it.
        image_strong: (B, C, *S) float32, the same view as ``image`` under a stronger intensity change.
        audit_label: (B, *S) of the same type, the truth kept aside to watch pseudo-labels; no loss may read it.
        kinds: ``supervision`` once more, as B numbers that stay on the host; ``kinds_of`` reads them.
    """

    image: Tensor
    label: Tensor
    supervision: Tensor
    case_id: list[str]
    spacing_mm: list[tuple[float, ...]]
    image_strong: NotRequired[Tensor]
    audit_label: NotRequired[Tensor]
    kinds: NotRequired[list[int]]


HOST_FIELDS = ("case_id", "spacing_mm", "kinds")
"""The fields of a batch that are no tensors and never leave the host."""


def kinds_of(batch: Batch) -> list[int]:
    """Return the supervision of each sample as numbers; reading the tensor itself would wait for the GPU."""
    return batch["kinds"] if "kinds" in batch else batch["supervision"].tolist()


def with_wide_labels(batch: Batch) -> Batch:
    """Return the batch with label maps in int64, the type that losses index with."""
    wide = batch | {"label": batch["label"].long()}
    return wide | {"audit_label": batch["audit_label"].long()} if "audit_label" in batch else wide
