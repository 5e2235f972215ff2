"""The section of a report about one evaluation: means, classes, cases from the worst on."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from mambaseg.metrics.headline import headline_predictor
from mambaseg.metrics.policy import EMPTY_POLICY
from mambaseg.metrics.rows import CaseScore
from mambaseg.metrics.summary import BACKGROUND, PredictorSummary, summarize
from mambaseg.reports.html import Markup, element, facts, folded, join, table
from mambaseg.reports.run_record import ScoreTable
from mambaseg.reports.tables import DISTANCE_COLUMNS, MISSING, OVERLAP_COLUMNS, short_cell

SHOWN_CASES = 20
"""Cases in the open table of the worst; the others stand folded below."""
SUMMARY_SCORES = ("dice", "iou", "hd95_mm", "hd95_vox", "asd_mm", "assd_mm", "nsd")
PART_TITLES = {"val": "Validation", "test": "Test"}


def score_section(part: str, scores: ScoreTable) -> Markup:
    """Return the section about an evaluation.

    Args:
        part: ``val`` or ``test``.
        scores: What the evaluation wrote.
    """
    summaries = summarize(scores.rows)
    cases = _worst_first(scores.rows)
    predictors = [entry.predictor for entry in summaries]
    parts = [
        element("h2", f"{PART_TITLES[part]} scores"),
        _summary_table(summaries, len(cases)),
        _class_table(summaries, len(cases)),
        element("h3", "Cases, worst first"),
        _case_table(cases[:SHOWN_CASES], scores.rows, predictors),
    ]
    if len(cases) > SHOWN_CASES:
        others = cases[SHOWN_CASES:]
        parts.append(folded(f"The other {len(others)} cases", _case_table(others, scores.rows, predictors)))
    policy = element("p", f"Empty masks: {EMPTY_POLICY}")
    parts.append(folded("What was scored, and how empty masks count", facts(scores.about), policy))
    return join(parts)


def _summary_table(summaries: Sequence[PredictorSummary], cases: int) -> Markup:
    shown = [n for n in SUMMARY_SCORES if any(entry.foreground[n].n_valid for entry in summaries)]
    titles = OVERLAP_COLUMNS | DISTANCE_COLUMNS
    rows = [[s.predictor, *(short_cell(name, s.foreground[name], cases) for name in shown)] for s in summaries]
    caption = f"Mean ± standard deviation over {cases} cases (n where fewer count), mean of the foreground classes."
    return table(["predictor", *(titles[name] for name in shown)], rows, caption)


def _class_table(summaries: Sequence[PredictorSummary], cases: int) -> Markup:
    """Return Dice by class, and how many structures each predictor missed altogether."""
    names = list(dict.fromkeys(group.class_name for entry in summaries for group in entry.foreground_classes))
    rows = []
    for entry in summaries:
        groups = {group.class_name: group for group in entry.foreground_classes}
        cells = [short_cell("dice", groups[n].scores["dice"], cases) if n in groups else MISSING for n in names]
        missed = sum(group.n_missed for group in groups.values())
        rows.append([entry.predictor, *cells, f"{missed} of {sum(group.n_cases for group in groups.values())}"])
    caption = "Dice by class; missed: structures of which nothing was found."
    return table(["predictor", *names, "missed"], rows, caption)


def _case_table(cases: Sequence[str], rows: Iterable[CaseScore], predictors: Sequence[str]) -> Markup:
    """Return a line for every case: each predictor's Dice, then the classes of the headline predictor."""
    dice = {(row.case_id, row.predictor, row.class_name): row.dice for row in rows if row.class_index != BACKGROUND}
    classes = list(dict.fromkeys(class_name for _, _, class_name in dice))
    shown = headline_predictor(predictors)
    lines = [
        [case]
        + [_number(_mean(dice.get((case, predictor, c), math.nan) for c in classes)) for predictor in predictors]
        + [_number(dice.get((case, shown, c), math.nan)) for c in classes]
        for case in cases
    ]
    header = ["case", *predictors, *(f"{shown}: {c}" for c in classes)]
    return table(header, lines, "Dice; the mean of the foreground, then by class.")


def _worst_first(rows: Sequence[CaseScore]) -> list[str]:
    """Return the cases by the mean foreground Dice of all predictors, cases without a score last."""
    values: dict[str, list[float]] = {}
    for row in rows:
        own = values.setdefault(row.case_id, [])
        if row.class_index != BACKGROUND:
            own.append(row.dice)
    means = {case: _mean(own) for case, own in values.items()}
    return sorted(means, key=lambda case: (math.isnan(means[case]), means[case], case))


def _number(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.3f}"


def _mean(values: Iterable[float]) -> float:
    valid = [value for value in values if not math.isnan(value)]
    return fmean(valid) if valid else math.nan
