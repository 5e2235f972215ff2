"""The report of one or more runs as one HTML file, from what the runs left in their folders."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mambaseg.metrics.policy import EMPTY_POLICY
from mambaseg.metrics.rows import CaseScore
from mambaseg.metrics.summary import BACKGROUND, Statistic, summarize
from mambaseg.reports.curves import FOREGROUND_DICE, chart_svg, learning_curves
from mambaseg.reports.html import Content, Markup, element, facts, folded, join, page, picture, table
from mambaseg.reports.run_record import RunRecord, ScoreTable
from mambaseg.reports.style import STYLE

SHOWN_CASES = 20
"""Cases in the open table of the worst; the others stand folded below."""
MISSING = "–"
SUMMARY_SCORES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95 mm",
    "hd95_vox": "HD95 vox",
    "asd_mm": "ASD mm",
    "assd_mm": "ASSD mm",
    "nsd": "NSD",
}
PART_TITLES = {"val": "Validation", "test": "Test"}
OVERLAY_STEP = re.compile(r"step(\d+)_(.+)\.png")


def report_html(runs: Sequence[RunRecord]) -> str:
    """Compose the report.

    Args:
        runs: One for the report of a run, several for a comparison; their names differ.
    """
    if len(runs) == 1:
        return page(f"{runs[0].name}: report", STYLE, element("h1", runs[0].name), *_run_sections(runs[0]))
    sections = [
        element("h1", f"Comparison of {len(runs)} runs"),
        element("p", "Colours are runs, line styles are predictors.", class_="lead"),
        element("h2", "Scores"),
        _comparison_table(runs),
        element("h2", "Learning curves"),
        _charts(runs),
        *(folded(f"Everything about {run.name}", *_run_sections(run)) for run in runs),
    ]
    return page(f"Comparison of {len(runs)} runs", STYLE, *sections)


def _run_sections(run: RunRecord) -> list[Markup]:
    return [
        _lead(run),
        element("h2", "Learning curves"),
        _charts([run]),
        *(_score_section(part, run.scores[part]) for part in PART_TITLES if part in run.scores),
        *_overlay_section(run),
        *_provenance_section(run),
    ]


def _lead(run: RunRecord) -> Markup:
    best = [
        f"{predictor} {series.best[1]:.4f} at step {series.best[0]} (last {series.last:.4f})"
        for predictor, series in _foreground_dice(run).items()
    ]
    lines = [element("p", f"{run.card.get('method', 'Run')} in {run.folder}", class_="lead")]
    if best:
        lines.append(element("p", "Best validation Dice, mean of the foreground: " + "; ".join(best) + "."))
    if run.skipped_lines:
        text = f"{run.skipped_lines} lines of metrics.jsonl could not be read and are left out."
        lines.append(element("p", text, class_="warning"))
    return join(lines)


def _charts(runs: Sequence[RunRecord]) -> Markup:
    drawn = [
        element("figure", element("figcaption", chart.title), Markup(chart_svg(chart)))
        for chart in learning_curves(runs)
    ]
    if not drawn:
        return element("p", "Nothing was logged yet.")
    return element("div", *drawn, class_="charts")


def _comparison_table(runs: Sequence[RunRecord]) -> Markup:
    """Return a line for every run and predictor: validation Dice from the curves, test Dice where there was a test."""
    rows: list[list[Content]] = []
    for run in runs:
        test = _test_dice(run)
        for predictor, series in _foreground_dice(run).items():
            step, best = series.best
            curve = (f"{best:.4f}", step, f"{series.last:.4f}", series.steps[-1])
            origin = (_speed(run), str(run.card.get("seed", MISSING)), _commit(run))
            rows.append([run.name, predictor, *curve, test.get(predictor, MISSING), *origin])
    header = ["run", "predictor", "best val Dice", "at step", "last val Dice", "at step", "test Dice", "steps/s"]
    return table([*header, "seed", "commit"], rows, "Dice is the mean of the foreground classes.")


def _test_dice(run: RunRecord) -> dict[str, str]:
    if "test" not in run.scores:
        return {}
    return {entry.predictor: _cell("dice", entry.foreground["dice"]) for entry in summarize(run.scores["test"].rows)}


def _score_section(part: str, scores: ScoreTable) -> Markup:
    summaries = summarize(scores.rows)
    rows = [[entry.predictor, *(_cell(name, entry.foreground[name]) for name in SUMMARY_SCORES)] for entry in summaries]
    cases = _worst_first(scores.rows)
    predictors = [entry.predictor for entry in summaries]
    return join(
        [
            element("h2", f"{PART_TITLES[part]} scores"),
            table(
                ["predictor", *SUMMARY_SCORES.values()],
                rows,
                "Mean ± standard deviation over cases (n cases), mean of the foreground classes.",
            ),
            element("h3", "Cases, worst first"),
            _case_table(cases[:SHOWN_CASES], scores.rows, predictors),
            *(
                [
                    folded(
                        f"The other {len(cases) - SHOWN_CASES} cases",
                        _case_table(cases[SHOWN_CASES:], scores.rows, predictors),
                    )
                ]
                if len(cases) > SHOWN_CASES
                else []
            ),
            element("p", f"Empty masks: {EMPTY_POLICY}", class_="lead"),
            folded("What was scored", facts(scores.about)),
        ]
    )


def _case_table(cases: Sequence[str], rows: Iterable[CaseScore], predictors: Sequence[str]) -> Markup:
    """Return a line for every case: each predictor's Dice, then the classes of the last predictor (the ensemble)."""
    dice = {(row.case_id, row.predictor, row.class_name): row.dice for row in rows if row.class_index != BACKGROUND}
    classes = list(dict.fromkeys(class_name for _, _, class_name in dice))
    last = predictors[-1]
    lines = [
        [case]
        + [_number(_mean(dice.get((case, predictor, c), math.nan) for c in classes)) for predictor in predictors]
        + [_number(dice.get((case, last, c), math.nan)) for c in classes]
        for case in cases
    ]
    return table(
        ["case", *predictors, *(f"{last}: {c}" for c in classes)],
        lines,
        "Dice; the mean of the foreground, then by class.",
    )


