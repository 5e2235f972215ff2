"""The published recipe against scipy, and what every transform promises."""

import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from scipy import ndimage

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.datamodules.transforms import TRANSFORMS, create_transform
from mambaseg.datamodules.transforms.nearest import OUTSIDE, gather, rotate_zoom_map, zoom, zoom_axis
from mambaseg.errors import InputError

SIZES = [(224, 224), (64, 64), (96, 80), (1, 1), (225, 224)]
SHAPES = [(256, 216), (216, 256), (154, 154), (512, 428), (243, 208), (65, 64), (8, 5), (1, 7), (2, 2), (224, 224)]


def slice_pair(shape, seed=0, unknown=False):
    rng = np.random.default_rng(seed)
    image = rng.random(shape, dtype=np.float32) + np.float32(0.01)
    label = rng.integers(0, 4, shape, dtype=np.uint8)
    if unknown:
        label[rng.random(shape) < 0.95] = IGNORE_INDEX
        label[0, 0] = IGNORE_INDEX
    return image, label


def scipy_zoom(array, size, fill):
    factors = (size[0] / array.shape[0], size[1] / array.shape[1])
    return ndimage.zoom(array, factors, order=0, cval=fill)


def scipy_rotate(array, angle, fill):
    return ndimage.rotate(array, angle, order=0, reshape=False, cval=fill)


@pytest.mark.parametrize("size", SIZES)
def test_zoom_equals_scipy_to_the_bit(size):
    for shape in SHAPES:
        image, label = slice_pair(shape)
        assert np.array_equal(zoom(image, size, 0), scipy_zoom(image, size, 0)), shape
        assert np.array_equal(zoom(label, size, 255), scipy_zoom(label, size, 255)), shape


def test_zoom_axis_equals_scipy_for_every_acdc_length():
    overflowing = 0
    for length in range(150, 515):
        for wanted in (224, 256):
            axis = np.arange(1, length + 1, dtype=np.float64)
            index = zoom_axis(length, wanted)
            assert np.array_equal(
                np.where(index == OUTSIDE, 0, index + 1), ndimage.zoom(axis, wanted / length, order=0)
            )
            overflowing += index[-1] == OUTSIDE
    assert overflowing > 0, "the rounding case that scipy fills must be among the lengths tested"


@pytest.mark.parametrize("angle", [-20, -19, -13, -7, -1, 0, 1, 5, 10, 19, 45, 90])
def test_rotation_then_zoom_equals_scipy_to_the_bit(angle):
    for shape in SHAPES:
        for size in SIZES[:3]:
            image, label = slice_pair(shape, unknown=True)
            index = rotate_zoom_map(shape, angle, size)
            expected = scipy_zoom(scipy_rotate(image, angle, 0), size, 0)
            assert np.array_equal(gather(image, index, 0), expected), (shape, size)
            expected_label = scipy_zoom(scipy_rotate(label, angle, 255), size, 255)
            assert np.array_equal(gather(label, index, 255), expected_label), (shape, size)


def published_by_scipy(image, label, size, rng):
    fill = IGNORE_INDEX if (label == IGNORE_INDEX).any() else 0
    if rng.random() < 0.5:
        turns, axis = int(rng.integers(4)), int(rng.integers(2))
        image, label = (np.flip(np.rot90(array, turns), axis) for array in (image, label))
        branch = ("turn", turns, axis)
    elif rng.random() < 0.5:
        angle = int(rng.integers(-20, 20))
        image, label = scipy_rotate(image, angle, 0), scipy_rotate(label, angle, fill)
        branch = ("rotate", angle)
    else:
        branch = ("nothing",)
    return scipy_zoom(image, size, 0), scipy_zoom(label, size, fill), branch


def test_published_recipe_equals_the_scipy_recipe():
    transform = create_transform("published", (224, 224))
    branches = set()
    for seed in range(160):
        image, label = slice_pair(SHAPES[seed % 6], seed, unknown=seed % 2 == 1)
        view = transform(image, label, np.random.default_rng(seed))
        expected_image, expected_label, branch = published_by_scipy(
            image, label, (224, 224), np.random.default_rng(seed)
        )
        branches.add(branch)
        assert np.array_equal(view.image, expected_image), branch
        assert np.array_equal(view.label, expected_label), branch
    assert {(branch[1], branch[2]) for branch in branches if branch[0] == "turn"} == {
        (turns, axis) for turns in range(4) for axis in range(2)
    }
    assert len([branch for branch in branches if branch[0] == "rotate"]) > 15
    assert ("nothing",) in branches


def test_published_probabilities():
    image = np.random.default_rng(0).random((64, 64), dtype=np.float32) + np.float32(0.01)
    label = np.zeros((64, 64), np.uint8)
    values = np.sort(image, axis=None)
    transform = create_transform("published", (64, 64))
    unchanged, turned = 0, 0
    for seed in range(2000):
        view = transform(image, label, np.random.default_rng(seed))
        same = np.array_equal(view.image, image)
        unchanged += same
        turned += not same and np.array_equal(np.sort(view.image, axis=None), values)
    assert abs(turned / 2000 - 0.5) < 0.04
    # A quarter is left alone; one rotation in forty has angle 0.
    assert abs(unchanged / 2000 - 0.256) < 0.04


