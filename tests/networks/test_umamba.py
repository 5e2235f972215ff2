"""U-Mamba: published counts and state-dict digests, 2-D and 3-D, and the released code's quirks as options."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.layers.mamba_layer import MambaLayer
from mambaseg.networks.layers.umamba_unet import UpsampleLayer

ANISOTROPIC = {"dims": 3, "kernels": [[1, 3, 3], 3, 3, 3, 3, 3]}
ABDOMEN = ANISOTROPIC | {"strides": [1, [1, 2, 2], 2, 2, 2, [1, 2, 2]]}
CARDIAC = ANISOTROPIC | {"strides": [1, [1, 2, 2], 2, 2, [1, 2, 2], [1, 2, 2]]}
SEVEN, EIGHT = {"strides": [1] + 6 * [2]}, {"strides": [1] + 7 * [2]}
PUBLISHED = [
    ("umamba_bot", 1, 14, ABDOMEN, None, 41_945_158, "c0157c36b7740c82"),
    ("umamba_enc", 1, 14, ABDOMEN, (40, 224, 192), 42_842_798, "5b15fa3a920b3431"),
    ("umamba_enc", 1, 14, ABDOMEN, (48, 160, 224), 42_842_798, "5b15fa3a920b3431"),
    ("umamba_bot", 4, 4, {"dims": 3}, None, 42_124_692, "e120e1ad300853a5"),
    ("umamba_enc", 4, 4, {"dims": 3}, (128, 128, 128), 42_755_220, "1cf5af9f19244ed3"),
    ("umamba_bot", 3, 8, SEVEN, None, 47_524_592, "90ed02f7b7743774"),
    ("umamba_enc", 3, 8, SEVEN, (384, 640), 47_680_592, "1bbcb6928d8c9e0d"),
    ("umamba_bot", 3, 3, EIGHT, None, 64_797_301, "9c4b61cb9d96e3d5"),
    ("umamba_enc", 3, 3, EIGHT, (512, 512), 64_014_261, "742ba04f0fdedaae"),
    ("umamba_bot", 1, 4, {}, None, 28_760_276, "b9bb323d5eb29411"),
    ("umamba_enc", 1, 4, {}, (256, 224), 27_561_556, "a440a605b05ad682"),
    ("umamba_enc", 1, 4, {}, (224, 224), 27_556_250, "b864c90dbfb564c6"),
    ("umamba_bot", 1, 4, CARDIAC, None, 41_937_108, "679406f71154eeeb"),
    ("umamba_enc", 1, 4, CARDIAC, (20, 256, 224), 43_056_788, "aab49a1e511a8252"),
]


def published(name, in_channels, num_classes, options, patch_size):
    """A network as released, without memory for its weights."""
    quirks = {"residual": False, "deep_supervision": True}
    if patch_size is not None:
        quirks |= {"channel_tokens": True, "patch_size": patch_size}
    with torch.device("meta"):
        return create_network(name, in_channels, num_classes, **options, **quirks)


def published_state(state):
    """The entries as a released file holds them: the encoder again in the decoder, convolutions and norms again in
    ``all_modules``."""
    entries = []
    for key, value in state.items():
        entries.append((key, value))
        block, norm, _ = key.rpartition("norm.bias")
        if norm and block.endswith(("conv1.", "conv2.")):
            for place, layer in enumerate(("conv", "norm")):
                again = [(f"{block}all_modules.{place}.{end}", f"{block}{layer}.{end}") for end in ("weight", "bias")]
                entries += [(copy, state[original]) for copy, original in again]
    encoder = [(f"decoder.{key}", value) for key, value in entries if key.startswith("encoder.")]
    start = next(place for place, (key, _) in enumerate(entries) if key.startswith("decoder."))
    return dict(entries[:start] + encoder + entries[start:])


def small(name="umamba_enc", in_channels=1, **options):
    torch.manual_seed(0)
    return create_network(name, in_channels, 3, **{"base_channels": 8, "strides": [1, 2, 2], "d_state": 2} | options)


@pytest.mark.parametrize(("name", "in_channels", "num_classes", "options", "patch_size", "count", "digest"), PUBLISHED)
def test_parameter_count_and_published_names(name, in_channels, num_classes, options, patch_size, count, digest):
    network = published(name, in_channels, num_classes, options, patch_size)
    assert sum(p.numel() for p in network.parameters()) == count
    listing = "\n".join(f"{key}:{tuple(v.shape)}" for key, v in published_state(network.state_dict()).items())
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc"])
def test_a_published_file_loads_strictly_with_and_without_deep_supervision(name):
    deep, plain = small(name, deep_supervision=True).eval(), small(name).eval()
    state = published_state({key: value + 0.1 for key, value in deep.state_dict().items()})
    for network in (deep, plain):
        network.load_state_dict(state)
    x = torch.randn(1, 1, 24, 24)
    assert torch.equal(deep(x)[0], plain(x))


@pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc"])
@pytest.mark.parametrize(
    ("options", "size", "shapes"),
    [
        ({"strides": [1, 2, 2, 2, 2]}, (64, 64), [(64, 64), (32, 32), (16, 16), (8, 8)]),
        ({"dims": 3, "strides": [1, 2, 2, 2]}, (16, 32, 32), [(16, 32, 32), (8, 16, 16), (4, 8, 8)]),
        (
            {"dims": 3, "strides": [1, [1, 2, 2], 2], "kernels": [[1, 3, 3], 3, 3]},
            (5, 17, 20),
            [(5, 17, 20), (5, 9, 10)],
        ),
        ({"dims": 3}, (2, 3, 3), [(2, 3, 3), (1, 2, 2)]),
    ],
)
def test_deep_supervision_sizes(name, options, size, shapes):
    with torch.no_grad():
        maps = small(name, deep_supervision=True, **options)(torch.randn(2, 1, *size))
    assert [tuple(logits.shape) for logits in maps] == [(2, 3, *shape) for shape in shapes]


@pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc"])
def test_3d_learns_everywhere_and_exports(name):
    network, x = small(name, 3, dims=3), torch.randn(1, 3, 8, 8, 8)
    network(x).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all("conv" in key and key.endswith("bias") for key in without)
    assert all(p.grad is not None for p in network.parameters())
    network.eval()
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x).float()
    assert (half - network(x)).norm() / network(x).norm() < 0.05


def test_an_image_of_one_cell_is_padded_so_that_instance_norm_is_defined():
    network = small(strides=[1, 2, 2, 2, 2, 2]).train()
    assert torch.isfinite(network(torch.randn(1, 1, 32, 32))).all()


def test_mamba_stands_where_it_was_published():
    def stages(**options):
        with torch.device("meta"):
            layers = create_network("umamba_enc", **options).encoder.mamba_layers
        return [stage for stage, layer in enumerate(layers) if isinstance(layer, MambaLayer)]

    assert stages() == [1, 3, 5]
    assert stages(**SEVEN) == [0, 2, 4, 6]
    assert stages(**EIGHT) == [1, 3, 5, 7]
    assert stages(dims=3) == [0, 1, 2, 3, 4, 5]
    assert stages(mamba_stages=[2, 5]) == [2, 5]


def test_the_bottleneck_layer_is_seen_by_the_decoder_only():
    network, x = small("umamba_bot").eval(), torch.randn(1, 1, 16, 16)
    *skips, deepest = network.encoder(x)
    *skips_out, bottleneck = network.features(x)
    assert all(torch.equal(a, b) for a, b in zip(skips, skips_out, strict=True))
    torch.testing.assert_close(
        bottleneck,
        deepest + network.mamba_layer.mamba(network.mamba_layer.norm(deepest.flatten(2).mT)).mT.unflatten(2, (4, 4)),
    )


@torch.no_grad()
def test_the_bottleneck_is_the_last_stage_by_another_name():
    bottleneck, encoder = small("umamba_bot").eval(), small("umamba_enc", mamba_stages=[2]).eval()
    state = bottleneck.state_dict().items()
    encoder.load_state_dict({key.replace("mamba_layer.", "encoder.mamba_layers.2."): value for key, value in state})
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(encoder(x), bottleneck(x))


def test_without_residual_mamba_replaces_the_map():
    network, x = small("umamba_bot", residual=False).eval(), torch.randn(1, 1, 16, 16)
    nn.init.zeros_(network.mamba_layer.mamba.out_proj.weight)
    assert not network.features(x)[-1].any()


def test_full_size_skip_is_an_option_in_2d_and_published_in_3d():
    def width(**options):
        return small(**options).decoder.stages[-1][0].conv1.in_channels

    assert [width(), width(full_size_skip=True), width(dims=3), width(dims=3, full_size_skip=False)] == [8, 16, 16, 8]
    assert small(full_size_skip=True)(torch.randn(1, 1, 20, 20)).shape == (1, 3, 20, 20)


def test_channel_tokens_hold_the_network_to_its_patch():
    network = small(channel_tokens=True, patch_size=[16, 16]).eval()
    assert network.encoder.mamba_layers[2].channel_tokens
    assert not network.encoder.mamba_layers[0].channel_tokens
    assert network(torch.randn(2, 1, 15, 14)).shape == (2, 3, 15, 14)
    with pytest.raises(ValueError, match=r"channel tokens for patches of \(16, 16\) and got \(32, 16\)"):
        network(torch.randn(1, 1, 30, 16))


def test_upsampling_after_the_convolution_equals_before():
    layer, x = UpsampleLayer(4, 6, (1, 2, 3)), torch.randn(2, 4, 3, 4, 5)
    torch.testing.assert_close(layer(x), layer.conv(F.interpolate(x, scale_factor=(1, 2, 3), mode="nearest")))


def test_convolutions_start_as_he_drew_them_and_mamba_as_its_own():
    network = create_network("umamba_enc", 1, 4, strides=[1, 2, 2, 2])
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / (1 + 1e-4) / fan_in) ** 0.5, rel=0.06)
            assert not module.bias.any()
    mamba = network.encoder.mamba_layers[3].mamba
    assert mamba.conv1d.bias.any()
    assert mamba.dt_proj.bias.min() < -4


def test_3d_checkpointing_changes_nothing_but_memory():
    x, runs = torch.randn(1, 1, 8, 8, 8), []
    for checkpointing in (False, True):
        network = small(dims=3, checkpointing=checkpointing).train()
        logits = network(x)
        logits.square().mean().backward()
        runs.append([logits, *(p.grad for p in network.parameters())])
    for plain, recomputed in zip(*runs, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, "dims is 4"),
        ({"base_channels": 0}, "base_channels is 0"),
        ({"strides": [1]}, r"strides is \[1\]"),
        ({"strides": [2, 2]}, r"strides is \[2, 2\]; it needs two or more stages, the first with 1"),
        ({"strides": [1, [2, 2, 2]]}, r"strides is \[1, \[2, 2, 2\]\]; each entry is a positive number or 2 of them"),
        ({"kernels": [3, 3]}, r"kernels is \[3, 3\]; it needs one odd size"),
        ({"kernels": [3, 3, 4]}, r"kernels is \[3, 3, 4\]"),
        ({"mamba_stages": "deepest"}, r"mamba_stages is 'deepest'; name one or more"),
        ({"mamba_stages": [3]}, r"mamba_stages is \[3\]; name one or more of the stages 0 to 2"),
        ({"channel_tokens": True}, "channel_tokens needs patch_size with 2 values, not None"),
        ({"channel_tokens": True, "patch_size": [16, 18]}, r"patch_size is \[16, 18\]; it must be a multiple"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=f"U-Mamba: {message}"):
        small(**options)
