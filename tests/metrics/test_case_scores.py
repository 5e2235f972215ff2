"""Rows and their summary: policy, duplicates, and gathering over two processes."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mambaseg.errors import InputError
from mambaseg.metrics.case_scores import CaseScore, CaseScores, score_case
from mambaseg.metrics.policy import EMPTY_POLICY, Empty
from mambaseg.metrics.rows import OVERLAP_NAMES, SURFACE_NAMES, VALUE_NAMES
from mambaseg.metrics.summary import summarize

CLASSES = ("background", "RV", "Myo", "LV")
SPACING = (10.0, 1.5, 1.25)
SHAPE = (3, 12, 10)


def heart(seed: int, present: tuple[int, ...] = (1, 2, 3)) -> tuple[torch.Tensor, torch.Tensor]:
    """A label with a box per present class, and a prediction that is wrong in places."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(SHAPE, dtype=torch.long)
    for index in present:
        label[:, 3 * index - 2 : 3 * index + 1, 2:8] = index
    prediction = label.clone()
    noise = torch.rand(SHAPE, generator=generator) < 0.1
    prediction[noise] = torch.randint(0, 4, (int(noise.sum()),), generator=generator)
    return prediction, label


def comparable(rows: list[CaseScore]) -> list[tuple[object, ...]]:
    """Rows with NaN as None, so that equality means equality."""
    return [
        tuple(None if isinstance(v, float) and math.isnan(v) else v for v in dataclasses.astuple(row)) for row in rows
    ]


def scores(*predictors: str) -> CaseScores:
    return CaseScores(CLASSES, predictors or ("unet",))


def test_names_match_the_fields():
    fields = [field.name for field in dataclasses.fields(CaseScore)]
    assert fields[5:-1] == list(VALUE_NAMES)


def test_rows_survive_the_encoding_exactly():
    metric = scores("unet", "mamba_unet")
    expected = []
    for case, predictor in ((f"patient00{k}_frame01", p) for k in (1, 2) for p in ("unet", "mamba_unet")):
        prediction, label = heart(len(expected))
        metric.update(case, predictor, prediction, label, torch.tensor(SPACING))
        expected += score_case(case, predictor, prediction, label, CLASSES, SPACING)
    assert comparable(metric.rows()) == comparable(expected)
    assert all(type(row.dice) is float and isinstance(row.empty, Empty) for row in metric.rows())


def test_values_of_one_case():
    prediction, label = heart(0)
    rows = score_case("a", "unet", prediction, label, CLASSES, SPACING)
    guess, truth = prediction == 2, label == 2
    assert rows[2].dice == pytest.approx(2 * (guess & truth).sum().item() / (guess.sum() + truth.sum()).item())
    assert rows[2].hd95_mm > 0
    assert rows[2].hd95_vox > 0
    # the background's surface would be the image's border
    assert all(math.isnan(rows[0].value(name)) for name in SURFACE_NAMES)
    assert 0 < rows[0].dice < 1


def test_without_surfaces_only_distances_are_missing():
    prediction, label = heart(0)
    with_surface = score_case("a", "unet", prediction, label, CLASSES, SPACING)
    without = score_case("a", "unet", prediction, label, CLASSES, SPACING, surface=False)
    for long, short in zip(with_surface, without, strict=True):
        assert [long.value(name) for name in OVERLAP_NAMES] == [short.value(name) for name in OVERLAP_NAMES]
        assert all(math.isnan(short.value(name)) for name in SURFACE_NAMES)
    assert summarize(without)[0].classes[1].n_unknown_spacing == 0


def test_ignored_voxels_change_nothing():
    prediction, label = heart(3)
    label[0] = 255
    other = prediction.clone()
    other[0] = 3
    first = score_case("a", "unet", prediction, label, CLASSES, SPACING)
    second = score_case("a", "unet", other, label, CLASSES, SPACING)
    assert comparable(first) == comparable(second)


