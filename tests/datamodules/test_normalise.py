from pathlib import Path

import numpy as np
import pytest

from mambaseg.datamodules.normalise import clip99, minmax, normalise_volume
from mambaseg.errors import InputError

FILE = Path("scan.nii.gz")


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(300, 80, (6, 20, 30)).astype(np.float32)


def test_minmax_is_affine_onto_the_unit_range(volume):
    low, high = volume.min(), volume.max()
    np.testing.assert_allclose(minmax(volume), (volume.astype(np.float64) - low) / (high - low), atol=1e-6)


def test_clip99_saturates_one_percent(volume):
    result = clip99(volume)
    assert (result.min(), result.max()) == (0.0, 1.0)
    assert (result == 1.0).mean() == pytest.approx(0.01, abs=0.001)
    top = np.percentile(volume, 99)
    below = volume < top
    expected = (volume[below] - volume.min()) / (top - volume.min())
    np.testing.assert_allclose(result[below], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "ready", "applied"),
    [
        ("auto", True, "publisher"),
        ("auto", False, "clip99"),
        ("clip99", True, "clip99"),
        ("minmax", False, "minmax"),
        ("none", False, "none"),
    ],
)
def test_choice(how, ready, applied, volume):
    result, name = normalise_volume(volume, how, FILE, published_ready=ready)
    assert (name, result.dtype) == (applied, np.float32)
    assert np.array_equal(result, volume) == (applied in ("publisher", "none"))


def test_integers_become_float32(volume):
    result, _ = normalise_volume(volume.astype(np.int16), "minmax", FILE, published_ready=False)
    assert result.dtype == np.float32


def test_nearly_empty_volume_is_not_clipped_to_nothing():
    volume = np.zeros((2, 20, 20), np.float32)
    volume[0, 0, 0] = 5.0
    with pytest.raises(InputError, match=r"scan\.nii\.gz: 99 % of the voxels.*--normalise minmax"):
        normalise_volume(volume, "auto", FILE, published_ready=False)
