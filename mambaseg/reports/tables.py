"""Score tables: ``scores.csv`` and ``scores.json`` for machines, ``scores.md`` and a terminal table for people."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from mambaseg.errors import InputError
from mambaseg.io.atomic import atomic_path, write_text
from mambaseg.metrics.policy import EMPTY_POLICY, Empty
from mambaseg.metrics.rows import CaseScore
from mambaseg.metrics.summary import PredictorSummary, Statistic, summarize

OVERLAP_COLUMNS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
}
DISTANCE_COLUMNS = {
    "hd95_mm": "HD95 mm",
    "hd95_vox": "HD95 vox",
    "asd_mm": "ASD mm",
    "asd_vox": "ASD vox",
    "assd_mm": "ASSD mm",
    "assd_vox": "ASSD vox",
    "nsd": "NSD",
}
TERMINAL_SCORES = (
    "dice",
    "iou",
    "hd95_mm",
    "hd95_vox",
    "asd_mm",
    "assd_mm",
    "precision",
    "sensitivity",
    "specificity",
)
WITH_BACKGROUND = "with background"
MISSING = "–"


@dataclass(frozen=True)
class ScoreFiles:
    """Where the tables of one evaluation went."""

    csv: Path
    json: Path
    markdown: Path


def write_scores(folder: Path, rows: Sequence[CaseScore], run: Mapping[str, object]) -> ScoreFiles:
    """Write ``scores.csv``, ``scores.json`` and ``scores.md``, each whole or not at all.

    Args:
        folder: Made where it does not exist; older tables in it are replaced.
        rows: One per case, predictor and class.
        run: What the numbers belong to: split, seed, git commit, checkpoint. Goes into the JSON and the Markdown.
    """
    files = ScoreFiles(folder / "scores.csv", folder / "scores.json", folder / "scores.md")
    summaries = summarize(rows)
    _write_csv(files.csv, rows)
    write_text(files.json, _as_json(rows, summaries, run))
    write_text(files.markdown, markdown(summaries, run))
    return files


def read_scores(path: Path) -> list[CaseScore]:
    """Read the rows back from a ``scores.json``.

    Raises:
        InputError: The file is missing, is no JSON, or its rows have other columns.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [_as_row(row) for row in document["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        again = "mambaseg test" if path.parent.name == "scores_test" else "mambaseg validate"
        raise InputError(f"{path} is not a scores.json that can be read ({error}): run `{again}` again.") from error


def markdown(summaries: Sequence[PredictorSummary], run: Mapping[str, object]) -> str:
    """Compose ``scores.md``: foreground and with-background means, per-class Dice, counts, policy, run."""
    class_names = _class_names(summaries)
    per_class = [
        [summary.predictor, *(_cell("dice", _class_dice(summary, name)) for name in class_names)]
        for summary in summaries
    ]
    sections = [
        "# Scores",
        "Each cell is the mean ± standard deviation over cases (n = cases behind it). The first line of a predictor is "
        "the mean over the foreground classes; the line *with background* counts the background as one more class, as "
        "published tables of this field do, and compares with those only.",
        "## Overlap",
        _grid(["predictor", *OVERLAP_COLUMNS.values()], _overlap_lines(summaries)),
        "## Surface distances, foreground",
        "HD95 is the 95th percentile of the pooled two-way distances, ASD runs from prediction to truth, ASSD is the "
        "mean of the pooled distances. Published tables of this field are in voxels. The tolerance of NSD stands in "
        "scores.csv.",
        _grid(
            ["predictor", *DISTANCE_COLUMNS.values()],
            [[entry.predictor, *_cells(entry.foreground, DISTANCE_COLUMNS)] for entry in summaries],
        ),
        "## Dice per class",
        _grid(["predictor", *class_names], per_class),
        "## Counts",
        _grid(
            ["predictor", "class", "cases", "both empty", "missed", "spurious", "unknown spacing"],
            _count_lines(summaries),
        ),
        f"Empty masks: {EMPTY_POLICY}",
        "## Run",
        "\n".join(f"- {key}: {value}" for key, value in run.items()) or "- nothing recorded",
    ]
    return "\n\n".join(sections) + "\n"


def summary_table(summaries: Sequence[PredictorSummary], title: str = "Scores") -> Table:
    """Build the terminal's table: a column per predictor, a line per score, each cell ``mean ± std``.

    Foreground means first, then the with-background ones, then Dice per class and the missed structures. A cell names
    its number of cases where that is not all of them; a score that was not computed has no line.
    """
    cases = max((entry.classes[0].n_cases for entry in summaries), default=0)
    table = Table(title=title, caption=f"mean ± std over {cases} cases", title_justify="left")
    table.add_column("foreground mean")
    for summary in summaries:
        table.add_column(summary.predictor, justify="right", no_wrap=True)
    labels = OVERLAP_COLUMNS | DISTANCE_COLUMNS
    for name in TERMINAL_SCORES:
        if any(entry.foreground[name].n_valid for entry in summaries):
            table.add_row(labels[name], *(short_cell(name, entry.foreground[name], cases) for entry in summaries))
    missed = [[group.n_missed for group in entry.foreground_classes] for entry in summaries]
    structures = [[group.n_cases for group in entry.foreground_classes] for entry in summaries]
    table.add_row("missed", *(f"{sum(some)} of {sum(all_)}" for some, all_ in zip(missed, structures, strict=True)))
    table.add_section()
    for name in ("dice", "iou"):
        means = [short_cell(name, entry.with_background[name], cases) for entry in summaries]
        table.add_row(f"{labels[name]} {WITH_BACKGROUND}", *means, style="dim")
    table.add_section()
    for class_name in _class_names(summaries):
        if class_name != summaries[0].classes[0].class_name:
            table.add_row(
                f"Dice {class_name}",
                *(short_cell("dice", _class_dice(entry, class_name), cases) for entry in summaries),
            )
    return table


def _write_csv(path: Path, rows: Iterable[CaseScore]) -> None:
    columns = [field.name for field in fields(CaseScore)]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in _plain(row).items()} for row in rows)


