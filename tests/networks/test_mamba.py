"""The Mamba block against its recurrence written out, and the layer that applies it to feature maps."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.networks.base import no_decay_names
from mambaseg.networks.layers.mamba import Mamba
from mambaseg.networks.layers.mamba_layer import MambaLayer


def by_definition(block, u):
    """The block step by step and place by place, (B, L, d_model)."""
    x, z = block.in_proj(u).chunk(2, dim=-1)
    taps = block.conv1d.weight[:, 0]
    padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
    windows = padded.unfold(1, taps.shape[1], 1)  # (B, L, d_inner, taps), the last tap on the current step
    x = F.silu((windows * taps).sum(-1) + block.conv1d.bias)
    low_rank, B, C = block.x_proj(x).split([block.dt_rank, block.d_state, block.d_state], dim=-1)
    step = F.softplus(block.dt_proj(low_rank))
    state, out = torch.zeros(len(u), x.shape[2], block.d_state, dtype=u.dtype), []
    for t in range(u.shape[1]):
        decay = torch.exp(step[:, t, :, None] * -torch.exp(block.A_log))
        state = decay * state + (step[:, t] * x[:, t])[..., None] * B[:, t, None]
        out.append((state * C[:, t, None]).sum(-1) + block.D * x[:, t])
    return block.out_proj(torch.stack(out, dim=1) * F.silu(z))


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Mamba(20, d_state=3).double()


@pytest.mark.parametrize(("d_model", "count"), [(16, 3_360), (32, 9_920), (64, 32_640), (768, 3_770_880)])
def test_parameter_count(d_model, count):
    assert sum(p.numel() for p in Mamba(d_model).parameters()) == count


def test_state_dict_is_that_of_mamba_ssm():
    shapes = {key: tuple(value.shape) for key, value in Mamba(32).state_dict().items()}
    assert list(shapes.items()) == [
        ("A_log", (64, 16)),
        ("D", (64,)),
        ("in_proj.weight", (128, 32)),
        ("conv1d.weight", (64, 1, 4)),
        ("conv1d.bias", (64,)),
        ("x_proj.weight", (2 + 32, 64)),
        ("dt_proj.weight", (64, 2)),
        ("dt_proj.bias", (64,)),
        ("out_proj.weight", (32, 64)),
    ]


def test_block_and_its_gradients_are_the_definition(block):
    u = torch.randn(2, 9, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(u)
    fast, slow = block(u), by_definition(block, u)
    torch.testing.assert_close(fast, slow)
    inputs = [u, *block.parameters()]
    gradients = [torch.autograd.grad((y * weight).sum(), inputs) for y in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_sees_no_later_one(block):
    u = torch.randn(1, 8, 20, dtype=torch.float64)
    changed = u.clone()
    changed[:, 5:] += 1
    difference = (block(changed) - block(u)).abs().amax(-1)[0]
    assert not difference[:5].any()
    assert (difference[5:] > 0).all()


def test_initial_scan_parameters():
    torch.manual_seed(0)
    block = Mamba(256, d_state=5)
    assert torch.equal(block.A_log.exp().round(), torch.arange(1.0, 6).expand(512, 5))
    assert torch.equal(block.D, torch.ones(512))
    step = F.softplus(block.dt_proj.bias)
    assert 0.00099 < step.min() < 0.0012
    assert 0.09 < step.max() < 0.101
    assert block.dt_proj.weight.abs().max().item() == pytest.approx(0.25, rel=0.01)


def test_scan_parameters_are_marked_and_stay_fp32_under_autocast():
    block = Mamba(16)
    assert set(no_decay_names(block)) == {"A_log", "D", "dt_proj.bias"}
    u = torch.randn(2, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = block(u)
        half.float().square().mean().backward()
    assert half.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in block.parameters())
    with torch.no_grad():
        assert (half.float() - block(u)).norm() / block(u).norm() < 0.02


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 4)])
def test_layer_scans_places_in_row_major_order(size):
    layer = MambaLayer(8, residual=False)
    x = torch.randn(2, 8, *size)
    changed = x.clone()
    place = tuple(n // 2 for n in size)
    changed[(0, 3, *place)] += 1
    difference = (layer(changed) - layer(x)).abs().amax(1)
    flat = torch.arange(difference[0].numel()).view(size)
    assert not difference[0][flat < flat[place]].any()
    assert (difference[0][flat >= flat[place]] > 0).all()
    assert not difference[1].any()


def test_layer_with_channel_tokens_scans_channels():
    layer = MambaLayer(12, residual=False, channel_tokens=True)
    x = torch.randn(1, 7, 3, 4)
    changed = x.clone()
    changed[:, 4, 1, 1] += 1
    difference = (layer(changed) - layer(x)).abs().amax((0, 2, 3))
    assert not difference[:4].any()
    assert (difference[4:] > 0).all()


def test_residual_adds_the_map():
    with_residual, without = MambaLayer(8), MambaLayer(8, residual=False)
    without.load_state_dict(with_residual.state_dict())
    x = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(with_residual(x), x + without(x))
