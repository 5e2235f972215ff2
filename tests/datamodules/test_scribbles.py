"""Simulated annotations: truthful, seeded, of the wanted size, and like ACDC's experts'."""

import numpy as np
import pytest
from scipy import ndimage

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.datamodules.phantom import Phantom
from mambaseg.datamodules.prepare import PrepareRequest, prepare
from mambaseg.datamodules.scribbles import (
    SIMULATORS,
    Boxes,
    Coverage,
    Points,
    Scribbles,
    Slices,
    create_simulator,
    measure_coverage,
    simulate,
)
from mambaseg.datamodules.scribbles.strokes import walk, with_breaks
from mambaseg.datamodules.scribbles.thinning import skeleton
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.errors import InputError
from tests.datamodules.layouts import ACDC

EIGHT = np.ones((3, 3), bool)


@pytest.fixture(scope="module")
def labels():
    phantom = Phantom(patients=6, frames=2, depth=6, size=192, seed=0)
    return {case_id: phantom.array(case_id, "label") for case_id in phantom.case_ids()}


def annotated(labels, simulator, seed=0):
    return {case_id: simulate(label, 4, simulator, seed, case_id) for case_id, label in labels.items()}


def planes(labels, results):
    for case_id, label in labels.items():
        yield from zip(label, results[case_id], strict=True)


@pytest.mark.parametrize("name", SIMULATORS.names())
def test_what_is_annotated_is_true(labels, name):
    for plane, result in planes(labels, annotated(labels, create_simulator(name))):
        known = result != IGNORE_INDEX
        assert result.dtype == np.uint8
        assert np.array_equal(result[known], plane[known])


@pytest.mark.parametrize("name", SIMULATORS.names())
def test_seed_and_case_decide_everything(labels, name):
    simulator = create_simulator(name)
    case_id, label = next(iter(labels.items()))
    first = simulate(label, 4, simulator, 0, case_id)
    assert np.array_equal(first, simulate(label, 4, simulator, 0, case_id))
    assert any(not np.array_equal(first, simulate(label, 4, simulator, seed, case_id)) for seed in (1, 2, 3))
    assert any(not np.array_equal(first, simulate(label, 4, simulator, 0, case_id + tail)) for tail in "abc")


@pytest.mark.parametrize("name", SIMULATORS.names())
def test_planar_masks_and_unknown_pixels(labels, name):
    label = next(iter(labels.values()))[1].copy()
    label[:90] = IGNORE_INDEX
    result = simulate(label, 4, create_simulator(name), 0, "x")
    assert result.shape == label.shape
    assert (result[:90] == IGNORE_INDEX).all()
    assert (result != IGNORE_INDEX).any()


def test_coverage_is_what_was_asked_for(labels):
    coverage = (0.005, 0.08, 0.2)
    results = annotated(labels, Scribbles(coverage=coverage))
    measured = measure_coverage(((labels[c], results[c]) for c in labels), 4).fractions
    assert measured == pytest.approx([0.005, 0.08, 0.2, 0.2], rel=0.12)


def test_every_class_of_a_slice_is_scribbled_unless_overlooked(labels):
    for plane, result in planes(labels, annotated(labels, Scribbles())):
        assert set(np.unique(result)) - {IGNORE_INDEX} == set(np.unique(plane))
    present = drawn = 0
    for plane, result in planes(labels, annotated(labels, Scribbles(missing=0.4))):
        present += len(np.unique(plane))
        drawn += len(set(np.unique(result)) - {IGNORE_INDEX})
    assert 0.45 < drawn / present < 0.75


def test_strokes_are_thin_lines_within_and_a_loop_around(labels):
    pieces, reach = [], []
    for plane, result in planes(labels, annotated(labels, Scribbles(breaks=0.0))):
        for c in np.unique(plane).tolist():
            stroke = result == c
            assert ndimage.distance_transform_edt(np.pad(stroke, 1)).max() < 3
            pieces.append(ndimage.label(stroke, EIGHT)[1])
        if (plane > 0).any():
            reach.append(ndimage.distance_transform_edt(plane == 0)[result == 0])
    assert np.median(pieces) <= 2
    assert 1 < np.median(np.concatenate(reach)) < 0.15 * 192


def test_width_and_breaks(labels):
    thin, wide, broken = (
        annotated(labels, Scribbles(spread=0.0, **options))
        for options in ({"breaks": 0.0}, {"breaks": 0.0, "width": 4}, {"breaks": 4.0})
    )
    thickness, pieces = [], []
    for results in (thin, wide, broken):
        background = [result == 0 for _, result in planes(labels, results)]
        thickness.append(np.mean([ndimage.distance_transform_edt(np.pad(b, 1)).max() for b in background]))
        pieces.append(np.mean([ndimage.label(b, EIGHT)[1] for b in background]))
    assert thickness[0] < 1.5 < thickness[1]
    assert pieces[2] > pieces[0] + 1


def test_an_elongated_structure_is_scribbled_along_its_middle():
    label = np.zeros((60, 80), np.uint8)
    label[25:34, 10:70] = 1
    result = simulate(label, 2, Scribbles(coverage=(0.01, 0.07), spread=0.0, breaks=0.0), 0, "bar")
    rows, columns = np.nonzero(result == 1)
    assert set(rows) <= {28, 29, 30}
    assert np.ptp(columns) > 25


