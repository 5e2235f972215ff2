"""Swin-UMamba and Swin-UMamba†: published counts, names and golden outputs, and how their parts connect."""

import pytest
import torch
from torch import nn

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.layers.residual_conv import plain_block
from mambaseg.networks.layers.unetr_block import UnetrUpBlock
from mambaseg.networks.layers.vss_block import VSSBlock
from tests.networks.golden import fill, wave

PARTS = {
    "swin_umamba": {
        "stem": 2_496,
        "vssm_encoder": 22_136_736,
        "vssm_encoder.patch_embed": 18_720,
        "encoder1": 21_216,
        "encoder2": 129_024,
        "encoder3": 516_096,
        "encoder4": 2_064_384,
        "encoder5": 8_257_536,
        "decoder6.transp_conv": 2_359_296,
        "decoder6.conv_block": 17_104_896,
        "decoder5": 1_179_648 + 4_276_224,
        "decoder4": 294_912 + 1_069_056,
        "decoder3": 73_728 + 267_264,
        "decoder2": 18_432 + 66_816,
        "decoder1": 41_472,
        "out_layers": 2_896,
    },
    "swin_umamba_d": {
        "vssm_encoder.patch_embed": 1_824,
        "vssm_encoder.layers": 20_564_352,
        "vssm_encoder.downsamples": 1_553_664,
        "decoder.stages": 3_282_048,
        "decoder.expand_layers": 1_697_280,
        "decoder.seg_layers": 3_088,
        "decoder.concat_back_dim": 387_744,
    },
}


def full_size(name, in_channels=1, num_classes=4, **options):
    """A network at its published size, without memory for its weights."""
    with torch.device("meta"):
        return create_network(name, in_channels, num_classes, **options)


def tiny(name, **options):
    torch.manual_seed(0)
    return create_network(name, 1, 3, **{"embed_dim": 8, "depths": [1, 1, 1, 1], "d_state": 2} | options).eval()


@pytest.mark.parametrize(
    ("name", "in_channels", "num_classes", "count"),
    [
        ("swin_umamba", 1, 4, 59_882_128),
        ("swin_umamba", 3, 4, 59_887_792),
        ("swin_umamba", 1, 14, 59_889_368),
        ("swin_umamba_d", 1, 4, 27_490_000),
        ("swin_umamba_d", 3, 4, 27_493_072),
        ("swin_umamba_d", 1, 14, 27_497_720),
    ],
)
def test_parameter_count(name, in_channels, num_classes, count):
    network = full_size(name, in_channels, num_classes, deep_supervision=True)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", PARTS)
def test_parameters_by_part(name):
    network = full_size(name, deep_supervision=True)
    counts = {part: sum(p.numel() for p in network.get_submodule(part).parameters()) for part in PARTS[name]}
    assert counts == PARTS[name]


def test_published_names():
    entries = set(full_size("swin_umamba", deep_supervision=True).state_dict())
    assert len(entries) == 257
    assert {
        "vssm_encoder.layers.2.blocks.8.self_attention.A_logs",
        "vssm_encoder.downsamples.2.reduction.weight",
        "encoder1.layer.conv3.conv.weight",
        "decoder6.transp_conv.conv.weight",
        "decoder2.conv_block.conv1.conv.weight",
        "decoder1.layer.conv2.conv.weight",
        "out_layers.3.conv.conv.bias",
    } <= entries
    entries = set(full_size("swin_umamba_d", deep_supervision=True).state_dict())
    assert len(entries) == 312
    assert {"decoder.stages.2.blocks.1.ln_1.weight", "decoder.expand_layers.3.norm.bias"} <= entries


def test_golden_output():
    network = create_network("swin_umamba", 1, 4, deep_supervision=True).eval()
    fill(network)
    with torch.no_grad():
        logits = network(wave(1, 64, 64))
    assert [tuple(level.shape[2:]) for level in logits] == [(64, 64), (32, 32), (16, 16), (8, 8)]
    first = logits[0]
    measured = [first[0, 0, 0, 0], first[0, -1, 32, 21], first[0, 1, 63, 63]]
    assert [value.item() for value in measured] == pytest.approx([0.356355, -0.693311, 1.674956], abs=1e-4)
    assert first.mean().item() == pytest.approx(0.486895, abs=1e-5)
    assert first.std(correction=0).item() == pytest.approx(1.127040, abs=1e-5)


def test_output_of_the_mamba_decoder_stays_what_it_was():
    network = create_network("swin_umamba_d", 1, 4, deep_supervision=True).eval()
    fill(network)
    with torch.no_grad():
        logits = network(wave(1, 64, 64))
    assert [tuple(level.shape[2:]) for level in logits] == [(64, 64), (16, 16), (8, 8), (4, 4)]
    # Our own numbers (no published golden output exists), to notice a change.
    measured = [value.item() for level in logits for value in (level.mean(), level[0, 1, -1, -1])]
    assert measured == pytest.approx(
        [-0.018021, 0.868616, -0.492945, -0.790014, 0.224048, 0.349019, -0.707358, -1.806865], abs=1e-4
    )


