"""The report of one or more runs as one HTML file, from what the runs left in their folders."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaseg.metrics.headline import HEADLINE_MEANING
from mambaseg.reports.curves import chart_svg, learning_curves
from mambaseg.reports.html import Content, Markup, element, facts, folded, page, picture, table
from mambaseg.reports.overview import DICE_COLUMNS, dice_cells, foreground_dice, overview, speed
from mambaseg.reports.run_record import RunRecord
from mambaseg.reports.score_section import PART_TITLES, score_section
from mambaseg.reports.style import STYLE
from mambaseg.reports.tables import MISSING

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
        _comparison_table(runs),
        element("h2", "Learning curves"),
        element("p", "Colours are runs, line styles are predictors.", class_="lead"),
        _charts(runs),
        *(folded(f"Everything about {run.name}", *_run_sections(run)) for run in runs),
    ]
    return page(f"Comparison of {len(runs)} runs", STYLE, *sections)


def _run_sections(run: RunRecord) -> list[Markup]:
    return [
        overview(run),
        element("h2", "Learning curves"),
        _charts([run]),
        *_overlay_section(run),
        *(score_section(part, run.scores[part]) for part in PART_TITLES if part in run.scores),
        *_provenance_section(run),
    ]


def _charts(runs: Sequence[RunRecord]) -> Markup:
    drawn = [
        element("figure", element("figcaption", chart.title), Markup(chart_svg(chart)))
        for chart in learning_curves(runs)
    ]
    if not drawn:
        return element("p", "Nothing was logged twice yet, so there is no curve to draw.")
    return element("div", *drawn, class_="charts")


def _comparison_table(runs: Sequence[RunRecord]) -> Markup:
    """Return a line for every run and predictor: validation Dice from the curves, test Dice where there was a test."""
    rows: list[list[Content]] = []
    for run in runs:
        origin = (speed(run), str(run.card.get("seed", MISSING)), _commit(run))
        for predictor, series in foreground_dice(run).items():
            rows.append([run.name, predictor, *dice_cells(run, predictor, series), *origin])
    caption = f"Dice, mean of the foreground. The headline is each run's last line: {HEADLINE_MEANING}."
    return table(["run", "predictor", *DICE_COLUMNS, "steps/s", "seed", "commit"], rows, caption, texts=2)


def _overlay_section(run: RunRecord) -> list[Markup]:
    """Return the pictures of the last validation, then those of the best where it was an earlier one."""
    by_step: dict[int, list[tuple[str, Path]]] = {}
    for path in run.overlays:
        match = OVERLAY_STEP.fullmatch(path.name)
        if match:
            by_step.setdefault(int(match[1]), []).append((match[2], path))
    sections: list[Markup] = []
    for place, step in enumerate(sorted(by_step, reverse=True)):
        which = "last" if place == 0 else "best"
        sections.append(element("h2", f"Predictions of the {which} validation, after {step} steps"))
        for case, path in by_step[step]:
            shown = picture(path, f"Predictions for {case} after {step} steps")
            sections.append(element("figure", element("figcaption", case), shown))
    return sections


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
    rows: list[list[Content]] = [
        [part, entry.get("count", MISSING), entry.get("sha256", MISSING)[:16]] for part, entry in cases.items()
    ]
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


def _commit(run: RunRecord) -> str:
    code: Mapping[str, Any] = run.card.get("code") or {}
    sha = code.get("git_sha")
    return MISSING if not sha else sha[:10] + (" + changes" if code.get("git_dirty") else "")
