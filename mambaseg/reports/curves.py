"""Learning curves as SVG that can stand inside an HTML page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from mambaseg.reports.palette import hex_colour
from mambaseg.reports.run_record import RunRecord, Series

MAX_POINTS = 800
"""Points of a drawn line; more cannot be seen and make the page heavy."""
LINE_STYLES = ("-", "--", ":", "-.")
FOREGROUND_DICE = re.compile(r"val/([^/]+)/dice")
LOSS = re.compile(r"loss(?:/(.+))?")


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        series: Its points.
        colour: As ``#rrggbb``.
        style: A matplotlib line style.
    """

    label: str
    series: Series
    colour: str
    style: str = "-"


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Attributes:
        title: What is shown.
        curves: At least one.
        unit_range: The values are shares, so the axis ends at 0 and 1 where they come near.
        log_scale: Show magnitudes, for values that are all positive.
    """

    title: str
    curves: tuple[Curve, ...]
    unit_range: bool = False
    log_scale: bool = False


def learning_curves(runs: Sequence[RunRecord]) -> list[Chart]:
    """Choose the charts that the runs have values for.

    One run: a colour for every metric of a chart. Several runs: a colour for every run, a line style for every metric,
    and only what can be compared (the total loss, the Dice of validation and of pseudo-labels). What was logged once is
    no curve: its number stands in the tables.
    """
    several = len(runs) > 1
    pseudo = re.compile(r"pseudo/(.+)/dice" if several else r"pseudo/(.+)")
    charts = [
        _chart("Loss", runs, re.compile("loss") if several else LOSS, log_scale=True),
        _chart("Validation Dice, mean of the foreground", runs, FOREGROUND_DICE, unit_range=True),
        _chart("Dice of the pseudo-labels" if several else "Pseudo-labels", runs, pseudo, unit_range=True),
    ]
    if not several:
        charts += [
            _chart(f"Validation Dice of {predictor}, by class", runs, pattern, unit_range=True)
            for predictor, pattern in _class_dice_patterns(runs[0]).items()
        ]
        charts += [
            _chart("Learning rate", runs, re.compile(r"lr/(.+)"), log_scale=True),
            _chart("Weight of the unsupervised terms", runs, re.compile("ramp_up"), unit_range=True),
            _chart("Speed", runs, re.compile(r"speed/((?:steps|images)_per_s)")),
            _chart("Share of time waiting for data", runs, re.compile("speed/data_wait"), unit_range=True),
        ]
    return [chart for chart in charts if any(len(curve.series.steps) > 1 for curve in chart.curves)]


def chart_svg(chart: Chart) -> str:
    """Draw a chart.

    Returns:
        An ``<svg>`` element without any address in it, whose texts are texts.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Without a salt the ids of clip paths are random; with one a title, two charts of a page cannot mix theirs up.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9.0}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, chart)
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _embeddable(drawn.getvalue(), chart.title)


def _chart(title: str, runs: Sequence[RunRecord], pattern: re.Pattern[str], **options: bool) -> Chart:
    curves: list[Curve] = []
    names = list(dict.fromkeys(name for run in runs for name in run.series if pattern.fullmatch(name)))
    for run_index, run in enumerate(runs):
        for name_index, name in enumerate(names):
            if name not in run.series:
                continue
            label = next((group for group in _groups(pattern, name) if group), name)
            if len(runs) > 1:
                style = LINE_STYLES[name_index % len(LINE_STYLES)]
                curves.append(Curve(f"{run.name}: {label}", run.series[name], hex_colour(run_index), style))
            else:
                style = LINE_STYLES[name_index // 6 % len(LINE_STYLES)]
                curves.append(Curve(label, run.series[name], hex_colour(name_index), style))
    return Chart(title, tuple(curves), **options)


def _groups(pattern: re.Pattern[str], name: str) -> tuple[Any, ...]:
    match = pattern.fullmatch(name)
    return () if match is None else match.groups()


def _class_dice_patterns(run: RunRecord) -> Mapping[str, re.Pattern[str]]:
    predictors = [match[1] for name in run.series if (match := FOREGROUND_DICE.fullmatch(name))]
    return {predictor: re.compile(rf"val/{re.escape(predictor)}/dice/(.+)") for predictor in predictors}


def _draw(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import LogFormatter

    for curve in chart.curves:
        steps, values = thin_out(curve.series)
        mark = "o" if len(steps) == 1 else None
        # A leading underscore would hide the line from the legend, and dollar signs would be read as mathematics.
        label = curve.label.lstrip("_").replace("$", r"\$")
        axes.plot(steps, values, curve.style, color=curve.colour, linewidth=1.4, marker=mark, label=label)
    positive = all(min(curve.series.values) > 0 for curve in chart.curves)
    if chart.log_scale and positive:
        axes.set_yscale("log")
        for plain in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            plain(LogFormatter(minor_thresholds=(1.0, 0.5)))
    if chart.unit_range:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.set_xlabel("step")
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def thin_out(series: Series) -> tuple[list[float], list[float]]:
    """Return steps and values, averaged over neighbours where there are more than can be seen."""
    size = -(-len(series.steps) // MAX_POINTS)
    starts = range(0, len(series.steps), size)
    return (
        [sum(part) / len(part) for part in (series.steps[start : start + size] for start in starts)],
        [sum(part) / len(part) for part in (series.values[start : start + size] for start in starts)],
    )


def _embeddable(document: str, title: str) -> str:
    """Return the element of an SVG document without the addresses of its namespaces, which HTML implies."""
    from html import escape

    element = document[document.index("<svg") :]
    element = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", element)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
