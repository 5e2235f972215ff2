"""What a run left in its folder, read back for the report."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambaseg.errors import InputError
from mambaseg.metrics.rows import CaseScore
from mambaseg.reports.tables import read_scores

ROW_FIELDS = frozenset({"step", "epoch", "time", "event"})
CONFIG_NAMES = ("config.yaml", "hparams.json")


@dataclass(frozen=True)
class Series:
    """One metric over the run, without values that are not finite.

    Attributes:
        steps: Increasing training steps.
        values: As many values.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]

    @property
    def best(self) -> tuple[int, float]:
        """The step with the highest value, and that value."""
        place = max(range(len(self.values)), key=self.values.__getitem__)
        return self.steps[place], self.values[place]


@dataclass(frozen=True)
class ScoreTable:
    """What an evaluation wrote.

    Attributes:
        rows: One per case, predictor and class.
        about: What they belong to: part, checkpoint, commit.
    """

    rows: Sequence[CaseScore]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run folder in memory; whatever it lacks is empty.

    Attributes:
        name: Name of the folder, made unique among compared runs.
        folder: The run folder.
        series: Every logged metric by name.
        skipped_lines: Lines of the record that could not be read.
        card: Contents of ``run_card.json``.
        config: Text of the resolved configuration.
        scores: Tables of the newest validation and of the test, by part.
        overlays: Pictures, in the order of steps and cases.
    """

    name: str
    folder: Path
    series: Mapping[str, Series]
    skipped_lines: int
    card: Mapping[str, Any]
    config: str
    scores: Mapping[str, ScoreTable]
    overlays: Sequence[Path]


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Read a run folder.

    Args:
        folder: Where ``metrics.jsonl`` and its companions are.
        name: What to call the run; the folder's name when not given.

    Raises:
        InputError: The folder has no ``metrics.jsonl``, or one of its files cannot be read.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{folder} has no metrics.jsonl, so it is no run folder. Give the folder of a training.")
    rows, skipped = read_rows(path)
    found = {part: folder / f"scores_{part}" / "scores.json" for part in ("val", "test")}
    return RunRecord(
        name=name or folder.resolve().name,
        folder=folder,
        series=collect_series(rows),
        skipped_lines=skipped,
        card=read_card(folder / "run_card.json"),
        config=next((p.read_text(encoding="utf-8") for n in CONFIG_NAMES if (p := folder / n).is_file()), ""),
        scores={part: _read_table(file) for part, file in found.items() if file.is_file()},
        overlays=sorted((folder / "overlays").glob("step*.png")),
    )


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a JSONL record, and count the lines that are no JSON object (a run that is still writing has one)."""
    rows: list[dict[str, Any]] = []
    skipped = 0
    with path.open(encoding="utf-8", errors="replace") as record:
        for line in record:
            row = _parse(line)
            if row is None:
                skipped += bool(line.strip())
            else:
                rows.append(row)
    return rows, skipped


def collect_series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Turn rows into one series a metric.

    A resumed run starts again at an earlier step than the first attempt reached: what the first attempt logged from
    that step on is dropped, and of two values at one step the later counts.

    Args:
        rows: As ``JsonlLogger`` wrote them, in order.
    """
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        step = row.get("step")
        if not isinstance(step, int):
            continue
        if row.get("event") == "train_start":
            for own in points.values():
                for overtaken in [logged for logged in own if logged >= step]:
                    del own[overtaken]
        for name, value in _measurements(row):
            points.setdefault(name, {})[step] = value
    return {
        name: Series(tuple(sorted(own)), tuple(own[step] for step in sorted(own)))
        for name, own in points.items()
        if own
    }


def _measurements(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if "event" in row:
        return
    for name, value in row.items():
        if name not in ROW_FIELDS and isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _read_table(path: Path) -> ScoreTable:
    rows = read_scores(path)
    return ScoreTable(rows, json.loads(path.read_text(encoding="utf-8")).get("run", {}))


def read_card(path: Path) -> dict[str, Any]:
    """Read a run card; empty where there is none.

    Raises:
        InputError: It is damaged.
    """
    if not path.is_file():
        return {}
    card = _parse(path.read_text(encoding="utf-8"))
    if card is None:
        raise InputError(f"{path} is no JSON object. Remove it to make a report without the run card.")
    return card