def _as_json(rows: Iterable[CaseScore], summaries: Iterable[PredictorSummary], run: Mapping[str, object]) -> str:
    document = {
        "run": _without_nan(run),
        "empty_policy": EMPTY_POLICY,
        "summary": [_without_nan(asdict(summary)) for summary in summaries],
        "rows": [_plain(row) for row in rows],
    }
    # NaN is no JSON: other readers stop at it. What `run` holds beside JSON values, such as paths, is written as text.
    return json.dumps(document, indent=2, allow_nan=False, default=str, ensure_ascii=False) + "\n"


def _plain(row: CaseScore) -> dict[str, Any]:
    """Return a row as JSON values: None where a score does not exist."""
    plain: dict[str, Any] = _without_nan(asdict(row))
    return plain


def _as_row(plain: Mapping[str, Any]) -> CaseScore:
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in plain.items()}
    values["empty"] = Empty(values["empty"])
    return CaseScore(**values)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _overlap_lines(summaries: Iterable[PredictorSummary]) -> list[list[str]]:
    lines = []
    for summary in summaries:
        lines.append([summary.predictor, *_cells(summary.foreground, OVERLAP_COLUMNS)])
        lines.append([f"*{summary.predictor}, {WITH_BACKGROUND}*", *_cells(summary.with_background, OVERLAP_COLUMNS)])
    return lines


def _count_lines(summaries: Iterable[PredictorSummary]) -> list[list[str]]:
    return [
        [
            summary.predictor,
            entry.class_name,
            *map(
                str,
                (entry.n_cases, entry.n_both_empty, entry.n_missed, entry.n_spurious, entry.n_unknown_spacing),
            ),
        ]
        for summary in summaries
        for entry in summary.classes
    ]


def _class_names(summaries: Iterable[PredictorSummary]) -> list[str]:
    return list(dict.fromkeys(entry.class_name for summary in summaries for entry in summary.classes))


def _class_dice(summary: PredictorSummary, class_name: str) -> Statistic:
    matching = [entry.scores["dice"] for entry in summary.classes if entry.class_name == class_name]
    return matching[0] if matching else Statistic(math.nan, math.nan, 0)


def _cells(scores: Mapping[str, Statistic], names: Iterable[str]) -> list[str]:
    return [_cell(name, scores[name]) if name in scores else MISSING for name in names]


def _cell(name: str, statistic: Statistic) -> str:
    digits = 2 if name.endswith(("_mm", "_vox")) else 4
    mean, std = (MISSING if math.isnan(value) else f"{value:.{digits}f}" for value in (statistic.mean, statistic.std))
    return f"{mean} (n=0)" if statistic.n_valid == 0 else f"{mean} ± {std} (n={statistic.n_valid})"


def short_cell(name: str, statistic: Statistic, cases: int) -> str:
    """Format a mean and its spread, with the number of cases behind it where that is not all of them.

    Args:
        name: Which score; distances get fewer digits.
        statistic: Its mean and spread.
        cases: All cases of the evaluation.
    """
    digits = 2 if name.endswith(("_mm", "_vox")) else 3
    if statistic.n_valid == 0:
        return MISSING
    std = "" if math.isnan(statistic.std) else f" ± {statistic.std:.{digits}f}"
    count = "" if statistic.n_valid == cases else f" (n={statistic.n_valid})"
    return f"{statistic.mean:.{digits}f}{std}{count}"


def _grid(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left-aligned and the others right-aligned."""
    ruler = [":---", *["---:"] * (len(header) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in (header, ruler, *lines)
    )