def test_a_slice_without_foreground_has_a_background_scribble():
    result = simulate(np.zeros((100, 120), np.uint8), 4, Scribbles(), 0, "empty")
    assert 0.002 < (result == 0).mean() < 0.02


def test_background_between_crowded_structures_is_scribbled():
    label = np.zeros((12, 11), np.uint8)
    label[::2], label[:, ::3] = 1, 2
    assert (simulate(label, 3, Scribbles(), 0, "crowd") == 0).sum() >= 2


def test_a_structure_of_one_pixel_is_marked():
    label = np.zeros((30, 30), np.uint8)
    label[4, 5] = 2
    for simulator in (Scribbles(), Points(), Boxes()):
        assert simulate(label, 4, simulator, 0, "speck")[4, 5] == 2


def test_points(labels):
    for plane, result in planes(labels, annotated(labels, Points(clicks=3, radius=0))):
        for c in np.unique(plane).tolist():
            assert (result == c).sum() == min(3, (plane == c).sum())
        if (plane == 3).sum() > 100:
            assert ndimage.distance_transform_edt(plane == 3)[result == 3].min() > 2


def test_boxes(labels):
    for plane, result in planes(labels, annotated(labels, Boxes(margin=0, core=0.0))):
        inside = np.zeros(plane.shape, bool)
        for c in set(np.unique(plane)) - {0}:
            rows, columns = np.nonzero(plane == c)
            inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
            assert (result == c).sum() == 1
        assert np.array_equal(result == 0, ~inside)


def test_sparse_slices(labels):
    for case_id, result in annotated(labels, Slices(count=2)).items():
        known = (result != IGNORE_INDEX).all(axis=(1, 2))
        assert known.sum() == 2
        assert np.array_equal(result[known], labels[case_id][known])
        assert (result[~known] == IGNORE_INDEX).all()
    third = annotated(labels, Scribbles(every=3))
    assert all((r != IGNORE_INDEX).any(axis=(1, 2)).sum() == 2 for r in third.values())


def test_skeleton_is_thin_connected_and_central():
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 17
    ring = disc & ~(np.hypot(*np.mgrid[-20:21, -20:21]) < 9)
    line = skeleton(ring)
    assert ndimage.label(line, EIGHT)[1] == 1
    assert not ndimage.binary_erosion(line, np.ones((2, 2))).any()
    radii = np.hypot(*(np.argwhere(line) - 20).T)
    assert 10.5 < radii.min() < radii.max() < 15.5
    assert skeleton(disc).sum() <= 3
    assert not skeleton(np.zeros((4, 4), bool)).any()
    assert skeleton(np.ones((1, 6), bool)).any()


def test_a_walk_cut_anywhere_is_one_stroke():
    line = np.zeros((20, 20), bool)
    line[3, 2:18] = line[3:15, 17] = True
    order = walk(line, np.random.default_rng(0))
    assert sorted(order) == np.flatnonzero(line).tolist()
    for count in range(1, len(order)):
        part = np.zeros_like(line)
        part.flat[order[:count]] = True
        assert ndimage.label(part, EIGHT)[1] == 1
    assert len(with_breaks(order, 50.0, np.random.default_rng(0))) < len(order)


def test_coverage_counts():
    label = np.array([[0, 0, 1, 1, 255]], np.uint8)
    scribble = np.array([[0, 255, 1, 0, 1]], np.uint8)
    coverage = measure_coverage([(label, scribble)], 3)
    assert coverage == Coverage((2, 2, 0), (1, 1, 0), 1)
    assert coverage.fractions[:2] == (0.5, 0.5)
    assert np.isnan(coverage.fractions[2])
    assert coverage.total == 0.75


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scrible", {}, "Did you mean 'scribble'"),
        ("scribble", {"widht": 2}, "does not take the options"),
        ("scribble", {"coverage": [2.0]}, r"coverage is \[2.0\]"),
        ("scribble", {"width": 0}, "width must be 1 or more"),
        ("points", {"clicks": 0}, "clicks must be 1"),
        ("boxes", {"margin": -1}, "margin must be 0"),
        ("slices", {"count": 0}, "count must be 1"),
        ("points", {"every": 0}, "every must be 1"),
    ],
)
def test_impossible_options_are_named(name, options, message):
    with pytest.raises(InputError, match=message):
        create_simulator(name, **options)


@pytest.mark.real_data
def test_simulated_scribbles_cover_as_much_as_the_experts(acdc_h5, tmp_path):
    prepare(PrepareRequest("acdc", ACDC.class_names, ACDC.layouts_for("auto"), acdc_h5, tmp_path / "out"))
    dataset = PreparedDataset(tmp_path / "out")
    labels = {case_id: np.asarray(dataset.array(case_id, "label")) for case_id in dataset.case_ids()}
    results = annotated(labels, Scribbles())
    mine = measure_coverage(((labels[c], results[c]) for c in labels), 4)
    experts = measure_coverage(((labels[c], dataset.array(c, "scribble")) for c in labels), 4)
    # The defaults are the published means over all patients; two patients scatter around them.
    assert mine.fractions == pytest.approx((0.0066, 0.10, 0.14, 0.10), rel=0.15)
    assert mine.fractions == pytest.approx(experts.fractions, rel=0.4)
    assert mine.wrong == 0
