"""The picture of a slice: colours mean classes, outlines the truth, and disagreement is counted rightly."""

import numpy as np
import pytest

from mambaseg.reports.figures import (
    DISAGREEMENT,
    GAP,
    TITLE_HEIGHT,
    TRUTH_OUTLINE,
    disagreement,
    disputed_share,
    foreground_region,
    prediction_panel,
)
from mambaseg.reports.palette import OKABE_ITO, class_colour, hex_colour

NAMES = ("background", "RV", "Myo", "LV")
SIDE = 96
TILE = 288
SCALE = TILE // SIDE


@pytest.fixture
def label():
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[20:60, 20:40] = 1
    label[20:60, 50:80] = 3
    return label


def image():
    return np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)


def tile(panel, place):
    left = GAP + place * (TILE + GAP)
    return np.asarray(panel)[TITLE_HEIGHT : TITLE_HEIGHT + TILE, left : left + TILE].astype(int)


def colours(pixels):
    return {tuple(int(v) for v in colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}


def test_tiles_are_image_truth_predictions_and_disagreement(label):
    shifted = np.roll(label, 6, axis=1)
    panel = prediction_panel(
        image(), label, {"unet": label, "mamba_unet": shifted, "ensemble": label}, NAMES, zoom=False
    )
    assert panel.width == GAP + 6 * (TILE + GAP)
    assert colours(tile(panel, 0)) <= {(g, g, g) for g in range(256)}
    truth = tile(panel, 1)
    outline = tuple(truth[20 * SCALE, 30 * SCALE])
    assert outline == class_colour(1)
    assert tuple(truth[20 * SCALE, 60 * SCALE]) == class_colour(3)
    assert class_colour(2) not in colours(truth)
    assert tuple(tile(panel, 3)[40 * SCALE, 20 * SCALE]) == TRUTH_OUTLINE, (
        "the truth's border shows where it was missed"
    )
    disputed = (tile(panel, 5) == DISAGREEMENT).all(-1)
    expected = np.kron(label != shifted, np.ones((SCALE, SCALE))).astype(bool)
    assert (disputed == expected).all()


def test_one_student_has_no_disagreement_and_no_truth_is_no_tile(label):
    panel = prediction_panel(image(), None, {"unet": label}, NAMES, zoom=False)
    assert panel.width == GAP + 2 * (TILE + GAP)
    assert TRUTH_OUTLINE not in colours(tile(panel, 1))


def test_unknown_pixels_are_hatched_not_painted(label):
    label[:10] = 255
    flat = np.zeros((SIDE, SIDE), np.float32)
    truth = tile(prediction_panel(flat, label, {"unet": label}, NAMES, zoom=False), 1)
    top = truth[: 10 * SCALE]
    assert colours(top) == {(0, 0, 0), (90, 90, 90)}


def test_slices_of_any_shape_fit():
    wide = np.zeros((40, 200), np.uint8)
    panel = prediction_panel(wide.astype(np.float32), wide, {"a": wide, "b": wide}, NAMES, zoom=False)
    assert panel.height < panel.width / 5
    large = np.zeros((700, 500), np.uint8)
    assert prediction_panel(large.astype(np.float32), large, {"a": large}, NAMES, zoom=False).height < TILE + 100


def test_many_classes_wrap_the_legend(label):
    few = prediction_panel(image(), label, {"unet": label}, NAMES, zoom=False)
    many = prediction_panel(image(), label, {"unet": label}, [f"a rather long class name {i}" for i in range(15)])
    assert many.width == few.width
    assert many.height > few.height


def test_zoom_shows_all_foreground_and_little_else():
    truth, prediction = np.zeros((2, 200, 300), np.uint8)
    truth[100:140, 200:220] = 1
    prediction[100:140, 230:250] = 2
    truth[0, 0] = 255
    rows, columns = foreground_region([truth, prediction])
    assert (rows.stop - rows.start, columns.stop - columns.start) == (70, 70)
    assert rows.start <= 100
    assert rows.stop >= 140
    assert columns.start <= 200
    assert columns.stop >= 250


@pytest.mark.parametrize("corner", [(0, 0), (199, 299), (0, 299)])
def test_zoom_stays_within_the_slice(corner):
    label = np.zeros((200, 300), np.uint8)
    label[corner] = 1
    rows, columns = foreground_region([label])
    assert label[rows, columns].shape == (64, 64)
    assert label[rows, columns].sum() == 1


def test_zoom_of_nothing_or_of_a_small_slice_is_the_whole():
    assert foreground_region([np.zeros((20, 30), int)]) == (slice(0, 20), slice(0, 30))
    assert foreground_region([np.ones((20, 30), int)]) == (slice(0, 20), slice(0, 30))


def test_disagreement_counts_the_votes_against_the_majority():
    students = np.array([[[0, 1, 1, 2]], [[0, 1, 2, 1]], [[0, 1, 1, 0]], [[0, 1, 2, 0]]])
    np.testing.assert_allclose(disagreement(students), [[0, 0, 0.5, 0.5]])
    assert disputed_share(students) == pytest.approx(2 / 3)
    assert disputed_share(np.zeros((2, 3, 3), int)) == 0


def test_colours_stay_apart():
    assert len({class_colour(i) for i in range(1, 15)}) == 14
    assert class_colour(1) == OKABE_ITO[0]
    assert hex_colour(0) == "#0072b2"
    assert len({hex_colour(i) for i in range(6)}) == 6
