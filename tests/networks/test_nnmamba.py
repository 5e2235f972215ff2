"""nnMamba: published counts, totals and costs, 3-D volumes of any size, the options, and the classifier's sweep."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mambaseg.errors import InputError
from mambaseg.networks import ClassificationNetwork, create_network
from mambaseg.networks.cost import build_on_meta, forward_cost
from mambaseg.networks.layers.nnmamba_unet import ChannelGate, ResidualStage

TRAINERS = {"siamese": False, "mamba_layer": "plain", "deep_supervision": True}
"""The form that the nnU-Net trainers train."""
PUBLISHED = [
    ("nnmamba_seg", 1, 6, {}, 15_944_958, 334),
    ("nnmamba_seg", 1, 14, {}, 15_956_238, 334),
    ("nnmamba_seg", 1, 16, {}, 15_959_598, 334),
    ("nnmamba_seg", 4, 4, {}, 15_945_270, 334),
    ("nnmamba_seg", 1, 16, TRAINERS, 15_876_318, 304),
    ("nnmamba_seg", 4, 4, TRAINERS, 15_859_266, 304),
    ("nnmamba_landmark", 1, 16, {}, 15_205_952, 207),
    ("nnmamba_cls", 1, 1, {}, 12_876_321, 165),
]
SMALL = {"base_channels": 8, "d_state": 2}
SEGMENT = ["nnmamba_seg", "nnmamba_landmark"]


def small(name, in_channels=1, num_classes=3, **options):
    torch.manual_seed(0)
    return create_network(name, in_channels, num_classes, **SMALL | options)


def fitted(name, in_channels=1, **options):
    """A small network in evaluation with statistics of its maps: with those of a start they fade to constants."""
    network = small(name, in_channels, **options).train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            part.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, in_channels, *(32,) * options.get("dims", 3)))
    return network.eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "in_channels", "num_classes", "options", "parameters", "entries"), PUBLISHED)
def test_parameter_count_and_number_of_entries(name, in_channels, num_classes, options, parameters, entries):
    network = build_on_meta(name, in_channels, num_classes, **options)
    assert count(network) == parameters
    stages = [part for part in network.modules() if isinstance(part, ResidualStage) and part.mamba_layers]
    # Published files hold a shared layer once for every block.
    repeated = sum(
        (len(stage.blocks) - 2) * len(layer.state_dict()) for stage in stages for layer in stage.mamba_layers
    )
    assert len(network.state_dict()) + repeated == entries


def test_totals_of_the_parts():
    network = build_on_meta("nnmamba_seg", 1, 14)
    assert count(network.encoder.stem) == 28_704
    assert [count(stage) for stage in network.encoder.stages] == [652_288, 2_592_768, 10_338_304]
    assert [count(gate) for gate in network.decoder.gates] == [162, 580, 2_184]
    assert [count(conv) for conv in network.decoder.convs] == [110_784, 442_752, 1_770_240]
    assert count(network.head) == 17_472
    classifier = build_on_meta("nnmamba_cls", 1, 1)
    assert (count(classifier.encoder.stem), count(classifier.encoder.stem_layer)) == (28_704, 10_560)
    assert [count(stage) for stage in classifier.encoder.stages] == [611_200, 2_443_008, 9_768_448]
    assert count(classifier.classifier) == 14_401


@pytest.mark.parametrize(
    ("name", "num_classes", "size", "giga_macs"),
    [
        ("nnmamba_seg", 16, (128, 128, 128), 150.96),
        ("nnmamba_cls", 1, (128, 128, 128), 45.0),
        ("nnmamba_cls", 1, (112, 136, 112), 36.9),
    ],
)
def test_published_costs(name, num_classes, size, giga_macs):
    cost = forward_cost(build_on_meta(name, 1, num_classes), size)
    assert cost.macs / 1e9 == pytest.approx(giga_macs, rel=2e-3)


def test_layers_of_its_own_for_every_block_are_an_option():
    shared, apart = (build_on_meta("nnmamba_seg", 1, 4, share_mamba=share) for share in (True, False))
    assert count(apart) - count(shared) == 41_088 + 149_760 + 569_856
    assert [len(stage.mamba_layers) for stage in (*shared.encoder.stages, *apart.encoder.stages)] == 3 * [1] + 3 * [2]


@pytest.mark.parametrize("name", SEGMENT)
@pytest.mark.parametrize("size", [(16, 16, 16), (9, 33, 20), (1, 2, 40)])
def test_volumes_of_any_size(name, size):
    network, x = fitted(name, 2), torch.randn(1, 2, *size)
    with torch.no_grad():
        logits = network(x)
        padded = network.pad(x)
        whole = network(padded)
    assert padded.shape[2:] == tuple(-(-n // 16) * 16 for n in size)
    assert torch.equal(logits, whole[:, :, : size[0], : size[1], : size[2]])
    strides = [(level.shape[1], padded.shape[2] // level.shape[2]) for level in network.features(padded)]
    assert strides == [(8, 2), (16, 4), (32, 8), (64, 16)]


@pytest.mark.parametrize("name", SEGMENT)
def test_deep_supervision_sizes(name):
    network = small(name, deep_supervision=True).eval()
    with torch.no_grad():
        shapes = [tuple(logits.shape) for logits in network(torch.randn(1, 1, 20, 32, 17))]
    assert shapes == [(1, 3, 20, 32, 17), (1, 3, 10, 16, 9), (1, 3, 5, 8, 5), (1, 3, 3, 4, 3)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nnmamba_seg", {}),
        ("nnmamba_seg", TRAINERS | {"share_mamba": False, "linear_head": True}),
        ("nnmamba_landmark", {"blocks": 1}),
    ],
)
def test_3d_learns_everywhere(name, options):
    network, x = small(name, **options).train(), torch.randn(2, 1, 32, 16, 16)
    for part in network.modules():
        if isinstance(part, ChannelGate):  # its one hidden channel may lie where ReLU is shut
            torch.nn.init.constant_(part.reduce.bias, 2.0)
    logits = network(x)
    sum(level.square().mean() for level in (logits if isinstance(logits, list) else [logits])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    dead = [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert all("conv.bias" in key for key in dead)  # before batch norm it has no effect


@pytest.mark.parametrize("name", SEGMENT)
def test_3d_repeats_exports_and_runs_in_half(name):
    network, x = fitted(name), torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        logits = network(x)
        assert logits.std() > 0.1
        assert torch.equal(network(x), logits)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), logits)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x).float()
    assert (half - logits).norm() / logits.norm() < 0.03


@pytest.mark.parametrize("name", SEGMENT)
def test_the_released_head_is_never_negative_and_the_linear_one_is(name):
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        released, linear = (small(name, linear_head=linear).train()(x) for linear in (False, True))
    assert released.min() == 0
    assert linear.min() < 0


def test_decoder_joins_gated_skips():
    network, x = fitted("nnmamba_seg", dims=2), torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        *skips, deepest = network.features(x)
        enlarged = F.interpolate(deepest, scale_factor=2, mode="bilinear")
        joined = torch.cat([enlarged, network.decoder.gates[2](skips[2])], 1)
        levels = network.decode_levels([*skips, deepest])
    torch.testing.assert_close(levels[3], network.decoder.convs[2](joined))
    torch.testing.assert_close(levels[0], F.interpolate(levels[1], scale_factor=2, mode="bilinear"))


def test_landmarks_have_no_gates_and_one_mamba_layer():
    network = small("nnmamba_landmark")
    assert count(network.decoder.gates) == 0
    assert not any(stage.mamba_layers for stage in network.encoder.stages)
    assert network.encoder.stem_layer.residual


@torch.no_grad()
def test_the_stem_layer_comes_before_stages_and_skips():
    image = torch.randn(1, 1, 32, 32, 32)
    for name in ("nnmamba_landmark", "nnmamba_cls"):
        network = fitted(name)
        stem = network.encoder.stem(image)
        if name == "nnmamba_cls":
            first = stem + network.encoder.stem_layer.layer(stem)
        else:
            first = network.encoder.stem_layer(stem)
        expected = [first]
        for stage in network.encoder.stages:
            expected.append(stage(expected[-1]))
        for level, known in zip(network.features(image), expected, strict=True):
            torch.testing.assert_close(level, known)
        assert not torch.allclose(first, stem, atol=1e-3)


@pytest.mark.parametrize(("dims", "size"), [(3, (24, 30, 24)), (3, (17, 1, 9)), (2, (40, 33))])
def test_classifier_takes_any_size_as_it_is(dims, size):
    network, x = fitted("nnmamba_cls", 2, dims=dims), torch.randn(2, 2, *size)
    assert isinstance(network, ClassificationNetwork)
    with torch.no_grad():
        pyramid, logits = network.features(network.pad(x)), network(x)
    sizes = [tuple(-(-n // stride) for n in size) for stride in (2, 4, 8, 16)]
    assert [tuple(level.shape[2:]) for level in pyramid] == sizes
    means = torch.cat([level.mean(tuple(range(2, 2 + dims))) for level in pyramid[1:]], 1)
    torch.testing.assert_close(network.classifier(means), logits)
    assert logits.shape == (2, 3)


def test_classifier_learns_everywhere():
    network = small("nnmamba_cls").train()
    network(torch.randn(4, 1, 17, 20, 16)).square().sum().backward()
    dead = [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert all("conv.bias" in key for key in dead)


def test_classifier_drops_out_and_runs_in_half_compiled_and_exported():
    network, x = fitted("nnmamba_cls"), torch.randn(2, 1, 22, 19, 26)
    with torch.no_grad():
        network.train()
        assert not torch.equal(network(x), network(x))
        exact = network.eval()(x)
        assert torch.equal(network(x), exact)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x).float()
        assert (half - exact).norm() / exact.norm() < 0.03
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), exact)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), exact)


@pytest.mark.parametrize("name", [*SEGMENT, "nnmamba_cls"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, "dims is 4; it must be 2 or 3"),
        ({"base_channels": 0}, "base_channels is 0; it must be at least 1"),
        ({"blocks": 0}, "blocks is 0"),
        ({"d_state": -1}, "d_state is -1"),
    ],
)
def test_impossible_options_are_named(name, options, message):
    with pytest.raises(InputError, match=f"Network '{name}': {message}"):
        small(name, **options)


def test_words_and_misspelt_options_are_named():
    with pytest.raises(InputError, match=r"dropout is 1.5; it must be from 0 to 1"):
        small("nnmamba_cls", dropout=1.5)
    with pytest.raises(InputError, match="mamba_layer is 'plane'; it must be residual or plain"):
        small("nnmamba_seg", mamba_layer="plane")
    with pytest.raises(InputError, match="Did you mean"):
        small("nnmamba_seg", siamees=True)