def test_two_dimensional_images():
    prediction, label = heart(0)
    flat = score_case("a", "unet", prediction[0], label[0], CLASSES, SPACING[1:])
    deep = score_case("a", "unet", prediction[:1], label[:1], CLASSES, SPACING)
    assert comparable(flat) == comparable(deep)


def test_missed_spurious_and_absent_are_counted_and_a_miss_is_not_perfect():
    metric = scores()
    perfect = heart(0)[1]
    without_rv = heart(0, present=(2, 3))[1]
    metric.update("found", "unet", perfect, perfect, SPACING)
    metric.update("missed", "unet", without_rv, perfect, SPACING)
    metric.update("spurious", "unet", perfect, without_rv, SPACING)
    metric.update("absent", "unet", without_rv, without_rv, SPACING)
    [summary] = metric.summary()
    rv = summary.classes[1]
    assert (rv.n_cases, rv.n_both_empty, rv.n_missed, rv.n_spurious) == (4, 1, 1, 1)
    assert rv.scores["dice"].n_valid == 3
    assert rv.scores["dice"].mean == pytest.approx(1 / 3)
    diagonal = math.hypot(*(n * s for n, s in zip(SHAPE, SPACING, strict=True)))
    assert rv.scores["hd95_mm"].mean == pytest.approx(2 * diagonal / 3)
    assert rv.scores["hd95_vox"].mean == pytest.approx(2 * math.hypot(*SHAPE) / 3)
    assert rv.scores["sensitivity"].mean == pytest.approx(1 / 3)


def test_unknown_spacing_is_counted_and_kept_out_of_means():
    metric = scores()
    prediction, label = heart(1)
    metric.update("known", "unet", prediction, label, SPACING)
    metric.update("unknown", "unet", prediction, label, torch.full((3,), math.nan))
    metric.update("none", "unet", prediction, label)
    [summary] = metric.summary()
    for entry in summary.foreground_classes:
        assert entry.n_unknown_spacing == 2
        assert (entry.scores["hd95_mm"].n_valid, entry.scores["hd95_vox"].n_valid) == (1, 3)
        assert math.isfinite(entry.scores["hd95_mm"].mean)


def row(case_id: str, index: int, dice: float) -> CaseScore:
    empty = Empty.BOTH if math.isnan(dice) else Empty.NONE
    values = dict.fromkeys(VALUE_NAMES, math.nan) | {"dice": dice}
    return CaseScore(case_id, "unet", index, CLASSES[index], empty, nsd_tolerance_mm=2.0, **values)


def test_summary_means_are_per_class_then_over_classes():
    # hand-computed: class means 0.5 (two cases) and 0.9 (one case); pooling the three rows would give 0.633
    rows = [row("a", 0, 0.99), row("a", 1, 0.4), row("a", 2, 0.9)]
    rows += [row("b", 0, 0.97), row("b", 1, 0.6), row("b", 2, math.nan)]
    [summary] = summarize(rows)
    assert summary.foreground["dice"].mean == pytest.approx(0.7)
    assert summary.with_background["dice"].mean == pytest.approx((0.98 + 0.5 + 0.9) / 3)
    # cases stand at 0.65 and 0.6
    assert summary.foreground["dice"].n_valid == 2
    assert summary.foreground["dice"].std == pytest.approx(0.05 / math.sqrt(2))
    assert summary.classes[1].scores["dice"].std == pytest.approx(0.2 / math.sqrt(2))
    assert math.isnan(summary.classes[2].scores["dice"].std)
    assert math.isnan(summary.foreground["hd95_mm"].mean)
    assert set(summary.with_background) == set(OVERLAP_NAMES)


def test_a_class_that_no_case_has_is_left_out_of_the_headline():
    [summary] = summarize([row("a", 1, 0.8), row("a", 2, math.nan)])
    assert summary.foreground["dice"].mean == pytest.approx(0.8)
    assert summary.classes[1].scores["dice"].n_valid == 0


