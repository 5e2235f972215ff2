"""LayerNorm before linear layers."""

import pytest
import torch
from torch import nn

from mambaseg.networks.layers import layer_norm
from mambaseg.networks.layers.layer_norm import LayerNorm
from tests.networks.golden import fill


@pytest.fixture
def norm():
    layer = LayerNorm(24)
    fill(layer)
    return layer


def test_without_autocast_it_is_torchs(norm):
    plain = nn.LayerNorm(24)
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(2, 3, 5, 24)
    assert torch.equal(norm(x), plain(x))


def test_under_autocast_it_returns_what_a_linear_layer_would_cast_to(norm):
    x = torch.randn(2, 3, 5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), nn.functional.layer_norm(x, (24,), norm.weight, norm.bias).to(torch.bfloat16))
        half = norm(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    expected = nn.functional.layer_norm(x.to(torch.bfloat16).float(), (24,), norm.weight, norm.bias)
    torch.testing.assert_close(half.float(), expected, rtol=8e-3, atol=1e-5)


def test_where_a_residual_stream_begins_it_stays_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert LayerNorm(24, into_product=False)(torch.randn(2, 3, 5, 24, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("into_product", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_our_kernel_gives_the_same_types_values_and_gradients(into_product, half, monkeypatch):
    norm, x, runs = LayerNorm(24, into_product), torch.randn(2, 3, 5, 24), []
    fill(norm)
    for own in (False, True):
        monkeypatch.setattr(layer_norm, "on_own_kernels", lambda _, own=own: own)
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = norm(leaf)
        runs.append([out, *torch.autograd.grad(out.float().square().sum(), [leaf, norm.weight, norm.bias])])
    tolerance = 1e-2 if half and into_product else 1e-5
    for torchs, ours in zip(*runs, strict=True):
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, rtol=tolerance, atol=tolerance)