def test_drop_path_grows_in_the_encoder_and_falls_in_the_decoder():
    network = full_size("swin_umamba_d")

    def rates(part):
        return [block.drop_path.rate for block in part.modules() if isinstance(block, VSSBlock)]

    assert rates(network.vssm_encoder) == pytest.approx([0.2 * place / 14 for place in range(15)])
    assert rates(network.decoder) == pytest.approx([0.2, 0.16, 0.12, 0.08, 0.04, 0.0])
    assert rates(full_size("swin_umamba", drop_path_rate=0.1)) == pytest.approx([0.1 * i / 14 for i in range(15)])


def test_skips_are_stage_outputs_before_merging():
    network, x = tiny("swin_umamba_d"), torch.randn(1, 1, 64, 64)
    encoder = network.vssm_encoder
    stage0 = encoder.layers[0](encoder.patch_embed(x))
    stage1 = encoder.layers[1](encoder.downsamples[0](stage0))
    pyramid = network.features(x)
    torch.testing.assert_close(pyramid[0], stage0.permute(0, 3, 1, 2))
    torch.testing.assert_close(pyramid[1], stage1.permute(0, 3, 1, 2))
    assert [tuple(level.shape[1:]) for level in pyramid] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]


def test_a_mamba_decoder_slot_expands_then_joins_up_before_skip():
    network, x = tiny("swin_umamba_d"), torch.randn(1, 1, 64, 64)
    decoder, pyramid = network.decoder, network.features(x)
    decoder.stages[0] = nn.Identity()
    up, skip = decoder.expand_layers[0](pyramid[3].permute(0, 2, 3, 1)), pyramid[2].permute(0, 2, 3, 1)
    for chosen, expected in ((0, up), (1, skip)):
        halves = [torch.zeros(32, 32), torch.zeros(32, 32)]
        halves[chosen] = torch.eye(32)
        decoder.concat_back_dim[0].weight.data = torch.cat(halves, dim=1)
        torch.testing.assert_close(decoder(pyramid)[-1], expected.permute(0, 3, 1, 2))


def test_the_finest_skip_of_swin_umamba_comes_from_the_image():
    network, x = tiny("swin_umamba"), torch.randn(1, 1, 32, 64)
    pyramid = network.features(x)
    assert pyramid[0] is x
    assert [tuple(level.shape[1:]) for level in pyramid[1:3]] == [(4, 16, 32), (8, 8, 16)]
    assert network.decode(pyramid).shape == (1, 4, 32, 64)


def test_plain_block_is_its_formula():
    block, x = plain_block(2, 3, 5), torch.randn(2, 3, 6, 7)

    def norm(y):
        return (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()

    inner = nn.functional.leaky_relu(norm(block.conv1(x)), 0.01)
    expected = nn.functional.leaky_relu(norm(block.conv2(inner)) + norm(block.conv3(x)), 0.01)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert not any(p.ndim == 1 for p in block.parameters())
    assert plain_block(2, 3, 3).conv3 is None


def test_up_block_joins_up_before_skip_in_2d_and_3d():
    for dims in (2, 3):
        block = UnetrUpBlock(dims, 6, 4)
        x, skip = torch.randn(1, 6, *[2] * dims), torch.randn(1, 4, *[4] * dims)
        joined = torch.cat([block.transp_conv(x), skip], dim=1)
        torch.testing.assert_close(block(x, skip), block.conv_block(joined))


def test_initial_weights_are_alike_in_both_halves_or_as_published():
    def depthwise_and_projection(**options):
        network = create_network("swin_umamba_d", 1, 4, embed_dim=48, depths=[1, 1, 1, 1], **options)
        block = network.decoder.stages[0].blocks[0].self_attention
        return block.conv2d.weight.std().item(), block.in_proj.weight.std().item(), block.conv2d.bias.any().item()

    assert depthwise_and_projection() == (pytest.approx(3**-1.5, rel=0.05), pytest.approx(0.02, rel=0.05), True)
    uniform = 192**-0.5 / 3**0.5
    published = depthwise_and_projection(published_init=True)
    assert published == (pytest.approx(0.47, rel=0.05), pytest.approx(uniform, rel=0.05), False)


@pytest.mark.parametrize("name", PARTS)
def test_impossible_depths_are_named(name):
    with pytest.raises(InputError, match=rf"Network '{name}': depths is \[1, 1\]; it needs four positive values"):
        tiny(name, depths=[1, 1])
    with pytest.raises(InputError, match=r"depths is \[1, 0, 1, 1\]"):
        tiny(name, depths=[1, 0, 1, 1])


def test_an_odd_width_is_named():
    with pytest.raises(InputError, match="embed_dim is 7"):
        tiny("swin_umamba", embed_dim=7)
