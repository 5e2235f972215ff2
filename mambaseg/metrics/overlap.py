"""Overlap of two label maps per class: Dice, IoU, precision, sensitivity, specificity, accuracy.

All of them follow the empty-mask policy (``mambaseg.metrics.policy``): NaN where prediction and truth are both empty,
0 (for specificity and accuracy the plain value) where exactly one is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.errors import InputError
from mambaseg.metrics.policy import Empty


@dataclass(frozen=True)
class ConfusionCounts:
    """Voxels counted per class, one against the rest; every tensor is (K,) int64 on the CPU.

    Attributes:
        tp: Predicted and true.
        fp: Predicted, not true.
        fn: True, not predicted.
        tn: Neither.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    @property
    def both_empty(self) -> Tensor:
        """(K,) bool: neither map has a voxel of the class."""
        return (self.tp + self.fp + self.fn) == 0

    def empty(self) -> list[Empty]:
        """Return, per class, which of the two masks have no voxel."""
        prediction_empty = (self.tp + self.fp == 0).tolist()
        truth_empty = (self.tp + self.fn == 0).tolist()
        return [Empty.of(*pair) for pair in zip(prediction_empty, truth_empty, strict=True)]


def confusion_counts(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX
) -> ConfusionCounts:
    """Count true and false positives and negatives of every class at once.

    Integer counts from one ``bincount``: exact, the same on every device and in every run.

    Args:
        prediction: (H, W) or (D, H, W) class indices, any integer type, any device.
        label: The truth, same shape; voxels equal to ``ignore_index`` are left out of every count.
        num_classes: K.
        ignore_index: Label value of voxels about which nothing is known.

    Raises:
        InputError: The shapes differ, a type is not integer, or a value is no class.
    """
    _check_maps(prediction, label)
    known = label != ignore_index
    truth, guess = label[known].long(), prediction[known].long()
    for name, values in (("label", truth), ("prediction", guess)):
        _check_values(name, values, num_classes, ignore_index)
    matrix = torch.bincount(truth * num_classes + guess, minlength=num_classes**2).cpu()
    matrix = matrix.view(num_classes, num_classes)
    tp = matrix.diagonal().clone()
    fp = matrix.sum(dim=0) - tp
    fn = matrix.sum(dim=1) - tp
    return ConfusionCounts(tp=tp, fp=fp, fn=fn, tn=matrix.sum() - tp - fp - fn)


def dice(counts: ConfusionCounts) -> Tensor:
    """Return 2 TP / (2 TP + FP + FN), (K,) float64."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def iou(counts: ConfusionCounts) -> Tensor:
    """Return TP / (TP + FP + FN), the Jaccard index, (K,) float64."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn, counts)


def precision(counts: ConfusionCounts) -> Tensor:
    """Return TP / (TP + FP), (K,) float64; 0 where an existing structure was missed altogether."""
    return _ratio(counts.tp, counts.tp + counts.fp, counts)


def sensitivity(counts: ConfusionCounts) -> Tensor:
    """Return TP / (TP + FN), the recall, (K,) float64; 0 where the structure does not exist but was predicted."""
    return _ratio(counts.tp, counts.tp + counts.fn, counts)


def specificity(counts: ConfusionCounts) -> Tensor:
    """Return TN / (TN + FP), (K,) float64; NaN also where the class fills the image: there is nothing to reject."""
    negatives = counts.tn + counts.fp
    return _ratio(counts.tn, negatives, counts).masked_fill(negatives == 0, torch.nan)


def accuracy(counts: ConfusionCounts) -> Tensor:
    """Return (TP + TN) / all, one class against the rest, (K,) float64."""
    return _ratio(counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn, counts)


def overlap_scores(counts: ConfusionCounts) -> dict[str, Tensor]:
    """Return every overlap score by name, each (K,) float64."""
    scores = (dice, iou, precision, sensitivity, specificity, accuracy)
    return {score.__name__: score(counts) for score in scores}


def _ratio(numerator: Tensor, denominator: Tensor, counts: ConfusionCounts) -> Tensor:
    # An empty denominator under a mask that exists means that nothing was hit, which is a 0 and not a missing value.
    ratio = numerator.double() / denominator.double().clamp(min=1)
    return ratio.masked_fill(counts.both_empty, torch.nan)


def _check_maps(prediction: Tensor, label: Tensor) -> None:
    if prediction.shape != label.shape:
        raise InputError(
            f"prediction has shape {tuple(prediction.shape)}, label {tuple(label.shape)}: "
            "resample the prediction to the label's own grid before scoring."
        )
    for name, values in (("prediction", prediction), ("label", label)):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise InputError(f"{name} has type {values.dtype}: pass class indices of an integer type (argmax first).")


def _check_values(name: str, values: Tensor, num_classes: int, ignore_index: int) -> None:
    if values.numel() == 0:
        return
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        also = f" (or {ignore_index} for unknown)" if name == "label" else ""
        raise InputError(
            f"{name} holds the value {wrong}: with {num_classes} classes it must lie in 0..{num_classes - 1}{also}. "
            "Map other values at import, or raise num_classes."
        )
