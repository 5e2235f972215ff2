"""Convolutions before batch norm: what torch's two modules compute, without the bias on the way."""

import copy

import pytest
import torch
from torch import nn

from mambaseg.networks.layers.conv_norm import ConvBeforeNorm, convolve_and_normalise


def pair(bias=True, **options):
    torch.manual_seed(0)
    convolution = ConvBeforeNorm(2, 3, 3, padding=1, bias=bias, dtype=torch.float64)
    norm = nn.BatchNorm2d(3, dtype=torch.float64, **options)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return convolution, norm


@pytest.mark.parametrize(
    ("bias", "options", "training"),
    [
        (True, {}, True),
        (True, {"momentum": 0.3}, True),
        (True, {"momentum": None}, True),
        (True, {"track_running_stats": False}, True),
        (False, {}, True),
        (True, {}, False),
    ],
)
def test_values_gradients_and_statistics_are_those_of_the_two_modules(bias, options, training):
    own = pair(bias, **options)
    theirs = copy.deepcopy(own)
    seen_by_hook = []
    own[0].register_forward_hook(lambda *_: seen_by_hook.append(1))
    for part in (*own, *theirs):
        part.train(training)
    images = torch.randn(4, 2, 6, 5, dtype=torch.float64)
    for _ in range(2):
        seen, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
        out, truth = convolve_and_normalise(seen, *own), theirs[1](theirs[0](expected))
        torch.testing.assert_close(out, truth)
        up = torch.randn_like(out)
        out.backward(up)
        truth.backward(up)
        torch.testing.assert_close(seen.grad, expected.grad)
    assert len(seen_by_hook) == 2
    for part, other in zip(own, theirs, strict=True):
        for (name, value), reference in zip(part.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value.grad, reference.grad, rtol=1e-7, atol=1e-12, msg=name)
        for (name, value), reference in zip(part.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(value, reference, msg=name)
