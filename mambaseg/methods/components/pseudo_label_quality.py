"""Curves that tell whether pseudo-labels help: agreement, confidence, and truth where it is kept aside."""

import torch
from torch import Tensor

from mambaseg.datamodules.batch import IGNORE_INDEX, Batch
from mambaseg.methods.components.student_output import StudentOutput


@torch.no_grad()
def pseudo_label_quality(batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, Tensor]:
    """Return scalars about the pixels whose label is unknown.

    ``pseudo/<student>/confidence`` is the mean of the largest probability, ``pseudo/agreement`` the share of pixels on
    which all students agree, and ``pseudo/<student>/dice`` the foreground Dice against ``audit_label`` where the data
    has one.

    Args:
        batch: A training batch.
        outputs: The students' outputs on it.
    """
    unknown = batch["label"] == IGNORE_INDEX
    count = unknown.sum().clamp(min=1)
    values: dict[str, Tensor] = {}
    for name, output in outputs.items():
        confidence = output.probabilities.detach().amax(1)
        values[f"pseudo/{name}/confidence"] = (confidence * unknown).sum() / count
        if "audit_label" in batch:
            known = unknown & (batch["audit_label"] != IGNORE_INDEX)
            values[f"pseudo/{name}/dice"] = foreground_dice(
                output.pseudo_label, batch["audit_label"], known, output.logits.shape[1]
            )
    if len(outputs) > 1:
        first, *others = (output.pseudo_label for output in outputs.values())
        agree = torch.stack([other == first for other in others]).all(0)
        values["pseudo/agreement"] = (agree & unknown).sum() / count
    return values


def foreground_dice(prediction: Tensor, truth: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Return the mean over foreground classes of the Dice pooled over a batch; a class absent from both is left out.

    Args:
        prediction: (B, *S) int64.
        truth: (B, *S) int64.
        where: (B, *S) bool, pixels that count.
        num_classes: Classes, background included.
    """
    scores = []
    for c in range(1, num_classes):
        a, b = (prediction == c) & where, (truth == c) & where
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return torch.stack(scores).nanmean()
