"""The U-Net's deep supervision, its cross-consistency and pyramid-consistency variants, and feature perturbations."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.layers.perturbations import FeatureDrop, FeatureNoise

UNUSED_HEAD = 256 * 9 * 4 + 4
CHANNELS = [4, 6, 8, 10, 12]


def small(name, **options):
    torch.manual_seed(0)
    return create_network(name, 1, 3, channels=CHANNELS, **options)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("unet_cct", {}, 3_713_664),
        ("unet_cct", {"deep_supervision": False}, 1_813_764),
        ("unet_urpc", {"unused_head": True}, 1_831_060),
        ("unet_urpc", {}, 1_831_060 - UNUSED_HEAD),
        ("unet_urpc", {"deep_supervision": False}, 1_813_764),
        ("unet", {"deep_supervision": True}, 1_831_060 - UNUSED_HEAD),
    ],
)
def test_parameter_count(name, options, count):
    with torch.device("meta"):
        network = create_network(name, 1, 4, **options)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", ["unet", "unet_cct", "unet_urpc"])
def test_four_maps_of_full_size(name):
    maps = small(name, deep_supervision=True).eval()(torch.randn(2, 1, 21, 30))
    assert [tuple(logits.shape) for logits in maps] == [(2, 3, 21, 30)] * 4


def test_auxiliary_heads_read_their_scale_and_repeat_cells():
    network, x = small("unet", deep_supervision=True).eval(), torch.randn(1, 1, 32, 32)
    decoder, pyramid = network.decoder, network.features(x)
    coarsest = decoder.up1(pyramid[4], pyramid[3])
    expected = F.interpolate(decoder.out_conv_dp3(coarsest), scale_factor=8, mode="nearest")
    torch.testing.assert_close(network(x)[3], expected)


def test_doubling_by_own_kernels_changes_nothing(monkeypatch):
    network, x = small("unet").double(), torch.randn(2, 1, 32, 48, dtype=torch.float64)
    decoder, pyramid = network.decoder, network.eval().features(x)
    runs = []
    for own in (False, True):
        monkeypatch.setattr("mambaseg.networks.unet.on_own_kernels", lambda x, own=own: own)
        leaves = [level.detach().requires_grad_() for level in pyramid]
        finest = decoder(leaves)[0]
        assert finest.is_contiguous(memory_format=torch.channels_last)
        runs.append((finest, *torch.autograd.grad(finest.square().sum(), leaves)))
    for before, after in zip(*runs, strict=True):
        torch.testing.assert_close(after, before)


def test_variants_are_the_unet_when_evaluated():
    x = torch.randn(2, 1, 32, 48)
    for name in ("unet_cct", "unet_urpc"):
        variant, plain = small(name).eval(), small("unet").eval()
        plain.load_state_dict(variant.state_dict(), strict=False)
        assert torch.equal(variant(x)[0], plain(x))
        for first, second in zip(variant(x), variant(x), strict=True):
            assert torch.equal(first, second)


def test_auxiliary_decoders_see_disturbed_maps_in_training_alone():
    network, x = small("unet_cct", dropout=[0.0] * 5), torch.randn(2, 1, 32, 32)
    for decoder in network.auxiliary_decoders:
        decoder.load_state_dict(network.decoder.state_dict())
    main, *others = network.eval()(x)
    assert all(torch.equal(main, other) for other in others)
    main, *others = network.train()(x)
    assert all((main - other).abs().max() > 1e-3 for other in others)


def test_pyramid_heads_see_disturbed_maps_in_training_alone():
    network, x = small("unet_urpc", dropout=[0.0] * 5).train(), torch.randn(2, 1, 32, 32)
    first, second = network(x), network(x)
    torch.testing.assert_close(first[0], second[0])
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(first[1:], second[1:], strict=True))


def test_the_scribble_benchmarks_variant_has_one_decoder_that_lacks_channels():
    network = small("unet_cct", perturbations=["channel_dropout"])
    assert len(network.auxiliary_decoders) == 1
    disturbed = network.perturbations[0].train()(torch.ones(50, 40, 3, 3))
    per_channel = disturbed.flatten(2)
    assert (per_channel == per_channel[..., :1]).all()
    assert (per_channel[..., 0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_unknown_perturbations_are_named():
    with pytest.raises(InputError, match=r"Network 'unet_cct': there is no perturbation 'blur'\. Known: channel_"):
        small("unet_cct", perturbations=["blur"])


def test_the_unused_head_has_no_gradient():
    network = small("unet_urpc", unused_head=True)
    sum(logits.square().mean() for logits in network(torch.randn(1, 1, 32, 32))).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == [
        "decoder.out_conv_dp4.weight",
        "decoder.out_conv_dp4.bias",
    ]


def test_noise_scales_within_its_spread():
    x = torch.full((4, 8, 10, 10), 2.0)
    noisy = FeatureNoise(0.3).train()(x)
    assert 1.4 <= noisy.min() < 1.45
    assert 2.55 < noisy.max() <= 2.6
    assert torch.equal(FeatureNoise().eval()(x), x)


def test_feature_drop_silences_the_most_active_places():
    x = torch.rand(6, 4, 8, 8)
    dropped = FeatureDrop().train()(x)
    activation = x.mean(1)
    silent = (dropped == 0).all(1)
    for sample in range(6):
        peak = activation[sample].max()
        assert silent[sample][activation[sample] >= 0.9 * peak].all()
        assert not silent[sample][activation[sample] < 0.7 * peak].any()
    kept = ~silent[:, None].expand_as(x)
    assert torch.equal(dropped[kept], x[kept])
    assert torch.equal(FeatureDrop().eval()(x), x)
