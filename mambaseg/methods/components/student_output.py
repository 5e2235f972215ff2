"""What a student said about a batch, computed once and shared by all loss terms."""

from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mambaseg.datamodules.batch import Batch, kinds_of
from mambaseg.kernels.largest_class import largest_class
from mambaseg.methods.components.sent_to import sent_to
from mambaseg.networks.layers.layer_norm import on_own_kernels


class StudentOutput:
    """Logits of one student and what is derived from them, each derived once.

    Args:
        logits: (B, K, *S).
        decoded: (B, F, *S') decoder features.
    """

    def __init__(self, logits: Tensor, decoded: Tensor) -> None:
        self.logits = logits
        self.decoded = decoded

    @classmethod
    def joined(cls, parts: "list[StudentOutput]") -> "StudentOutput":
        """Return the outputs of consecutive parts of a batch as that of the whole."""
        return cls(torch.cat([part.logits for part in parts]), torch.cat([part.decoded for part in parts]))

    @cached_property
    def probabilities(self) -> Tensor:
        """(B, K, *S) softmax in fp32 (fp64 for fp64 logits), with gradient."""
        wide = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        return wide.softmax(dim=1)

    @cached_property
    def pseudo_label(self) -> Tensor:
        """(B, *S) int64 argmax; it carries no gradient."""
        logits = self.logits.detach()
        return largest_class(logits) if on_own_kernels(logits) else logits.argmax(dim=1)


def mean_probabilities(outputs: list[StudentOutput]) -> Tensor:
    """Return the mean of the students' probabilities, (B, K, *S), without gradient."""
    return torch.stack([output.probabilities.detach() for output in outputs]).mean(0)


def rows_of(batch: Batch, outputs: dict[str, StudentOutput], rows: list[int]) -> tuple[Batch, dict[str, StudentOutput]]:
    """Return some samples of a batch with the students' outputs on them.

    Args:
        batch: A batch.
        outputs: The students' outputs on it.
        rows: The samples wanted.
    """
    index = sent_to(batch["image"].device, np.array(rows, np.int64))
    part: dict[str, Any] = {key: value[index] for key, value in batch.items() if isinstance(value, Tensor)}
    part["case_id"] = [batch["case_id"][row] for row in rows]
    part["spacing_mm"] = [batch["spacing_mm"][row] for row in rows]
    part["kinds"] = [kinds_of(batch)[row] for row in rows]
    part_outputs = {name: StudentOutput(o.logits[index], o.decoded[index]) for name, o in outputs.items()}
    return cast(Batch, part), part_outputs
