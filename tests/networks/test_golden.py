"""Exact parameter counts and golden outputs of the published architectures."""

import pytest
import torch

from mambaseg.networks import create_network
from mambaseg.networks.layers.ss2d import SS2D
from tests.networks.golden import fill, noise, wave


@pytest.mark.parametrize(
    ("name", "in_channels", "num_classes", "count"),
    [
        ("unet", 1, 4, 1_813_764),
        ("unet", 1, 2, 1_813_474),
        ("unet", 1, 9, 1_814_489),
        ("unet", 3, 4, 1_814_052),
        ("mamba_unet", 1, 4, 19_121_664),
        ("mamba_unet", 3, 4, 19_121_664),
        ("mamba_unet", 1, 2, 19_121_472),
        ("mamba_unet", 1, 9, 19_122_144),
    ],
)
def test_parameter_count(name, in_channels, num_classes, count):
    network = create_network(name, in_channels, num_classes)
    assert sum(p.numel() for p in network.parameters()) == count


def test_parameter_count_of_the_deep_default():
    network = create_network("mamba_unet", 3, 4, depths=(2, 2, 9, 2))
    assert sum(p.numel() for p in network.parameters()) == 35_862_528


def test_state_dict_layout_is_the_published_one():
    unet, mamba_unet = create_network("unet").state_dict(), create_network("mamba_unet").state_dict()
    assert len(unet) == 136
    assert len(mamba_unet) == 218
    assert "encoder.down1.maxpool_conv.1.conv_conv.4.weight" in unet
    assert "layers_up.1.upsample.expand.weight" in mamba_unet
    assert mamba_unet["layers.0.blocks.1.self_attention.x_proj_weight"].shape == (4, 6 + 32, 192)


def test_fill_starts_as_specified():
    expected = torch.tensor([0.41231481, 0.59440936, -0.79461483, 0.34257744], dtype=torch.float64)
    torch.testing.assert_close(noise(10)[:4], expected, atol=5e-9, rtol=0)


@pytest.mark.parametrize(
    ("name", "mean", "std", "points"),
    [
        ("unet", 0.039268, 0.107756, (-0.066511, 0.066044, 0.036093)),
        ("mamba_unet", -0.035470, 0.951874, (0.556211, 1.262221, 0.924140)),
    ],
)
def test_golden_output(name, mean, std, points):
    network = create_network(name, 1, 4).eval()
    fill(network)
    with torch.no_grad():
        logits = network(wave(1, 64, 64))
    assert logits.shape == (1, 4, 64, 64)
    measured = [logits[0, 0, 0, 0], logits[0, -1, 32, 21], logits[0, 1, 63, 63]]
    assert [value.item() for value in measured] == pytest.approx(points, abs=1e-4)
    assert logits.mean().item() == pytest.approx(mean, abs=1e-5)
    assert logits.std(correction=0).item() == pytest.approx(std, abs=1e-5)


def test_golden_ss2d():
    layer = SS2D(d_model=8).eval()
    fill(layer)
    h, w, c = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), torch.arange(8.0), indexing="ij")
    with torch.no_grad():
        y = layer((torch.sin(0.2 * c) + torch.sin(0.05 * h + 0.03 * w))[None])
    assert y.mean().item() == pytest.approx(-0.106709, abs=1e-5)
    assert y.std(correction=0).item() == pytest.approx(0.228100, abs=1e-5)
    assert y[0, 0, 0, :4].tolist() == pytest.approx([-0.261445, -0.006825, -0.043634, -0.081131], abs=1e-5)
    assert y[0, 2, 4, :4].tolist() == pytest.approx([0.124941, 0.140093, 0.104667, -0.290609], abs=1e-5)