@pytest.mark.parametrize("name", TRANSFORMS.names())
class TestEveryTransform:
    SIZE = (48, 40)

    def test_shape_and_type(self, name):
        transform = create_transform(name, self.SIZE)
        for seed in range(12):
            image, label = slice_pair((61, 50), seed)
            view = transform(image, label, np.random.default_rng(seed))
            for array in (view.image, view.image_strong):
                if array is not None:
                    assert array.shape == self.SIZE
                    assert array.dtype == np.float32
                    assert np.isfinite(array).all()
            assert view.label.shape == self.SIZE
            assert view.label.dtype == np.uint8
            assert set(np.unique(view.label)) <= {0, 1, 2, 3}

    def test_the_generator_alone_decides(self, name):
        image, label = slice_pair((61, 50))
        transform = create_transform(name, self.SIZE)
        first = [transform(image, label, np.random.default_rng(seed)) for seed in range(8)]
        np.random.seed(1)  # noqa: NPY002 - the global state must not matter
        again = [create_transform(name, self.SIZE)(image, label, np.random.default_rng(seed)) for seed in (7, 3, 0)]
        for seed, view in zip((7, 3, 0), again, strict=True):
            for one, other in zip(first[seed], view, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    assert np.array_equal(one, other)
        if name != "none":
            assert len({view.image.tobytes() for view in first}) > 3

    def test_image_does_not_depend_on_the_label(self, name):
        transform = create_transform(name, self.SIZE)
        image, label = slice_pair((61, 50))
        unknown = np.full_like(label, IGNORE_INDEX)
        for seed in range(20):
            view = transform(image, label, np.random.default_rng(seed))
            blind = transform(image, unknown, np.random.default_rng(seed))
            assert np.array_equal(view.image, blind.image)
            assert (view.image_strong is None) == (blind.image_strong is None)
            if view.image_strong is not None:
                assert np.array_equal(view.image_strong, blind.image_strong)
            assert (blind.label == IGNORE_INDEX).all()

    def test_input_may_be_read_only_and_stays_unchanged(self, name):
        image, label = slice_pair((61, 50))
        kept = image.copy(), label.copy()
        image.setflags(write=False)
        label.setflags(write=False)
        transform = create_transform(name, self.SIZE)
        for seed in range(8):
            view = transform(image, label, np.random.default_rng(seed))
            assert view.image.flags.writeable
            assert view.label.flags.writeable
        assert np.array_equal(image, kept[0])
        assert np.array_equal(label, kept[1])

    def test_colour_images_keep_their_channels(self, name):
        image = np.random.default_rng(0).random((61, 50, 3), dtype=np.float32)
        _, label = slice_pair((61, 50))
        transform = create_transform(name, self.SIZE)
        for seed in range(6):
            assert transform(image, label, np.random.default_rng(seed)).image.shape == (*self.SIZE, 3)


def test_image_and_label_move_together():
    label = np.zeros((64, 64), np.uint8)
    label[12:30, 20:44] = 1
    image = label.astype(np.float32)
    for name, options in [("published", {}), ("affine", {"intensity": 0.0}), ("weak_strong", {})]:
        transform = create_transform(name, (64, 64), **options)
        for seed in range(12):
            view = transform(image, label, np.random.default_rng(seed))
            disagreement = ((view.image > 0.5) != (view.label == 1)).mean()
            assert disagreement < 0.03, (name, seed)


def test_strong_view_differs_in_intensity_only():
    image, label = slice_pair((64, 64))
    transform = create_transform("weak_strong", (64, 64), cutout=0.0)
    changed = 0
    for seed in range(10):
        view = transform(image, label, np.random.default_rng(seed))
        assert view.image_strong is not None
        changed += not np.array_equal(view.image, view.image_strong)
        assert view.image_strong.min() >= 0
        assert view.image_strong.max() <= 1
    assert changed >= 8


def test_the_augmentation_library_is_the_mit_release():
    assert metadata.version("albumentations") == "2.0.8"
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("albumentationsx")


def test_importing_transforms_loads_no_heavy_library():
    code = (
        "import sys, mambaseg.datamodules.transforms, mambaseg.datamodules.phantom;"
        "print([name for name in ('albumentations', 'cv2', 'scipy', 'lightning') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_messages_for_bad_input():
    with pytest.raises(InputError, match="published"):
        create_transform("publishd", (64, 64))
    with pytest.raises(InputError, match="max_angel"):
        create_transform("published", (64, 64), max_angel=3)
    with pytest.raises(InputError, match="size"):
        create_transform("published", (0, 64))
    with pytest.raises(InputError, match="intensity"):
        create_transform("affine", (64, 64), intensity=9.0)
    with pytest.raises(InputError, match="scale"):
        create_transform("affine", (64, 64), scale=(1.2, 0.8))
