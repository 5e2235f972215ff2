"""Linear doubling equals torch's interpolation, and its gradient is that of numbers."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.networks.layers.linear_doubling import linear_doubling

MODES = {4: "bilinear", 5: "trilinear"}
SHAPES = [(2, 3, 4, 5), (1, 2, 1, 3), (2, 1, 3, 4, 5), (1, 2, 1, 7, 2), (1, 1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs_interpolation(shape):
    runs = []
    for double in (linear_doubling, lambda x: F.interpolate(x, scale_factor=2, mode=MODES[len(shape)])):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
        doubled = double(x)
        (doubled * torch.arange(doubled.numel()).view_as(doubled).sin()).sum().backward()
        runs.append((doubled, x.grad))
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (1, 1, 2, 1, 3)])
def test_gradients(shape):
    assert torch.autograd.gradcheck(linear_doubling, torch.randn(shape, dtype=torch.float64, requires_grad=True))


def test_it_stays_in_the_type_of_the_map():
    x = torch.randn(2, 3, 4, 5, 6)
    half = linear_doubling(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), linear_doubling(x), rtol=0.02, atol=0.02)