def _worst_first(rows: Sequence[CaseScore]) -> list[str]:
    """Return the cases by the mean foreground Dice of all predictors, cases without a score last."""
    values: dict[str, list[float]] = {}
    for row in rows:
        own = values.setdefault(row.case_id, [])
        if row.class_index != BACKGROUND:
            own.append(row.dice)
    means = {case: _mean(own) for case, own in values.items()}
    return sorted(means, key=lambda case: (math.isnan(means[case]), means[case], case))


def _overlay_section(run: RunRecord) -> list[Markup]:
    if not run.overlays:
        return []
    figures = []
    for path in run.overlays:
        match = OVERLAY_STEP.fullmatch(path.name)
        title = f"{match[2]}, step {int(match[1])}" if match else path.name
        figures.append(element("figure", element("figcaption", title), picture(path, f"Predictions for {title}")))
    return [element("h2", "Predictions of the best and of the last validation"), *figures]


def _provenance_section(run: RunRecord) -> list[Markup]:
    parts = [element("h2", "How to get these numbers again")]
    if run.card:
        card = {name: value for name, value in run.card.items() if name not in {"data", "starts"}}
        parts += [facts(card), *_data_facts(run.card.get("data") or {}), *_starts(run.card.get("starts") or [])]
    else:
        parts.append(element("p", "The run has no run_card.json: add the RunCard callback.", class_="warning"))
    if run.config:
        parts.append(folded("Configuration", element("pre", run.config)))
    return parts


def _data_facts(data: Mapping[str, Any]) -> list[Markup]:
    cases: Mapping[str, Mapping[str, Any]] = data.get("cases") or {}
    rows: list[list[Content]] = [[part, entry["count"], entry["sha256"][:16]] for part, entry in cases.items()]
    listed = "\n".join(f"{part}: {' '.join(entry['ids'])}" for part, entry in cases.items())
    parts = [element("h3", "Data"), facts({name: value for name, value in data.items() if name != "cases"})]
    if rows:
        parts += [table(["part", "cases", "sha256 of the list"], rows), folded("Case ids", element("pre", listed))]
    return parts


def _starts(starts: Sequence[Mapping[str, Any]]) -> list[Markup]:
    if len(starts) < 2:
        return []
    rows: list[list[Content]] = [[str(start.get("time")), str(start.get("step"))] for start in starts]
    return [element("h3", "Starts and resumes"), table(["time", "at step"], rows)]


def _foreground_dice(run: RunRecord) -> dict[str, Any]:
    return {match[1]: series for name, series in run.series.items() if (match := FOREGROUND_DICE.fullmatch(name))}


def _speed(run: RunRecord) -> str:
    series = run.series.get("speed/steps_per_s")
    return MISSING if series is None else f"{fmean(series.values):.2f}"


def _commit(run: RunRecord) -> str:
    code: Mapping[str, Any] = run.card.get("code") or {}
    sha = code.get("git_sha")
    return MISSING if not sha else sha[:10] + (" + changes" if code.get("git_dirty") else "")


def _cell(name: str, statistic: Statistic) -> str:
    digits = 2 if name.endswith(("_mm", "_vox")) else 4
    if statistic.n_valid == 0:
        return MISSING
    return f"{statistic.mean:.{digits}f} ± {_number(statistic.std, digits)} (n={statistic.n_valid})"


def _number(value: float, digits: int = 4) -> str:
    return MISSING if math.isnan(value) else f"{value:.{digits}f}"


def _mean(values: Iterable[float]) -> float:
    valid = [value for value in values if not math.isnan(value)]
    return fmean(valid) if valid else math.nan
