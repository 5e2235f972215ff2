"""Layers between patches and pixels."""

import pytest
import torch
from torch import nn

from mambaseg.networks.layers.patches import PatchExpand
from tests.networks.golden import fill


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_classifying_before_pixels_are_in_place_is_classifying_the_expanded_map(scale, bias):
    expand, head = PatchExpand(8, scale, 6), nn.Conv2d(6, 3, 1, bias=bias)
    fill(expand)
    fill(head)
    x = torch.randn(2, 3, 5, 8)
    logits = expand(x, head)
    assert logits.shape == (2, 3, 3 * scale, 5 * scale)
    torch.testing.assert_close(logits, head(expand(x).permute(0, 3, 1, 2)))


def test_gradients_of_classifying_are_those_of_numbers():
    expand, head = PatchExpand(4, 2, 6).double(), nn.Conv2d(6, 3, 1).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, *_: expand(x, head), (x, *expand.parameters(), *head.parameters()))
