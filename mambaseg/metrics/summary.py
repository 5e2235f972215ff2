"""From rows to the numbers of a table: per case, then per class, then the mean.

The headline is the mean over the foreground classes of the mean over cases. The published averages count the background
as one more class (it lifts an ACDC Dice of 0.88 to 0.91), so that mean stands beside it, never in its place.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mambaseg.metrics.policy import Empty
from mambaseg.metrics.rows import OVERLAP_NAMES, VALUE_NAMES, CaseScore

BACKGROUND = 0


@dataclass(frozen=True)
class Statistic:
    """A mean that says what is behind it.

    Attributes:
        mean: NaN where no case has the score.
        std: Sample standard deviation over cases (n - 1); NaN below two cases.
        n_valid: Cases that have the score.
    """

    mean: float
    std: float
    n_valid: int


@dataclass(frozen=True)
class ClassSummary:
    """One class of one predictor.

    Attributes:
        class_index: 0 is the background.
        class_name: Its name.
        scores: A statistic for each of ``VALUE_NAMES``.
        n_cases: Rows behind it: ``n_both_empty`` of them have no score, the others are in the overlap means.
        n_both_empty: Cases without the class, and none predicted.
        n_missed: Cases where the class exists and nothing was predicted.
        n_spurious: Cases where the class does not exist and something was predicted.
        n_unknown_spacing: Cases with distances in voxels only.
    """

    class_index: int
    class_name: str
    scores: Mapping[str, Statistic]
    n_cases: int
    n_both_empty: int
    n_missed: int
    n_spurious: int
    n_unknown_spacing: int


@dataclass(frozen=True)
class PredictorSummary:
    """One predictor over all cases.

    Attributes:
        predictor: Its name.
        classes: In the order of their indices, background first.
        foreground: The headline, a statistic for each of ``VALUE_NAMES``. ``mean`` averages the class means; ``std``
            and ``n_valid`` are over cases, each represented by the mean over its own classes.
        with_background: The same with the background as one more class; overlap scores only, since the surface of the
            background is mostly the border of the image.
    """

    predictor: str
    classes: tuple[ClassSummary, ...]
    foreground: Mapping[str, Statistic]
    with_background: Mapping[str, Statistic]

    @property
    def foreground_classes(self) -> tuple[ClassSummary, ...]:
        """The classes of the headline."""
        return tuple(summary for summary in self.classes if summary.class_index != BACKGROUND)


def summarize(rows: Iterable[CaseScore]) -> list[PredictorSummary]:
    """Summarize every predictor, in the order of first appearance.

    Args:
        rows: One per case, predictor and class; duplicates would count twice (``CaseScores.rows`` has none).
    """
    by_predictor: dict[str, list[CaseScore]] = {}
    for row in rows:
        by_predictor.setdefault(row.predictor, []).append(row)
    return [_summarize_predictor(predictor, own) for predictor, own in by_predictor.items()]


def _summarize_predictor(predictor: str, rows: Sequence[CaseScore]) -> PredictorSummary:
    by_class: dict[int, list[CaseScore]] = {}
    for row in rows:
        by_class.setdefault(row.class_index, []).append(row)
    foreground = [row for row in rows if row.class_index != BACKGROUND]
    return PredictorSummary(
        predictor=predictor,
        classes=tuple(_summarize_class(by_class[index]) for index in sorted(by_class)),
        foreground={name: _mean_over_classes(foreground, name) for name in VALUE_NAMES},
        with_background={name: _mean_over_classes(rows, name) for name in OVERLAP_NAMES},
    )


def _summarize_class(rows: Sequence[CaseScore]) -> ClassSummary:
    empties = [row.empty for row in rows]
    return ClassSummary(
        class_index=rows[0].class_index,
        class_name=rows[0].class_name,
        scores={name: _statistic(row.value(name) for row in rows) for name in VALUE_NAMES},
        n_cases=len(rows),
        n_both_empty=empties.count(Empty.BOTH),
        n_missed=empties.count(Empty.PREDICTION),
        n_spurious=empties.count(Empty.TRUTH),
        n_unknown_spacing=sum(math.isnan(row.hd95_mm) and not math.isnan(row.hd95_vox) for row in rows),
    )


def _mean_over_classes(rows: Iterable[CaseScore], name: str) -> Statistic:
    by_class: dict[int, list[float]] = {}
    by_case: dict[str, list[float]] = {}
    for row in rows:
        value = row.value(name)
        if not math.isnan(value):
            by_class.setdefault(row.class_index, []).append(value)
            by_case.setdefault(row.case_id, []).append(value)
    over_cases = _statistic(statistics.fmean(values) for values in by_case.values())
    class_means = _statistic(statistics.fmean(values) for values in by_class.values())
    return Statistic(class_means.mean, over_cases.std, over_cases.n_valid)


def _statistic(values: Iterable[float]) -> Statistic:
    valid = [value for value in values if not math.isnan(value)]
    return Statistic(
        mean=statistics.fmean(valid) if valid else math.nan,
        std=statistics.stdev(valid) if len(valid) > 1 else math.nan,
        n_valid=len(valid),
    )
