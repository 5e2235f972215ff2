"""Overlap scores against hand-counted cases, a loop over voxels, and the empty-mask policy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaseg.errors import InputError
from mambaseg.metrics.overlap import ConfusionCounts, confusion_counts, dice, iou, overlap_scores
from mambaseg.metrics.policy import Empty

K = 4


def random_maps(seed: int, shape: tuple[int, ...] = (3, 6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, K, shape, generator=generator)
    label = torch.randint(0, K, shape, generator=generator)
    label[torch.rand(shape, generator=generator) < 0.2] = 255
    return prediction, label


def counted_by_loop(prediction: torch.Tensor, label: torch.Tensor, index: int) -> tuple[int, int, int, int]:
    tp = fp = fn = tn = 0
    for guess, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if truth == 255:
            continue
        tp += guess == index and truth == index
        fp += guess == index and truth != index
        fn += guess != index and truth == index
        tn += guess != index and truth != index
    return tp, fp, fn, tn


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_a_loop_over_voxels(seed):
    prediction, label = random_maps(seed)
    counts = confusion_counts(prediction, label, K)
    for index in range(K):
        found = tuple(int(values[index]) for values in (counts.tp, counts.fp, counts.fn, counts.tn))
        assert found == counted_by_loop(prediction, label, index)


def test_hand_computed_scores():
    # class 1: TP 2, FP 1, FN 1, TN 4
    label = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]])
    prediction = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]])
    scores = {name: values[1].item() for name, values in overlap_scores(confusion_counts(prediction, label, 2)).items()}
    assert scores == pytest.approx(
        {
            "dice": 4 / 6,
            "iou": 2 / 4,
            "precision": 2 / 3,
            "sensitivity": 2 / 3,
            "specificity": 4 / 5,
            "accuracy": 6 / 8,
        },
        abs=1e-15,
    )


def test_scores_are_float64():
    counts = confusion_counts(*random_maps(0), K)
    assert {values.dtype for values in overlap_scores(counts).values()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_types_agree(dtype):
    prediction, label = random_maps(1)
    expected = confusion_counts(prediction, label, K)
    found = confusion_counts(prediction.to(dtype), label.to(dtype), K)
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("tp", "fp", "fn", "tn"))


def test_what_is_predicted_on_ignored_voxels_does_not_matter():
    prediction, label = random_maps(2)
    other = prediction.clone()
    other[label == 255] = 200
    assert torch.equal(confusion_counts(other, label, K).fp, confusion_counts(prediction, label, K).fp)


def test_runs_under_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        confusion_counts(*random_maps(0), K)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("prediction", "label", "empty", "expected"),
    [
        # dice, iou, precision, sensitivity, specificity, accuracy of class 1
        ([0, 0, 0, 0], [0, 0, 0, 0], Empty.BOTH, [math.nan] * 6),
        ([0, 0, 0, 0], [0, 1, 1, 0], Empty.PREDICTION, [0, 0, 0, 0, 1, 0.5]),
        ([0, 1, 0, 0], [0, 0, 0, 0], Empty.TRUTH, [0, 0, 0, 0, 0.75, 0.75]),
        ([0, 1, 0, 0], [0, 1, 0, 0], Empty.NONE, [1, 1, 1, 1, 1, 1]),
        # a mask on ignored voxels only is an empty mask
        ([0, 1, 0, 0], [0, 255, 0, 0], Empty.BOTH, [math.nan] * 6),
        # no negative exists: specificity has no value
        ([1, 1, 1, 0], [1, 1, 1, 1], Empty.NONE, [6 / 7, 0.75, 1, 0.75, math.nan, 0.75]),
    ],
)
def test_empty_policy(prediction, label, empty, expected):
    counts = confusion_counts(torch.tensor([prediction]), torch.tensor([label]), 2)
    assert counts.empty()[1] is empty
    found = [values[1].item() for values in overlap_scores(counts).values()]
    assert found == pytest.approx(expected, nan_ok=True)


def test_missed_organ_is_not_perfect():
    label = torch.zeros(2, 5, 5, dtype=torch.long)
    label[:, 2:4, 2:4] = 1
    missed = dice(confusion_counts(torch.zeros_like(label), label, 2))[1]
    assert missed.item() == 0.0


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_bounds_and_the_relation_of_dice_and_iou(seed):
    counts = confusion_counts(*random_maps(seed, (2, 4, 4)), K)
    for values in overlap_scores(counts).values():
        valid = values[~values.isnan()]
        assert ((valid >= 0) & (valid <= 1)).all()
    jaccard = iou(counts)
    torch.testing.assert_close(dice(counts), 2 * jaccard / (1 + jaccard), equal_nan=True)


def test_dice_is_symmetric():
    prediction, label = random_maps(5)
    label[label == 255] = 0
    forward, backward = confusion_counts(prediction, label, K), confusion_counts(label, prediction, K)
    assert torch.equal(dice(forward), dice(backward))
    assert torch.equal(forward.fp, backward.fn)


def test_nothing_known_counts_nothing():
    label = torch.full((2, 3, 3), 255)
    counts = confusion_counts(torch.ones_like(label), label, K)
    assert isinstance(counts, ConfusionCounts)
    assert counts.tn.sum() == 0
    assert counts.empty() == [Empty.BOTH] * K


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (torch.zeros(2, 3, 3).long(), torch.zeros(2, 3, 4).long(), "resample"),
        (torch.zeros(2, 3, 3), torch.zeros(2, 3, 3).long(), "argmax"),
        (torch.zeros(2, 3, 3).long(), torch.full((2, 3, 3), 4), "label holds the value 4"),
        (torch.full((2, 3, 3), -1), torch.zeros(2, 3, 3).long(), "prediction holds the value -1"),
        (torch.full((2, 3, 3), 255), torch.zeros(2, 3, 3).long(), "prediction holds the value 255"),
    ],
)
def test_wrong_maps_are_refused(prediction, label, message):
    with pytest.raises(InputError, match=message):
        confusion_counts(prediction, label, K)
