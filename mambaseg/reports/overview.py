"""What a run reached, in the first screen of its report."""

import re
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from mambaseg.metrics.headline import HEADLINE_MEANING, headline_metric, headline_predictor
from mambaseg.metrics.summary import summarize
from mambaseg.reports.curves import FOREGROUND_DICE
from mambaseg.reports.html import Content, Markup, element, join, table
from mambaseg.reports.run_record import RunRecord, Series
from mambaseg.reports.tables import MISSING, short_cell


def overview(run: RunRecord) -> Markup:
    """Return the headline, how far and how fast the run went, every predictor's Dice, and what it learned from."""
    dice = foreground_dice(run)
    parts = [element("p", f"{run.card.get('method', 'Run')} in {run.folder}", class_="lead")]
    if run.skipped_lines:
        text = f"{run.skipped_lines} lines of metrics.jsonl could not be read and are left out."
        parts.append(element("p", text, class_="warning"))
    tiles = _tiles(run)
    if tiles:
        parts.append(element("div", *tiles, class_="tiles"))
    if dice:
        rows = [[predictor, *dice_cells(run, predictor, series)] for predictor, series in dice.items()]
        caption = f"Dice, mean of the foreground. The headline is the last line: {HEADLINE_MEANING}."
        parts.append(table(["predictor", *DICE_COLUMNS], rows, caption))
    data = _data_sentence(run)
    if data:
        parts.append(element("p", data))
    return join(parts)


DICE_COLUMNS = ("best val Dice", "after steps", "last val Dice", "after steps", "test Dice")


def dice_cells(run: RunRecord, predictor: str, series: Series) -> list[Content]:
    """Return a predictor's cells under ``DICE_COLUMNS``; ``series`` is its validation Dice."""
    step, best = series.best
    last = (f"{series.last:.3f}", steps_done(series.steps[-1]))
    return [f"{best:.3f}", steps_done(step), *last, test_dice(run).get(predictor, MISSING)]


def foreground_dice(run: RunRecord) -> dict[str, Series]:
    """Return every predictor's validation Dice over the run, mean of the foreground classes."""
    return {match[1]: series for name, series in run.series.items() if (match := FOREGROUND_DICE.fullmatch(name))}


def test_dice(run: RunRecord) -> dict[str, str]:
    """Return every predictor's test Dice with its spread over cases; empty where there was no test."""
    if "test" not in run.scores:
        return {}
    summaries = summarize(run.scores["test"].rows)
    cases = max((entry.classes[0].n_cases for entry in summaries), default=0)
    return {entry.predictor: short_cell("dice", entry.foreground["dice"], cases) for entry in summaries}


def steps_done(logged: int) -> int:
    """Return how many steps were done at a logged step: a record counts the batches from 0."""
    return logged + 1


def speed(run: RunRecord) -> str:
    """Return the mean training speed in steps a second."""
    series = run.series.get("speed/steps_per_s")
    return MISSING if series is None else f"{fmean(series.values):.2f}"


def _tiles(run: RunRecord) -> list[Markup]:
    tiles = []
    headline = run.series.get(headline_metric())
    if headline is not None:
        step, best = headline.best
        tiles.append(_tile(f"{best:.3f}", f"best {headline_metric()}, after {steps_done(step)} steps"))
        tiles.append(_tile(f"{headline.last:.3f}", f"last {headline_metric()}"))
    tests = test_dice(run)
    if tests:
        tiles.append(_tile(tests[headline_predictor(list(tests))], headline_metric("test")))
    done = [series.steps[-1] for name, series in run.series.items() if re.fullmatch(r"loss|val/.+", name)]
    planned = (run.card.get("training") or {}).get("max_steps", -1)
    if done:
        of_all = f"steps of {planned}" if planned > 0 else "steps"
        tiles.append(_tile(str(steps_done(max(done))), of_all))
    if "speed/steps_per_s" in run.series:
        device = (run.card.get("device") or {}).get("name", "")
        tiles.append(_tile(speed(run), f"steps a second{f' on {device}' if device else ''}"))
    return tiles


def _tile(value: str, label: str) -> Markup:
    return element("div", element("strong", value), element("span", label), class_="tile")


def _data_sentence(run: RunRecord) -> str:
    data: Mapping[str, Any] = run.card.get("data") or {}
    counts = {part: entry.get("count", 0) for part, entry in (data.get("cases") or {}).items()}
    if not counts:
        return ""
    names = {"train_labelled": "labelled", "train_other": "unlabelled or scribbled", "val": "to validate"}
    listed = ", ".join(f"{counts[part]} {name}" for part, name in names.items() if part in counts)
    return f"Data: {data.get('source')}, split {data.get('split')}; cases: {listed}, {counts.get('test', 0)} to test."
