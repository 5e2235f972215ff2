"""Bilinear resizing by products: torch's function, and its gradients, for any sizes."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.networks.layers.bilinear_resize import bilinear_resize


@pytest.mark.parametrize("size", [(4, 9), (7, 5), (1, 3), (13, 20)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_and_its_gradients_are_those_of_torch(size, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    fast, slow = bilinear_resize(x, *size), F.interpolate(x, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(slow)
    torch.testing.assert_close(*(torch.autograd.grad((out * weight).sum(), x)[0] for out in (fast, slow)))
    assert torch.autograd.gradcheck(lambda x: bilinear_resize(x, *size), x)


def test_a_map_of_that_size_stays_what_it_is():
    x = torch.randn(2, 3, 5, 4)
    assert bilinear_resize(x, 5, 4) is x


def test_rows_and_columns_of_one_cell_repeat_it():
    x = torch.randn(2, 3, 1, 1)
    assert torch.equal(bilinear_resize(x, 3, 4), x.expand(2, 3, 3, 4))


def test_large_maps_are_as_exact_as_torch_in_float32():
    x = torch.randn(1, 2, 1000, 7)
    exact = F.interpolate(x.double(), (643, 7), mode="bilinear", align_corners=True)
    errors = [
        (out - exact).abs().max()
        for out in (bilinear_resize(x, 643, 7), F.interpolate(x, (643, 7), mode="bilinear", align_corners=True))
    ]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("size", [(3, 3), (6, 8)])
def test_half_types_stay_half_and_close(size):
    x = torch.randn(2, 3, 5, 4)
    half = bilinear_resize(x.bfloat16(), *size)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), bilinear_resize(x, *size), atol=0.03, rtol=0.02)
