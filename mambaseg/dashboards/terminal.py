"""The dashboard in a terminal: a column for every run, a line for every metric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mambaseg.dashboards.live_run import LiveRun
from mambaseg.dashboards.sections import SECTIONS, Section
from mambaseg.reports.run_record import Series

BLOCKS = "▁▂▃▄▅▆▇█"
NARROWEST, WIDEST = 28, 64
"""Characters of a run's column beside others; where not all runs fit side by side, they go on below."""
GAP = 2
VALUE = 8
"""Characters of a number."""
SILENT_S = 120.0
"""A run that has written nothing for so long is pointed out; validations and slow machines may take it."""


@dataclass(frozen=True)
class Scale:
    """The heights of values.

    Attributes:
        low: The value at the bottom.
        high: The value at the top.
        is_log: Equal ratios are equal heights.
    """

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, curves: Sequence[Sequence[float]], is_log: bool) -> "Scale":
        """Return the scale on which all curves have room; a logarithmic one where it can be."""
        low, high = min(map(min, curves)), max(map(max, curves))
        return cls(low, high, is_log and low > 0)

    def level(self, value: float) -> float:
        """Return the height of a value, 0 to 1."""
        if self.high <= self.low:
            return 0.0
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def frame(runs: Sequence[LiveRun], width: int, now: float) -> RenderableType:
    """Draw the runs as they are.

    Args:
        runs: At least one.
        width: Characters of a line.
        now: The time, in seconds since the epoch.
    """
    labels = [label for section in SECTIONS for label in section.metrics(_logged(runs)).values()]
    label_width = max(map(len, [*labels, *(section.title for section in SECTIONS)]))
    abreast = max(1, min(len(runs), (width - label_width) // (NARROWEST + GAP)))
    column = min(WIDEST, max(VALUE, (width - label_width) // abreast - GAP))
    groups = [runs[place : place + abreast] for place in range(0, len(runs), abreast)]
    return Group(*(_table(runs, group, label_width, column, now) for group in groups))


def _table(
    everyone: Sequence[LiveRun], runs: Sequence[LiveRun], label_width: int, column: int, now: float
) -> RenderableType:
    """Draw the runs of one line; curves of a metric have the scale of all runs."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column(width=label_width, no_wrap=True)
    for run in runs:
        # The end of a long name tells runs apart.
        name = run.name if len(run.name) <= column else f"…{run.name[1 - column :]}"
        table.add_column(Text(name, style="bold"), width=column, no_wrap=True)
    table.add_row("", *(_progress(run, column) for run in runs))
    table.add_row("", *(_times(run, now) for run in runs))
    for section in SECTIONS:
        metrics = section.metrics(_logged(runs))
        if metrics:
            table.add_row(Text(section.title, style="cyan"))
        for name, label in metrics.items():
            scale = Scale.of([run.series[name].values for run in everyone if name in run.series], section.log_scale)
            table.add_row(label, *(_curve(run.series.get(name), section, column, scale) for run in runs))
    return table


def _logged(runs: Sequence[LiveRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.series))


def _progress(run: LiveRun, width: int) -> Text:
    if run.last_time is None:
        return Text("nothing is written yet", style="dim")
    if run.total_steps is None:
        return Text(f"step {run.steps:,}")
    told = f"{run.steps:,}/{run.total_steps:,} "
    share = min(1.0, run.steps / run.total_steps)
    bar = round(share * (width - len(told)))
    return Text.assemble(told, ("━" * bar, "green"), ("━" * (width - len(told) - bar), "bright_black"))


def _times(run: LiveRun, now: float) -> Text:
    if run.is_done:
        return Text("done", style="green")
    if run.last_time is None:
        return Text("")
    silence = now - run.last_time
    left = run.seconds_left(now)
    told = "" if left is None else f"{_duration(left)} left, "
    style = "yellow" if silence > SILENT_S else "dim"
    return Text.assemble(told, (f"last row {_duration(silence)} ago", style))


def _curve(series: Series | None, section: Section, width: int, scale: Scale) -> Text:
    if series is None:
        return Text("–", style="dim")
    best = f" {series.best[1]:.3f}" if section.higher_is_better else ""
    line = sparkline(series.values, max(1, width - VALUE - 1 - len(best)), scale)
    return Text.assemble(f"{_number(series.last):>{VALUE}} ", (line, "cyan"), (best, "green"))


def sparkline(values: Sequence[float], width: int, scale: Scale) -> str:
    """Draw values as a line of blocks, the mean of neighbours where there is no room for each.

    Args:
        values: At least one.
        width: Characters at most.
        scale: Which value is how high.
    """
    count = min(width, len(values))
    bins = [values[place * len(values) // count : (place + 1) * len(values) // count] for place in range(count)]
    levels = (scale.level(sum(part) / len(part)) for part in bins)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(level * len(BLOCKS)))] for level in levels)


def _number(value: float) -> str:
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
