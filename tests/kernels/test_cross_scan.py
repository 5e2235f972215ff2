"""Reading orders: the published index table, and views against indices."""

import pytest
import torch

from mambaseg.kernels import cross_merge, cross_scan
from mambaseg.kernels.cross_scan import scan_positions
from mambaseg.kernels.cross_scan.reference import cross_merge_reference, cross_scan_reference

PUBLISHED_2X3 = [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]


def test_positions_match_the_published_table():
    assert scan_positions(2, 3).tolist() == PUBLISHED_2X3


def test_scan_of_pixel_indices_is_the_table():
    pixels = torch.arange(6.0).view(1, 1, 2, 3)
    assert cross_scan(pixels)[0, :, 0].tolist() == PUBLISHED_2X3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1), (3, 4), (7, 7)])
def test_views_equal_indices(height, width):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    sequences = cross_scan(x)
    assert torch.equal(sequences, cross_scan_reference(x))
    uneven = torch.randn_like(sequences)
    torch.testing.assert_close(
        cross_merge(uneven, height, width), cross_merge_reference(uneven, height, width), rtol=0, atol=1e-14
    )


def test_merge_of_scan_is_four_times_the_map():
    x = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(cross_merge(cross_scan(x), 4, 6), 4 * x)


def test_merge_is_the_adjoint_of_scan():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    uneven = torch.randn(1, 4, 2, 12, dtype=torch.float64)
    (cross_scan(x) * uneven).sum().backward()
    torch.testing.assert_close(x.grad, cross_merge(uneven, 3, 4))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(B, E, H, W\)"):
        cross_scan(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"3 \* 4"):
        cross_merge(torch.zeros(1, 4, 2, 11), 3, 4)
