"""What a training left behind says: how fast it was, its losses, its scores, and on what it ran."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from mambaseg.callbacks.provenance import CodeVersion
from mambaseg.callbacks.run_card import FILE_NAME
from mambaseg.experiment import read_mapping
from mambaseg.lightning_cli import RESOLVED
from mambaseg.reports.run_record import read_card
from mambaseg.reports.tables import read_scores

SETTLE = 10
"""Steps after a hold that are not timed: their batches came during the wait."""


def read_records(run: Path) -> list[dict[str, Any]]:
    """Return what ``ProcessRecord`` wrote in each process of a run, in their order."""
    count = len(list((run / "processes").glob("rank*.json")))
    paths = [run / "processes" / f"rank{rank}.json" for rank in range(count)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def speed(run: Path, warmup: int) -> dict[str, Any]:
    """Return the columns of a training's steady speed; none where it did not come to its end.

    A step lasts from the end of the last to its own end, in the process in which it lasts longest, by the host's clock:
    the host learns in every step that the loss of all is finite, so it is never far ahead of the GPU.

    Args:
        run: The run folder.
        warmup: Steps before the hold.
    """
    records = read_records(run)
    if not records:
        return {}
    since = warmup + SETTLE - 1
    medians, waiting = [], []
    for record in records:
        done, arrived = record["done"][since:], record["arrived"][since + 1 :]
        medians.append(statistics.median(end - start for start, end in itertools.pairwise(done)))
        waiting.append(sum(came - end for end, came in zip(done, arrived, strict=False)) / (done[-1] - done[0]))
    rate, batch = 1 / max(medians), images(run)
    peaks = [record["peak_gib"] or 0.0 for record in records]
    mean_rate = (len(done) - 1) / (done[-1] - done[0])
    return {
        "batch": batch,
        "it_per_s": round(rate, 3),
        "img_per_s": round(rate * (batch or 0), 1),
        "peak_gib": round(max(peaks), 2),
        "waiting": round(max(waiting), 4),
        "detail": f"{len(done) - 1} steps, {mean_rate:.3f} a second by the mean; {records[0]['workers']} workers; "
        f"peaks {' '.join(f'{peak:.2f}' for peak in peaks)} GiB",
    }


def images(run: Path) -> int | None:
    """Return the number of samples of a step, over all processes."""
    return sum(record["images"] for record in read_records(run)) or None


def mean_losses(run: Path) -> list[float]:
    """Return the loss of each step, the mean over the processes."""
    return [statistics.mean(step) for step in zip(*(record["losses"] for record in read_records(run)), strict=True)]


def scores(output: Path) -> dict[tuple[str, str, int], float]:
    """Return the Dice that ``validate`` wrote, by case, predictor and class; empty where it wrote none.

    Raises:
        ValueError: One of them is there twice.
    """
    path = output / "scores_val" / "scores.json"
    rows = read_scores(path) if path.exists() else []
    table = {(row.case_id, row.predictor, row.class_index): row.dice for row in rows}
    if len(table) < len(rows):
        raise ValueError(f"{path}: {len(rows)} rows, but {len(table)} of different cases, predictors and classes")
    return table


def facts(run: Path) -> dict[str, Any]:
    """Return the columns that say what a training ran on; none where it had not begun."""
    card = read_card(run / FILE_NAME)
    if not card:
        return {}
    return {
        "precision": read_mapping(run / RESOLVED)["trainer"]["precision"],
        "device": card["device"]["name"],
        "torch": card["packages"]["torch"],
        "triton": card["packages"].get("triton", ""),
        "code": CodeVersion(**card["code"]).short,
        "date": card["starts"][-1]["time"][:10],
    }
