"""Score tables: what is written is what was measured, and says what is behind it."""

import csv
import dataclasses
import io
import json
import math

import pytest
import torch
from rich.console import Console

from mambaseg.errors import InputError
from mambaseg.metrics.case_scores import CaseScore, score_case
from mambaseg.metrics.policy import EMPTY_POLICY
from mambaseg.metrics.summary import summarize
from mambaseg.reports.tables import read_scores, summary_table, write_scores

CLASSES = ("background", "RV", "Myo")
RUN = {"split": "acdc_70_10_20", "seed": 7, "git": "abc1234", "best": math.nan}


@pytest.fixture
def rows() -> list[CaseScore]:
    label = torch.zeros(3, 10, 10, dtype=torch.long)
    label[:, 1:4, 1:8] = 1
    label[:, 5:9, 2:9] = 2
    close = label.roll(1, dims=2)
    missed = torch.where(label == 1, 0, label)
    scored = []
    for predictor, predictions in {"unet": (close, missed), "mamba_unet": (label, close)}.items():
        for case_id, prediction, spacing in zip(("a", "b"), predictions, ((8.0, 1.5, 1.5), None), strict=True):
            scored += score_case(case_id, predictor, prediction, label, CLASSES, spacing)
    return scored


def plain(rows: list[CaseScore]) -> list[dict[str, object]]:
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}
        for fields in map(dataclasses.asdict, rows)
    ]


def test_csv_has_a_row_per_case_predictor_and_class(rows, tmp_path):
    path = write_scores(tmp_path / "new" / "folder", rows, RUN).csv
    with path.open(encoding="utf-8") as handle:
        read = list(csv.DictReader(handle))
    assert len(read) == len(rows) == 2 * 2 * 3
    for line, row in zip(read, rows, strict=True):
        assert (line["case_id"], line["predictor"], int(line["class_index"])) == (
            row.case_id,
            row.predictor,
            row.class_index,
        )
        assert line["empty"] == row.empty.value
        assert float(line["dice"]) == row.dice
        assert line["hd95_mm"] == ("" if math.isnan(row.hd95_mm) else repr(row.hd95_mm))


def test_json_carries_rows_summary_policy_and_run(rows, tmp_path):
    path = write_scores(tmp_path, rows, RUN | {"checkpoint": tmp_path / "best.ckpt"}).json
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert document["empty_policy"] == EMPTY_POLICY
    assert document["run"] == RUN | {"best": None, "checkpoint": str(tmp_path / "best.ckpt")}
    assert document["summary"][0]["foreground"]["dice"]["mean"] == summarize(rows)[0].foreground["dice"].mean
    assert document["rows"][3]["hd95_mm"] is None
    assert plain(read_scores(path)) == plain(rows)


def test_markdown_shows_both_averages_with_n_and_std_and_the_misses(rows, tmp_path):
    text = write_scores(tmp_path, rows, RUN).markdown.read_text(encoding="utf-8")
    [unet, mamba] = summarize(rows)
    for entry in (unet, mamba):
        headline, published = entry.foreground["dice"], entry.with_background["dice"]
        assert f"| {entry.predictor} | {headline.mean:.4f} ± {headline.std:.4f} (n=2)" in text
        assert f"| *{entry.predictor}, with background* | {published.mean:.4f} ± {published.std:.4f} (n=2)" in text
    assert "| unet | RV | 2 | 0 | 1 | 0 | 1 |" in text
    assert f"{unet.classes[1].scores['dice'].mean:.4f}" in text
    assert EMPTY_POLICY in text
    assert "- split: acdc_70_10_20" in text


def test_markdown_tables_are_rectangular(rows, tmp_path):
    text = write_scores(tmp_path, rows, RUN).markdown.read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_terminal_table(rows):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(summarize(rows), title="val"))
    text = console.export_text()
    [unet, mamba] = summarize(rows)
    assert f"{unet.foreground['dice'].mean:.3f} ± {unet.foreground['dice'].std:.3f}" in text
    assert f"{mamba.with_background['iou'].mean:.3f}" in text
    assert "over 2 cases" in text
    assert "(n=1)" in text  # one of the two cases has no spacing, so no distance in mm
    assert "HD95 vox" in text
    assert "1 of 4" in text


def test_scores_that_do_not_exist_say_so(rows, tmp_path):
    unknown = [dataclasses.replace(row, hd95_mm=math.nan) for row in rows]
    assert "– (n=0)" in write_scores(tmp_path, unknown, {}).markdown.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_tables(rows, tmp_path):
    files = write_scores(tmp_path, rows, RUN)
    before = files.json.read_bytes()
    with pytest.raises(ValueError, match="Out of range"):
        write_scores(tmp_path, rows, {"loss": math.inf})
    assert files.json.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "scores.json", "scores.md"}


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [{"dice": 1}]}', '{"summary": []}'])
def test_a_broken_json_is_named(content, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"scores\.json"):
        read_scores(path)


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(InputError, match="missing"):
        read_scores(tmp_path / "missing.json")
