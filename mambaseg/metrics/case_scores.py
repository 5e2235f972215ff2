"""Scoring whole cases, and gathering the scores over processes.

A case is a patient's volume (or one 2-D image): scoring slices or batches would weigh patients by their size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.errors import InputError
from mambaseg.metrics.overlap import confusion_counts, overlap_scores
from mambaseg.metrics.policy import Empty
from mambaseg.metrics.rows import SURFACE_NAMES, VALUE_NAMES, CaseScore
from mambaseg.metrics.summary import BACKGROUND, PredictorSummary, summarize
from mambaseg.metrics.surface import NSD_TOLERANCE_MM, surface_scores

__all__ = ["CaseScore", "CaseScores", "score_case"]

_CASE_ID_BYTES = 256
_CASE_ID_COLUMNS = _CASE_ID_BYTES // 8
_COLUMNS = _CASE_ID_COLUMNS + 3 + len(VALUE_NAMES)
_EMPTIES = tuple(Empty)


def score_case(
    case_id: str,
    predictor: str,
    prediction: Tensor,
    label: Tensor,
    class_names: Sequence[str],
    spacing_mm: Tensor | Sequence[float] | None = None,
    *,
    surface: bool = True,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    ignore_index: int = IGNORE_INDEX,
) -> list[CaseScore]:
    """Score one prediction of one case, a row per class.

    Args:
        case_id: Name of the case.
        predictor: Name of what predicted.
        prediction: (D, H, W) or (H, W) class indices on any device, at the label's own grid.
        label: The truth, same shape. Voxels equal to ``ignore_index`` count nowhere: overlap skips them, and both
            surfaces are taken of the masks without them.
        class_names: K names, background first.
        spacing_mm: Voxel size per axis, (z, y, x); None or NaN where it is not known.
        surface: Also measure distances, on the CPU; they are NaN otherwise, and for the background always.
        nsd_tolerance_mm: Tolerance of the normalised surface distance.
        ignore_index: Label value of unknown voxels.

    Raises:
        InputError: Maps or spacing do not fit (see ``confusion_counts`` and ``surface_scores``), or no voxel is known.
    """
    counts = confusion_counts(prediction, label, len(class_names), ignore_index)
    if int(counts.tp[0] + counts.fp[0] + counts.fn[0] + counts.tn[0]) == 0:
        raise InputError(f"case {case_id!r}: no voxel of its label is known, so it cannot be scored. Leave it out.")
    overlap = {name: values.tolist() for name, values in overlap_scores(counts).items()}
    distances = [dict.fromkeys(SURFACE_NAMES, torch.nan) for _ in class_names]
    if surface:
        steps = spacing_mm.tolist() if isinstance(spacing_mm, Tensor) else spacing_mm
        guess, truth, known = (values.cpu().numpy() for values in (prediction, label, label != ignore_index))
        for index in range(BACKGROUND + 1, len(class_names)):
            masks = (guess == index) & known, truth == index
            distances[index] = surface_scores(*masks, steps, nsd_tolerance_mm)
    rows = []
    for index, (name, empty) in enumerate(zip(class_names, counts.empty(), strict=True)):
        values: dict[str, Any] = {score: per_class[index] for score, per_class in overlap.items()} | distances[index]
        rows.append(
            CaseScore(case_id, predictor, index, name, empty, nsd_tolerance_mm=nsd_tolerance_mm, **values),
        )
    return rows


class CaseScores(Metric):
    """Rows of scores from all processes, each case counted once.

    A distributed sampler repeats cases to give every process the same number; the first row of each case, predictor and
    class stays and the others are dropped. So a case id must name one case.

    A row travels as int64: the id's bytes, three indices and the bit patterns of float64 scores. That is exact, needs
    no gathering of Python objects, survives casts of the module to half precision, and works on devices without
    float64.

    Args:
        class_names: K names, background first.
        predictors: Names that ``update`` will use.
        nsd_tolerance_mm: Tolerance of the normalised surface distance.
        ignore_index: Label value of unknown voxels.
        **options: Of ``torchmetrics.Metric``.
    """

    full_state_update = False
    table: list[Tensor] | Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        predictors: Sequence[str],
        nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
        ignore_index: int = IGNORE_INDEX,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.class_names = tuple(class_names)
        self.predictors = tuple(predictors)
        self.nsd_tolerance_mm = nsd_tolerance_mm
        self.ignore_index = ignore_index
        self.add_state("table", default=[], dist_reduce_fx="cat")

    def update(
        self,
        case_id: str,
        predictor: str,
        prediction: Tensor,
        label: Tensor,
        spacing_mm: Tensor | Sequence[float] | None = None,
        *,
        surface: bool = True,
    ) -> None:
        """Score one prediction of one case; the arguments are those of ``score_case``.

        Raises:
            InputError: The predictor is unknown, the case id too long, or ``score_case`` refuses the maps.
        """
        if predictor not in self.predictors:
            raise InputError(f"predictor {predictor!r} is not one of {', '.join(self.predictors)}.")
        rows = score_case(
            case_id,
            predictor,
            prediction,
            label,
            self.class_names,
            spacing_mm,
            surface=surface,
            nsd_tolerance_mm=self.nsd_tolerance_mm,
            ignore_index=self.ignore_index,
        )
        encoded = torch.stack([self._encode(row) for row in rows])
        self.table = [*self.table, encoded.to(self.device)]

    def sync(self, *args: Any, **options: Any) -> None:
        """Gather the rows of all processes; a process that scored no case takes part with an empty table."""
        # torchmetrics would gather a float vector for an empty list, which does not fit the others' int64 tables.
        if not len(self.table):
            self.table = [torch.empty(0, _COLUMNS, dtype=torch.int64, device=self.device)]
        super().sync(*args, **options)

    def compute(self) -> Tensor:
        """Return the encoded rows of all processes, duplicates included, (rows, columns) int64."""
        return dim_zero_cat(self.table) if len(self.table) else torch.empty(0, _COLUMNS, dtype=torch.int64)

    def rows(self) -> list[CaseScore]:
        """Return one row per case, predictor and class, sorted; the same list in every process.

        In a distributed run all processes must call this, like any collective.
        """
        unique: dict[tuple[str, int, int], CaseScore] = {}
        for row in map(self._decode, self.compute().cpu()):
            unique.setdefault((row.case_id, self.predictors.index(row.predictor), row.class_index), row)
        return [unique[key] for key in sorted(unique)]

    def summary(self) -> list[PredictorSummary]:
        """Return the statistics per predictor; a collective like ``rows``."""
        return summarize(self.rows())

    def _encode(self, row: CaseScore) -> Tensor:
        name = row.case_id.encode()
        if len(name) > _CASE_ID_BYTES or b"\0" in name:
            raise InputError(f"case id {row.case_id!r} is longer than {_CASE_ID_BYTES} bytes or has a NUL: shorten it.")
        return torch.cat(
            (
                torch.frombuffer(bytearray(name.ljust(_CASE_ID_BYTES, b"\0")), dtype=torch.int64),
                torch.tensor([self.predictors.index(row.predictor), row.class_index, _EMPTIES.index(row.empty)]),
                torch.tensor([row.value(name) for name in VALUE_NAMES], dtype=torch.float64).view(torch.int64),
            )
        )

    def _decode(self, encoded: Tensor) -> CaseScore:
        name, bits = encoded[:_CASE_ID_COLUMNS], encoded[_CASE_ID_COLUMNS + 3 :]
        predictor, class_index, empty = encoded[_CASE_ID_COLUMNS : _CASE_ID_COLUMNS + 3].tolist()
        values: dict[str, Any] = dict(zip(VALUE_NAMES, bits.view(torch.float64).tolist(), strict=True))
        return CaseScore(
            case_id=name.numpy().tobytes().rstrip(b"\0").decode(),
            predictor=self.predictors[predictor],
            class_index=class_index,
            class_name=self.class_names[class_index],
            empty=_EMPTIES[empty],
            nsd_tolerance_mm=self.nsd_tolerance_mm,
            **values,
        )
