"""What the generated patients promise."""

import pickle
import time

import numpy as np
import pytest

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.datamodules.phantom import Phantom
from mambaseg.errors import InputError


@pytest.fixture(scope="module")
def phantom():
    return Phantom(patients=16, frames=2, depth=6, size=64, seed=0)


def arrays(source, kind):
    return [source.array(case_id, kind) for case_id in source.case_ids()]


def test_shapes_types_and_ranges(phantom):
    for case_id in phantom.case_ids():
        image, label, scribble = (phantom.array(case_id, kind) for kind in ("image", "label", "scribble"))
        assert image.shape == label.shape == scribble.shape == (6, 64, 64)
        assert (image.dtype, label.dtype, scribble.dtype) == (np.float32, np.uint8, np.uint8)
        assert image.min() == 0
        assert image.max() == 1
        assert not image.flags.writeable
        assert phantom.array(case_id, "image") is image
        spacing = phantom.spacing_mm(case_id)
        assert 8 <= spacing[0] <= 10
        assert 250 <= spacing[1] * 64 <= 350
        assert spacing[1] == spacing[2]


def test_every_case_has_every_class_and_some_slices_are_empty(phantom):
    empty = 0
    for label in arrays(phantom, "label"):
        assert set(np.unique(label)) == {0, 1, 2, 3}
        empty += sum(not plane.any() for plane in label)
        areas = (label > 0).sum(axis=(1, 2))
        assert areas[-1] < areas[0], "structures shrink from base to apex"
    assert 0 < empty < 20


def test_scribbles_look_like_acdc(phantom):
    labels, scribbles = arrays(phantom, "label"), arrays(phantom, "scribble")
    coverage = np.mean([(scribble != IGNORE_INDEX).mean() for scribble in scribbles])
    assert 0.008 < coverage < 0.013
    for label, scribble in zip(labels, scribbles, strict=True):
        known = scribble != IGNORE_INDEX
        assert np.array_equal(scribble[known], label[known])
        for plane, strokes in zip(label, scribble, strict=True):
            assert set(np.unique(strokes)) - {IGNORE_INDEX} == set(np.unique(plane))


def test_the_heart_contracts(phantom):
    thickening = []
    for number in range(1, 17):
        diastole, systole = (phantom.array(f"phantom{number:03d}_frame{frame:02d}", "label") for frame in (1, 2))
        assert (systole == 3).sum() < (diastole == 3).sum(), "the cavity empties"
        thickening.append((systole == 2).sum() / (diastole == 2).sum())
    assert 0.8 < np.mean(thickening) < 1.2, "muscle moves but does not vanish"


def test_a_seed_decides_everything(phantom):
    again, other = Phantom(16, 2, 6, 64, seed=0), Phantom(16, 2, 6, 64, seed=1)
    # Another order of asking must not matter.
    for case_id in reversed(phantom.case_ids()):
        for kind in ("image", "label", "scribble"):
            assert np.array_equal(again.array(case_id, kind), phantom.array(case_id, kind))
            assert not np.array_equal(other.array(case_id, kind), phantom.array(case_id, kind))
    images = {image.tobytes() for image in arrays(phantom, "image")}
    assert len(images) == 32


def test_scanners_differ(phantom):
    contrast = []
    for case_id in phantom.case_ids():
        image, label = phantom.array(case_id, "image"), phantom.array(case_id, "label")
        contrast.append(image[label == 3].mean() - image[label == 2].mean())
    assert min(contrast) > 0.03, "blood is brighter than muscle everywhere"
    assert max(contrast) > 2.5 * min(contrast), "but by very different amounts"


def test_other_sizes_frames_and_depths():
    phantom = Phantom(patients=1, frames=5, depth=3, size=(48, 80), seed=3)
    cavities = [(phantom.array(case_id, "label") == 3).sum() for case_id in phantom.case_ids()]
    assert phantom.array("phantom001_frame05", "image").shape == (3, 48, 80)
    assert np.argmin(cavities) in (2, 3), "end-systole lies in the middle of the cycle"


def test_a_narrow_field_of_view_is_the_middle_of_the_whole_torso():
    whole = Phantom(patients=2, depth=4, size=80, seed=0)
    middle = Phantom(patients=2, depth=4, size=40, seed=0, field_of_view=0.5)
    for case_id in whole.case_ids():
        for kind in ("image", "label", "scribble"):
            cut = middle.array(case_id, kind)
            assert np.array_equal(cut, whole.array(case_id, kind)[:, 20:60, 20:60])
            assert not cut.flags.writeable
        assert middle.spacing_mm(case_id) == whole.spacing_mm(case_id), "the pixels are the same"
        heart = (whole.array(case_id, "label") > 0).sum()
        assert (middle.array(case_id, "label") > 0).sum() > 0.95 * heart


def test_pickling_leaves_the_arrays_behind(phantom):
    phantom.array("phantom001_frame01", "image")
    data = pickle.dumps(phantom)
    assert len(data) < 20_000
    assert np.array_equal(
        pickle.loads(data).array("phantom001_frame01", "image"), phantom.array("phantom001_frame01", "image")
    )


def test_a_case_is_made_in_milliseconds():
    Phantom(1, 1, 1, 16).array("phantom001_frame01", "image")
    phantom = Phantom(patients=8, frames=2, depth=6, size=64, seed=9)
    start = time.perf_counter()
    arrays(phantom, "image")
    assert (time.perf_counter() - start) / 16 < 0.1


def test_messages_for_bad_input(phantom):
    with pytest.raises(InputError, match="patients"):
        Phantom(patients=0)
    with pytest.raises(InputError, match="size"):
        Phantom(size=8)
    with pytest.raises(InputError, match="field_of_view"):
        Phantom(field_of_view=0.2)
    with pytest.raises(InputError, match="phantom099_frame01"):
        phantom.array("phantom099_frame01", "image")
