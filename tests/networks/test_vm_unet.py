"""VM-UNet: published counts, names and quirks, and what differs from them on purpose."""

import pytest
import torch

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.cost import build_on_meta
from tests.networks.golden import fill, wave

PARTS = {
    "patch_embed": 4_896,
    "layers.0": 285_312,
    "layers.1": 976_128,
    "layers.2": 3_574_272,
    "layers.3": 8_911_872,
    "layers_up.0": 8_911_872,
    "layers_up.1": 3_571_968,
    "layers_up.2": 974_976,
    "layers_up.3": 179_328,
    "final_up": 36_912,
    "final_conv": 100,
}


def tiny(**options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": [1, 1, 1], "decoder_depths": [1, 1, 1], "d_state": 2}
    return create_network("vm_unet", 1, 3, **sizes | options).eval()


@pytest.mark.parametrize(
    ("in_channels", "num_classes", "options", "count"),
    [
        (3, 4, {}, 27_427_636),
        (1, 4, {}, 27_427_636),
        (3, 1, {}, 27_427_561),
        (3, 9, {}, 27_427_761),
        (1, 4, {"grey_stem": "single"}, 27_427_636 - 2 * 16 * 96),
        (3, 1, {"depths": (2, 2, 9, 2), "decoder_depths": (2, 9, 2, 2)}, 44_273_833),
    ],
)
def test_parameter_count(in_channels, num_classes, options, count):
    network = build_on_meta("vm_unet", in_channels, num_classes, **options)
    assert sum(p.numel() for p in network.parameters()) == count


def test_parameters_by_part_and_published_names():
    network = build_on_meta("vm_unet", 3, 4)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in network.named_parameters():
        counts[next(part for part in PARTS if name.startswith(f"{part}."))] += parameter.numel()
    assert counts == PARTS
    state = network.state_dict()
    assert len(state) == 222
    assert state["layers_up.1.upsample.expand.weight"].shape == (4 * 384, 2 * 384)
    assert {"layers_up.3.blocks.0.self_attention.A_logs", "final_up.norm.bias", "final_conv.bias"} <= set(state)


def test_drop_path_rises_and_falls_as_published():
    network = build_on_meta("vm_unet", 1, 4)
    rates = [[round(block.drop_path.rate, 4) for block in stage.blocks] for stage in network.layers_up]
    assert rates == [[0.2, 0.1667], [0.1333, 0.1], [0.0667, 0.0333], [0.0]]
    assert network.layers[-1].blocks[-1].drop_path.rate == pytest.approx(0.2)


def decoded_with(network, level, change):
    """The decoder map when one map of the pyramid is changed."""
    pyramid = network.features(torch.ones(1, 1, 32, 32) * torch.linspace(-1, 1, 32))
    pyramid[level] = pyramid[level] + change
    return network.decode(pyramid)


@torch.no_grad()
def test_published_skips_leave_the_finest_map_unused_and_matched_ones_only_the_bottlenecks_own_input():
    for skips, unused in (("published", {0}), ("matched", {2})):
        network = tiny(skips=skips)
        plain = decoded_with(network, 0, 0.0)
        same = {level for level in range(3) if torch.equal(decoded_with(network, level, 1.0), plain)}
        assert same == unused, skips


def test_both_ways_to_skip_have_the_same_tensors():
    tiny(skips="matched").load_state_dict(tiny(skips="published").state_dict())


@pytest.mark.parametrize(
    ("skips", "numbers"),
    [
        ("published", (-0.012304, 1.004238, -0.985017, 0.183973)),
        ("matched", (0.024229, 1.026382, -0.122435, -0.997111)),
    ],
)
def test_output_stays_what_it_was(skips, numbers):
    network = create_network("vm_unet", 1, 4, skips=skips).eval()
    fill(network)
    with torch.no_grad():
        logits = network(wave(1, 64, 64))
    # Our own numbers (no published golden output exists), to notice a change.
    measured = [logits.mean(), logits.std(correction=0), logits[0, 0, 0, 0], logits[0, 3, 32, 21]]
    assert [value.item() for value in measured] == pytest.approx(numbers, abs=1e-4)


def test_a_single_class_gives_logits_not_probabilities():
    network = create_network("vm_unet", 1, 1, embed_dim=8, depths=[1, 1], decoder_depths=[1, 1], d_state=2).eval()
    torch.nn.init.constant_(network.final_conv.bias, -5.0)
    with torch.no_grad():
        assert network(torch.randn(1, 1, 16, 16)).max() < -1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_depths": [1, 1]}, r"decoder_depths is \[1, 1\] and depths \[1, 1, 1\]"),
        ({"decoder_depths": [1, 0, 1]}, r"decoder_depths is \[1, 0, 1\]"),
        ({"embed_dim": 10}, "embed_dim is 10; it must be a multiple of 4"),
        ({"skips": "none"}, "skips is 'none'"),
        ({"depths": [1]}, r"depths"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)
