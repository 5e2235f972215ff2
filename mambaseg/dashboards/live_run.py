"""A run as its record shows it at this moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambaseg.reports.run_record import Series, collect_series, read_card, read_rows


@dataclass(frozen=True)
class LiveRun:
    """What the files of a run tell.

    Attributes:
        name: What to call it.
        series: Every logged metric by name; empty before the first row.
        steps: Training steps that are known to be done.
        total_steps: Of the whole run; None where it has no end.
        seconds_per_step: Since the newest start, validation included; None before there are two rows.
        last_time: When the newest row was written, in seconds since the epoch; None before the first one.
    """

    name: str
    series: Mapping[str, Series]
    steps: int
    total_steps: int | None
    seconds_per_step: float | None
    last_time: float | None

    @property
    def is_done(self) -> bool:
        """Whether the last step is done."""
        return self.total_steps is not None and self.steps >= self.total_steps

    def seconds_left(self, now: float) -> float | None:
        """Return how long it takes until the last step; None where that cannot be known."""
        if self.total_steps is None or self.seconds_per_step is None or self.last_time is None:
            return None
        return max(0.0, (self.total_steps - self.steps) * self.seconds_per_step - (now - self.last_time))


def read_live(folder: Path, name: str) -> LiveRun:
    """Read a run that may be training, or may not have written anything yet.

    Args:
        folder: The run folder.
        name: What to call the run.
    """
    record = folder / "metrics.jsonl"
    rows = read_rows(record)[0] if record.is_file() else []
    total = (read_card(folder / "run_card.json").get("training") or {}).get("max_steps", -1)
    # Rows carry the index of the batch they belong to, counted from 0; a start carries the number of steps done.
    newest = _since_start(rows)
    return LiveRun(
        name=name,
        series=collect_series(rows),
        steps=max((step for step, _ in newest), default=0),
        total_steps=total if total > 0 else None,
        seconds_per_step=_pace(newest),
        last_time=newest[-1][1] if newest else None,
    )


def _since_start(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return steps done and time of the rows since the run was started last."""
    points: list[tuple[int, float]] = []
    for row in rows:
        step, time = row.get("step"), row.get("time")
        if not isinstance(step, int) or not isinstance(time, int | float):
            continue
        if row.get("event") == "train_start":
            points = [(step, time)]
        else:
            points.append((step + 1, time))
    return points


def _pace(points: Sequence[tuple[int, float]]) -> float | None:
    if len(points) < 2:
        return None
    (first, begin), (last, end) = points[0], points[-1]
    return (end - begin) / (last - first) if last > first else None
