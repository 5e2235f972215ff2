"""A convolution over copied windows is the convolution."""

import pytest
import torch
from torch import nn

from mambaseg.networks.layers import conv_norm
from mambaseg.networks.layers.few_channels import convolve_windows, has_few_channels


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (4, 7)])
def test_values_and_gradients_are_those_of_the_convolution(channels, side, bias, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 6, side, padding=side // 2, bias=bias).double()
    image = torch.randn(2, channels, *size, dtype=torch.float64)
    found, expected = convolve_windows(image, layer.weight, layer.bias), layer(image)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn_like(expected)
    grads = [torch.autograd.grad(out, list(layer.parameters()), upstream) for out in (found, expected)]
    torch.testing.assert_close(*grads)


def test_only_images_of_few_channels_are_convolved_so():
    image = torch.randn(1, 1, 8, 8)
    assert has_few_channels(nn.Conv2d(1, 16, 3, padding=1), image)
    assert has_few_channels(nn.Conv2d(3, 16, 3, padding=1), image)
    assert not has_few_channels(nn.Conv2d(1, 16, 3, padding=1), image.clone().requires_grad_())
    for other in ({"padding": 0}, {"padding": 1, "stride": 2}, {"padding": 2, "dilation": 2}):
        assert not has_few_channels(nn.Conv2d(1, 16, 3, **other), image)
    assert not has_few_channels(nn.Conv2d(16, 16, 3, padding=1), image)
    assert not has_few_channels(nn.Conv2d(1, 16, 3, padding=1, padding_mode="reflect"), image)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    torch.manual_seed(0)
    layer, image = nn.Conv2d(1, 16, 3, padding=1).to("cuda", dtype), torch.randn(2, 1, 224, 224).to("cuda", dtype)
    truth = layer.double()(image.double())
    layer.to(dtype)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(convolve_windows(image, layer.weight, layer.bias).double(), truth, **tolerance)


def test_the_first_convolution_of_a_network_is_the_same_so(monkeypatch):
    torch.manual_seed(0)
    layer = conv_norm.ConvBeforeNorm(1, 6, 3, padding=1).double()
    image = torch.randn(2, 1, 8, 9, dtype=torch.float64)
    for add_bias in (True, False):
        runs = []
        for own in (False, True):
            monkeypatch.setattr(conv_norm, "on_own_kernels", lambda _, own=own: own)
            out = layer(image, add_bias)
            runs.append((out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))))
        torch.testing.assert_close(runs[1], runs[0])
