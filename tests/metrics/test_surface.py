"""Surface distances against an all-pairs oracle in plain Python, hand-computed cases, and their symmetries."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaseg.errors import InputError
from mambaseg.metrics.rows import DISTANCE_NAMES, SURFACE_NAMES
from mambaseg.metrics.surface import known_spacing, surface_distances, surface_scores

SPACING = (8.0, 1.5, 1.25)


def surface_points(mask):
    """Voxels with a face neighbour that is not in the mask; there is nothing outside the image."""
    inside = set(map(tuple, np.argwhere(mask).tolist()))
    neighbours = [tuple(sign * (axis == k) for k in range(mask.ndim)) for axis in range(mask.ndim) for sign in (-1, 1)]
    return [p for p in sorted(inside) if any(tuple(np.add(p, step)) not in inside for step in neighbours)]


def directed(points, others, spacing):
    return [
        min(math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(p, q, spacing, strict=True))) for q in others)
        for p in points
    ]


def percentile95(values):
    """Linear interpolation between order statistics, written out."""
    ordered = sorted(values)
    position = 0.95 * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def oracle(prediction, truth, spacing, tolerance):
    there = directed(surface_points(prediction), surface_points(truth), spacing)
    back = directed(surface_points(truth), surface_points(prediction), spacing)
    pooled = there + back
    return {
        "hd95": percentile95(pooled),
        "hd95_max": max(percentile95(there), percentile95(back)),
        "hd": max(pooled),
        "asd": sum(there) / len(there),
        "assd": sum(pooled) / len(pooled),
        "nsd": sum(d <= tolerance for d in pooled) / len(pooled),
    }


def random_mask(seed, shape, density=0.3):
    generator = np.random.default_rng(seed)
    mask = generator.random(shape) < density
    mask[tuple(generator.integers(0, shape))] = True
    return mask


def blob(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


@pytest.mark.parametrize("shape", [(4, 7, 6), (9, 8), (2, 5, 5), (1, 1, 9)])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_equals_all_pairs(shape, density):
    # dense random masks touch every border of the image
    for seed in range(3):
        prediction, truth = random_mask(seed, shape, density), random_mask(seed + 100, shape, density)
        spacing = SPACING[-len(shape) :]
        axes = [k for k, size in enumerate(shape) if size > 1]
        flat = [mask.squeeze() for mask in (prediction, truth)]
        scores = surface_scores(prediction, truth, spacing, nsd_tolerance_mm=2.0)
        expected_mm = oracle(*flat, [spacing[k] for k in axes], 2.0)
        expected_vox = oracle(*flat, [1.0] * len(axes), 2.0)
        for name in DISTANCE_NAMES:
            assert scores[f"{name}_mm"] == pytest.approx(expected_mm[name], abs=1e-9)
            assert scores[f"{name}_vox"] == pytest.approx(expected_vox[name], abs=1e-9)
        assert scores["nsd"] == expected_mm["nsd"]


def test_masks_far_apart_in_a_large_image_equal_all_pairs():
    prediction, truth = blob((12, 40, 40), (0, 0, 0), (2, 3, 2)), blob((12, 40, 40), (10, 36, 37), (12, 40, 40))
    scores = surface_scores(prediction, truth, SPACING)
    expected = oracle(prediction, truth, SPACING, 2.0)
    assert scores["hd95_mm"] == pytest.approx(expected["hd95"])
    assert scores["asd_mm"] == pytest.approx(expected["asd"])


def test_hand_computed_shift():
    # two single voxels, one slice apart: 8 mm, 1 voxel
    scores = surface_scores(blob((3, 4, 4), (0, 1, 1), (1, 2, 2)), blob((3, 4, 4), (1, 1, 1), (2, 2, 2)), SPACING)
    assert {scores[f"{name}_mm"] for name in DISTANCE_NAMES} == {8.0}
    assert {scores[f"{name}_vox"] for name in DISTANCE_NAMES} == {1.0}
    assert scores["nsd"] == 0.0


def test_the_definitions_differ_where_they_should():
    # on a line: the truth is position 0, the prediction 0..20, whose surface is its two ends
    prediction, truth = blob((30,), (0,), (21,)), blob((30,), (0,), (1,))
    distances = surface_distances(prediction, truth, (1.0,))
    assert sorted(distances.pooled.tolist()) == [0, 0, 20]
    assert distances.hd() == 20
    assert distances.hd95_pooled() == pytest.approx(18)
    assert distances.hd95_max() == pytest.approx(19)
    assert distances.asd() == 10
    assert distances.assd() == pytest.approx(20 / 3)
    assert distances.nsd(0) == pytest.approx(2 / 3)


def test_asd_is_directed_from_the_prediction():
    small, large = blob((9, 9), (4, 4), (5, 5)), blob((9, 9), (0, 0), (9, 9))
    assert surface_scores(small, large)["asd_vox"] == 4.0
    assert surface_scores(large, small)["asd_vox"] > 4.0


def test_the_border_of_the_image_is_surface():
    # a mask that fills the image: its surface is the image's border, 4 * 4 - 4 pixels
    full = np.ones((4, 4), bool)
    assert len(surface_distances(full, full, (1, 1)).prediction_to_truth) == 12


def test_a_slice_stored_in_three_dimensions_scores_like_the_slice():
    prediction, truth = blob((12, 12), (2, 2), (9, 8)), blob((12, 12), (3, 1), (11, 9))
    flat = surface_scores(prediction, truth, (1.5, 1.25))
    assert surface_scores(prediction[None], truth[None], (8.0, 1.5, 1.25)) == flat
    assert surface_scores(prediction[None], truth[None], (math.nan, 1.5, 1.25)) == flat
    nothing = np.zeros((12, 12), bool)
    assert surface_scores(nothing[None], truth[None], (8.0, 1.5, 1.25)) == surface_scores(nothing, truth, (1.5, 1.25))


def test_a_single_voxel_image():
    one = np.ones((1, 1, 1), bool)
    scores = surface_scores(one, one, SPACING)
    assert scores["hd95_mm"] == scores["assd_vox"] == 0.0
    assert surface_scores(~one, one, SPACING)["hd95_mm"] > 0


@pytest.mark.parametrize("spacing", [None, (math.nan,) * 3, (8.0, math.nan, 1.25)])
def test_unknown_spacing_leaves_voxels_only(spacing):
    prediction, truth = blob((4, 9, 9), (0, 2, 2), (3, 5, 6)), blob((4, 9, 9), (1, 2, 3), (4, 6, 6))
    for guess in (prediction, np.zeros_like(prediction)):
        scores = surface_scores(guess, truth, spacing)
        known = surface_scores(guess, truth, SPACING)
        for name in SURFACE_NAMES:
            if name.endswith("_vox"):
                assert scores[name] == known[name]
            else:
                assert math.isnan(scores[name])


def test_empty_policy():
    mask, nothing = blob((3, 4, 5), (0, 1, 1), (2, 3, 3)), np.zeros((3, 4, 5), bool)
    spacing = (10.0, 2.0, 1.0)
    for scores in (surface_scores(nothing, mask, spacing), surface_scores(mask, nothing, spacing)):
        for name in DISTANCE_NAMES:
            assert scores[f"{name}_mm"] == pytest.approx(math.sqrt(30**2 + 8**2 + 5**2))
            assert scores[f"{name}_vox"] == pytest.approx(math.sqrt(9 + 16 + 25))
        assert scores["nsd"] == 0.0
    assert all(math.isnan(value) for value in surface_scores(nothing, nothing, spacing).values())


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_missed_organ_is_worse_than_any_found_one(seed):
    shape = (3, 5, 4)
    prediction, truth = random_mask(seed, shape, 0.05), random_mask(seed + 1, shape, 0.05)
    found, missed = surface_scores(prediction, truth, SPACING), surface_scores(prediction & False, truth, SPACING)
    for name in DISTANCE_NAMES:
        for unit in ("mm", "vox"):
            assert missed[f"{name}_{unit}"] > found[f"{name}_{unit}"]


@given(st.integers(0, 10**6), st.sampled_from([(3, 6, 5), (7, 8)]))
@settings(max_examples=25, deadline=None)
def test_symmetries(seed, shape):
    spacing = SPACING[-len(shape) :]
    prediction, truth = random_mask(seed, shape), random_mask(seed + 1, shape)
    scores = surface_scores(prediction, truth, spacing)
    swapped = surface_scores(truth, prediction, spacing)
    for name, unit in itertools.product(("hd95", "hd95_max", "hd", "assd"), ("mm", "vox")):
        assert swapped[f"{name}_{unit}"] == pytest.approx(scores[f"{name}_{unit}"])
    for axis in range(len(shape)):
        flipped = surface_scores(np.flip(prediction, axis), np.flip(truth, axis), spacing)
        assert flipped == pytest.approx(scores)
    padding = [(2, 1)] * len(shape)
    assert surface_scores(np.pad(prediction, padding), np.pad(truth, padding), spacing) == pytest.approx(scores)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_identical_masks_and_order_of_the_definitions(seed):
    prediction, truth = random_mask(seed, (3, 6, 5)), random_mask(seed + 1, (3, 6, 5))
    same = surface_scores(truth, truth, SPACING)
    assert {same[name] for name in SURFACE_NAMES if name != "nsd"} == {0.0}
    assert same["nsd"] == 1.0
    scores = surface_scores(prediction, truth, SPACING)
    for name in ("hd95_mm", "hd95_max_mm", "asd_mm", "assd_mm"):
        assert 0 <= scores[name] <= scores["hd_mm"] + 1e-12


def test_units_scale():
    prediction, truth = random_mask(0, (3, 6, 5)), random_mask(1, (3, 6, 5))
    scores = surface_scores(prediction, truth, (2.0, 2.0, 2.0))
    for name in DISTANCE_NAMES:
        assert scores[f"{name}_mm"] == pytest.approx(2 * scores[f"{name}_vox"])


def test_wrong_input_is_refused():
    mask = np.ones((2, 3, 3), bool)
    with pytest.raises(InputError, match="one grid"):
        surface_scores(mask, np.ones((2, 3, 4), bool))
    with pytest.raises(InputError, match="one per axis"):
        surface_scores(mask, mask, (1.0, 1.0))
    with pytest.raises(InputError, match="positive"):
        surface_scores(mask, mask, (0.0, 1.0, 1.0))
    with pytest.raises(InputError, match="empty mask"):
        surface_distances(mask & False, mask, (1, 1, 1))
    with pytest.raises(InputError, match="unknown"):
        surface_distances(mask, mask, (math.nan, 1, 1))


def test_inputs_are_left_alone():
    prediction, truth = random_mask(0, (3, 6, 5)), random_mask(1, (3, 6, 5))
    copies = prediction.copy(), truth.copy()
    surface_scores(prediction, truth, SPACING)
    assert np.array_equal(prediction, copies[0])
    assert np.array_equal(truth, copies[1])


def test_known_spacing_drops_flat_axes():
    assert known_spacing((8.0, 1.5, 1.25), (1, 4, 4)) == (1.5, 1.25)
    assert known_spacing(None, (4, 4)) is None
