"""The published forms of the scan layer: what each name means, against the layer written out step by step."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.errors import InputError
from mambaseg.kernels import merge_norm_gate, ss2d
from mambaseg.networks.layers import ss2d as scan_layer
from mambaseg.networks.layers.ss2d import SS2D
from mambaseg.networks.layers.ss2d_form import CORES, OUT_NORMS, SS2DForm, parse_form
from tests.networks.golden import fill

SIZE = {"d_model": 8, "d_state": 2}


def layer(**options):
    built = SS2D(**SIZE | options).eval()
    fill(built)
    return built


def written_out(built, x, gate, gate_activation=True, out_activation=False):
    """The layer from its definition, for LayerNorm after the scan."""
    width = built.Ds.numel() // 4
    projected = x @ built.in_proj.weight.T
    u = projected[..., :width].permute(0, 3, 1, 2)
    u = F.silu(F.conv2d(u, built.conv2d.weight, built.conv2d.bias, padding=1, groups=width))
    y = ss2d(u, built.x_proj_weight, built.dt_projs_weight, built.dt_projs_bias, built.A_logs, built.Ds)
    y = F.layer_norm(y.permute(0, 2, 3, 1), (width,), built.out_norm.weight, built.out_norm.bias)
    y = F.gelu(y) if out_activation else y
    if gate:
        z = projected[..., width:]
        y = y * (F.silu(z) if gate_activation else z)
    return y @ built.out_proj.weight.T


@pytest.mark.parametrize(
    ("forward_type", "form"),
    [
        ("v0", SS2DForm()),
        ("v0seq", SS2DForm()),
        ("v05_noz", SS2DForm(gated=False)),
        ("v3_nozact", SS2DForm(gate_activation=False)),
        ("v02_oact", SS2DForm(out_activation=True)),
        ("v04_onnone_noz_oact_no32", SS2DForm(gated=False, out_activation=True, out_norm="none")),
        ("v2_onsoftmax_nozact", SS2DForm(gate_activation=False, out_norm="softmax")),
    ],
)
def test_names_mean_what_they_are_published_to_mean(forward_type, form):
    assert parse_form(forward_type) == form


@pytest.mark.parametrize(
    "wrong", ["", "v9", "v05_noz_onnone", "v05_no32_noz", "v05_zno", "v051d_noz", "m0_noz", "v05_onx"]
)
def test_misspelt_names_fail_when_the_layer_is_built(wrong):
    with pytest.raises(InputError, match="forward_type is"):
        SS2D(**SIZE, forward_type=wrong)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "meaning"),
    [
        ({}, {"gate": True}),
        ({"forward_type": "v05_noz", "conv_bias": False}, {"gate": False}),
        ({"forward_type": "v05_nozact"}, {"gate": True, "gate_activation": False}),
        ({"forward_type": "v05_oact", "ssm_ratio": 1.0}, {"gate": True, "out_activation": True}),
    ],
)
def test_forms_are_their_definition(options, meaning):
    built, x = layer(**options), torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(built(x), written_out(built, x, **meaning))


@pytest.mark.parametrize("options", [{}, {"forward_type": "v05_nozact"}, {"forward_type": "v05_noz"}])
def test_plain_forms_are_merged_by_one_kernel_and_get_the_same_gradients(options, monkeypatch):
    built, x = layer(**options), torch.randn(2, 3, 5, 8)
    calls, convolved, runs = [], [], []
    monkeypatch.setattr(scan_layer, "merge_norm_gate", lambda *given: calls.append(given) or merge_norm_gate(*given))
    convolve = scan_layer.depthwise_conv2d
    monkeypatch.setattr(scan_layer, "depthwise_conv2d", lambda *given: convolved.append(given) or convolve(*given))
    for fused in (False, True):
        monkeypatch.setattr(scan_layer, "on_own_kernels", lambda _, fused=fused: fused)
        leaf = x.clone().requires_grad_()
        out = built(leaf)
        runs.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *built.parameters()])])
    assert len(calls) == (0 if "nozact" in str(options) else 1)
    assert len(convolved) == 1
    for composed, fused in zip(*runs, strict=True):
        torch.testing.assert_close(fused, composed, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_all_cores_share_one_state_and_one_function():
    x = torch.randn(1, 4, 3, 8)
    outs = [layer(forward_type=core)(x) for core in CORES]
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


@pytest.mark.parametrize("tag", OUT_NORMS)
def test_every_norm_after_the_scan_learns(tag):
    built = layer(forward_type=f"v05_on{tag}_noz" if tag else "v05_noz")
    built(torch.randn(1, 4, 6, 8)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in built.parameters())


@torch.no_grad()
def test_norms_after_the_scan():
    x = torch.randn(2, 3, 4, 6)
    softmax = OUT_NORMS["softmax"](6)(x)
    torch.testing.assert_close(softmax.sum(dim=(1, 2)), torch.ones(2, 6))
    conv = OUT_NORMS["dwconv3"](6)
    assert sum(p.numel() for p in conv.parameters()) == 9 * 6
    expected = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, padding=1, groups=6).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(x), expected)
    both = OUT_NORMS["cnorm"](6)
    torch.testing.assert_close(both(x), both[1](both[0](x)))


def test_no_convolution_below_two_and_none_of_its_parameters():
    names = dict(layer(d_conv=1).named_parameters())
    assert not any("conv2d" in name for name in names)


def test_ways_to_start():
    torch.manual_seed(0)
    normal, flat = SS2D(32, 8, ssm_init="v1"), SS2D(32, 8, ssm_init="v2")
    assert normal.A_logs.std().item() == pytest.approx(1.0, abs=0.05)
    assert normal.dt_projs_bias.std().item() == pytest.approx(0.1, abs=0.02)
    assert not flat.A_logs.any()
    assert 0 <= flat.dt_projs_weight.min() < 0.01 < 0.09 < flat.dt_projs_weight.max() <= 0.1
    one_state = SS2D(32, 1)
    assert torch.equal(-one_state.A_logs.exp(), torch.full((4 * 64, 1), -1.0))