def test_duplicates_are_dropped_and_predictors_kept_apart():
    metric = scores("unet", "ensemble")
    prediction, label = heart(0)
    for predictor in ("unet", "unet", "ensemble"):
        metric.update("a", predictor, prediction, label, SPACING)
    assert [(r.predictor, r.class_index) for r in metric.rows()] == [
        (predictor, index) for predictor in ("unet", "ensemble") for index in range(4)
    ]


def test_reset_and_rows_follow_updates():
    metric = scores()
    prediction, label = heart(0)
    metric.update("a", "unet", prediction, label)
    assert len(metric.rows()) == 4
    metric.update("b", "unet", prediction, label)
    assert len(metric.rows()) == 8
    metric.reset()
    metric.update("c", "unet", prediction, label)
    assert {r.case_id for r in metric.rows()} == {"c"}


def test_half_precision_modules_keep_exact_scores():
    metric = scores()
    prediction, label = heart(0)
    metric.update("a", "unet", prediction, label, SPACING)
    holder = torch.nn.ModuleDict({"scores": metric}).to(torch.bfloat16)
    expected = score_case("a", "unet", prediction, label, CLASSES, SPACING)
    assert comparable(holder["scores"].rows()) == comparable(expected)


@pytest.mark.parametrize("case_id", ["Fälle/Ünïcode 7", "x" * 256])
def test_any_case_id(case_id):
    metric = scores()
    metric.update(case_id, "unet", *heart(0))
    assert {r.case_id for r in metric.rows()} == {case_id}


def test_wrong_input_is_refused():
    prediction, label = heart(0)
    with pytest.raises(InputError, match="predictor 'vnet' is not one of unet"):
        scores().update("a", "vnet", prediction, label)
    with pytest.raises(InputError, match="longer than 256"):
        scores().update("x" * 257, "unet", prediction, label)
    with pytest.raises(InputError, match="no voxel of its label is known"):
        scores().update("a", "unet", prediction, torch.full(SHAPE, 255))
    with pytest.raises(InputError, match="one per axis"):
        scores().update("a", "unet", prediction, label, torch.tensor([SPACING]))


def test_documentation_quotes_the_policy(repository):
    text = " ".join((repository / "docs" / "metrics.md").read_text(encoding="utf-8").replace("\n>", "\n").split())
    assert EMPTY_POLICY in text


def _score_on_rank(rank: int, shares: list[list[int]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares))
    metric = scores("unet", "ensemble")
    for case in shares[rank]:
        for predictor in ("unet", "ensemble"):
            metric.update(f"case{case}", predictor, *heart(case), SPACING)
    torch.save({"rows": metric.rows(), "summary": metric.summary()}, f"{folder}/{rank}.pt")
    # gathering must leave the rank's own rows as they were, so that it can go on
    metric.update("extra", "unet", *heart(99), SPACING)
    torch.save([r.case_id for r in metric.rows()], f"{folder}/{rank}_later.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [[[0, 1, 2], [3, 0]], [[0, 1, 2, 3], []]], ids=["uneven_padded", "idle_rank"])
def test_two_processes_equal_one(shares: list[list[int]], tmp_path: Path):
    mp.spawn(_score_on_rank, args=(shares, str(tmp_path)), nprocs=2)
    single = scores("unet", "ensemble")
    for case in range(4):
        for predictor in ("unet", "ensemble"):
            single.update(f"case{case}", predictor, *heart(case), SPACING)
    for rank in range(2):
        gathered = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert comparable(gathered["rows"]) == comparable(single.rows())
        assert repr(gathered["summary"]) == repr(single.summary())
        later = torch.load(tmp_path / f"{rank}_later.pt", weights_only=False)
        assert later.count("extra") == 4
        assert len(later) == len(single.rows()) + 4
