"""SegMamba: published counts and sizes, the three orders against the Mamba block written out, the paper's options."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.base import no_decay_names
from mambaseg.networks.cost import build_on_meta, forward_cost
from mambaseg.networks.layers.gated_conv import GatedSpatialConv
from mambaseg.networks.layers.mamba import Mamba
from mambaseg.networks.layers.tri_oriented_mamba import TriOrientedLayer, TriOrientedMamba
from mambaseg.networks.segmamba import weight_by_certainty
from tests.networks.test_mamba import by_definition


def small(in_channels=1, **options):
    torch.manual_seed(0)
    return create_network("segmamba", in_channels, 3, **{"base_channels": 4, "depths": [1, 1], "d_state": 2} | options)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("in_channels", "num_classes", "total"), [(4, 4, 67_416_196), (1, 13, 67_363_213)])
def test_parameters_and_entries_are_as_many_as_published(in_channels, num_classes, total):
    network = build_on_meta("segmamba", in_channels, num_classes)
    assert count(network) == total
    assert len(network.state_dict()) == 291


def test_every_part_has_its_published_size():
    network = build_on_meta("segmamba", 4, 4)
    parts = [[count(part) for part in (stage.down, stage.gsc, stage.layers, stage.tap)] for stage in network.encoder]
    assert parts == [
        [65_904, 129_216, 62_976, 9_360],
        [36_960, 516_480, 188_160, 37_152],
        [147_648, 2_065_152, 625_152, 148_032],
        [590_208, 8_259_072, 2_245_632, 590_976],
    ]
    assert count(network.encoder) == 15_718_080
    assert [count(block) for block in network.skips] == [67_584, 377_856, 1_511_424, 6_045_696, 24_182_784]
    assert [count(block) for block in network.ups] == [228_096, 912_384, 3_649_536, 14_598_144]
    assert [count(network.last), count(network.heads)] == [124_416, 196]


@pytest.mark.parametrize(("d_model", "total"), [(48, 31_392), (96, 93_888), (192, 312_192), (384, 1_122_048)])
def test_the_block_has_its_published_size(d_model, total):
    assert count(TriOrientedMamba(d_model)) == total


def test_published_cost_of_a_volume():
    cost = forward_cost(build_on_meta("segmamba", 4, 4), (128, 128, 128))
    assert cost.macs / 1e9 == pytest.approx(1468.7, abs=0.05)
    steps_channels = cost.scan / (9 * 16 + 1)
    assert steps_channels * 16 / 1e9 == pytest.approx(3.21, abs=0.005)


@torch.no_grad()
def test_full_size_network_gives_the_published_shapes():
    network = create_network("segmamba", 4, 4).eval()
    x = torch.randn(1, 4, 32, 32, 32)
    image, *taps = pyramid = network.features(x)
    assert image is x
    assert [tuple(tap.shape[1:]) for tap in taps] == [(48, *[16] * 3), (96, *[8] * 3), (192, *[4] * 3), (384, *[2] * 3)]
    logits = network.classify(network.decode(pyramid))
    assert logits.shape == (1, 4, 32, 32, 32)
    assert torch.isfinite(logits).all()


SETS = ("", "_b", "_s")
"""What the names of each order's weights end in."""


def with_suffix(name, suffix):
    """The name that a weight of the Mamba block has in one of the three sets."""
    if name in {"in_proj.weight", "out_proj.weight"}:
        return name
    if name == "A_log":
        return f"A{suffix}_log"
    layer, dot, leaf = name.partition(".")
    return f"{layer}{suffix}{dot}{leaf}"


def plain_blocks(block):
    """The three Mamba blocks whose sum, each in its own order, the block is."""
    for suffix in SETS:
        plain = Mamba(block.in_proj.in_features, block.d_state).to(block.D.dtype)
        plain.load_state_dict({key: block.get_parameter(with_suffix(key, suffix)) for key in plain.state_dict()})
        yield plain


def orders(slices, places):
    """Which place each step of each order visits; of the third, step j * slices + s visits place j of slice s."""
    length = slices * places
    across = [s * places + j for j in range(places) for s in range(slices)]
    return [list(range(length)), list(reversed(range(length))), across]


@pytest.mark.parametrize(("slices", "places"), [(3, 5), (4, 1), (1, 6), (2, 2)])
def test_block_and_its_gradients_are_three_mamba_blocks_in_their_orders(slices, places):
    torch.manual_seed(0)
    block = TriOrientedMamba(20, d_state=3).double()
    plain = list(plain_blocks(block))
    x = torch.randn(2, slices, places, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    slow = torch.zeros(2, slices * places, 20, dtype=torch.float64)
    for mamba, order in zip(plain, orders(slices, places), strict=True):
        slow = slow + by_definition(mamba, x.flatten(1, 2)[:, order])[:, torch.tensor(order).argsort()]
    fast = block(x)
    torch.testing.assert_close(fast.flatten(1, 2), slow)

    (fast * weight).sum().backward()
    grad_x, x.grad = x.grad, None
    (slow * weight.flatten(1, 2)).sum().backward()
    torch.testing.assert_close(grad_x, x.grad)
    expected = {}
    for suffix, mamba in zip(SETS, plain, strict=True):
        for name, parameter in mamba.named_parameters():
            name = with_suffix(name, suffix)
            expected[name] = expected.get(name, 0) + parameter.grad
    assert expected.keys() == dict(block.named_parameters()).keys()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_block_passes_gradcheck():
    torch.manual_seed(0)
    block = TriOrientedMamba(2, d_state=2).double()
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(block.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(block, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_each_set_of_scan_weights_starts_by_itself_and_never_decays():
    block = TriOrientedMamba(16)
    expected = {with_suffix(name, suffix) for name in ("A_log", "D", "dt_proj.bias") for suffix in SETS}
    assert set(no_decay_names(block)) == expected
    starts = [block.dt_proj.bias, block.dt_proj_b.bias, block.dt_proj_s.bias]
    assert all(0.00099 < nn.functional.softplus(start).min() < 0.02 for start in starts)
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


@pytest.mark.parametrize("size", [(3, 4), (3, 2, 4)])
@pytest.mark.parametrize("kept", SETS)
def test_layer_walks_back_and_forth_and_across_the_first_axis(size, kept):
    torch.manual_seed(0)
    layer = TriOrientedLayer(8, d_state=2)
    for suffix in set(SETS) - {kept}:  # a scan of zeros makes zeros
        for parameter in getattr(layer.mamba, f"conv1d{suffix}").parameters():
            nn.init.zeros_(parameter)
    x, place = torch.randn(1, 8, *size), tuple(n // 2 for n in size)
    changed = x.clone()
    changed[(0, 3, *place)] += 1
    reached = (layer(changed) - layer(x)).abs().amax(1)[0] > 0
    order = torch.tensor(orders(size[0], reached[0].numel())[SETS.index(kept)])
    step = order.argsort().view(size)
    assert torch.equal(reached, step >= step[place])


def test_a_map_is_a_volume_of_one_column():
    """In 2-D a slice is a row."""
    layer, x = TriOrientedLayer(8, d_state=2), torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(layer(x), layer(x.unsqueeze(3)).squeeze(3))


def test_gate_adds_as_released_and_multiplies_as_in_the_paper():
    torch.manual_seed(0)
    added, multiplied = GatedSpatialConv(3, 4), GatedSpatialConv(3, 4, "product")
    multiplied.load_state_dict(added.state_dict())
    x = torch.randn(2, 4, 3, 4, 5)
    spatial, pointwise = added.spatial(x), added.pointwise(x)
    torch.testing.assert_close(added(x), x + added.fuse(spatial + pointwise))
    torch.testing.assert_close(multiplied(x), x + added.fuse(spatial * pointwise))


def test_certainty_weights_by_the_written_formula():
    x = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    s = 1 / (1 + torch.exp(-x.mean(1, keepdim=True)))
    torch.testing.assert_close(weight_by_certainty(x), x + x * (1 + s * torch.log(s)))
    assert torch.autograd.gradcheck(weight_by_certainty, x)
    assert weight_by_certainty(x.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
def test_options_of_the_paper_change_the_function_and_no_weight():
    x = torch.randn(1, 1, 8, 8, 8)
    released, product, certain = (small(**options).eval() for options in ({}, {"gsc": "product"}, {"fue": True}))
    for network in (product, certain):
        network.load_state_dict(released.state_dict())
        assert not torch.allclose(network(x), released(x))
    for weighted, tap in zip(certain.features(x)[1:], released.features(x)[1:], strict=True):
        torch.testing.assert_close(weighted, weight_by_certainty(tap))


def conv_norm_relu(part, x):
    return F.relu(F.instance_norm(part.conv(x)))


def residual(block, x):
    out = F.leaky_relu(F.instance_norm(block.conv1.conv(x)), 0.01)
    out = F.instance_norm(block.conv2.conv(out))
    shortcut = x if block.conv3 is None else F.instance_norm(block.conv3.conv(x))
    return F.leaky_relu(out + shortcut, 0.01)


def as_written(network, image):
    """The released network with the blocks in their order; ``TriOrientedMamba`` has tests of its own."""
    x, taps = image, []
    for number, stage in enumerate(network.encoder):
        x = stage.down.conv(F.instance_norm(x) if number else x)
        near = conv_norm_relu(stage.gsc.spatial[1], conv_norm_relu(stage.gsc.spatial[0], x))
        x = x + conv_norm_relu(stage.gsc.fuse, near + conv_norm_relu(stage.gsc.pointwise, x))
        for layer in stage.layers:
            slices = x.flatten(3).permute(0, 2, 3, 1)
            normed = F.layer_norm(slices, slices.shape[3:], layer.norm.weight, layer.norm.bias)
            x = x + layer.mamba(normed).permute(0, 3, 1, 2).unflatten(3, x.shape[3:])
        taps.append(stage.tap.narrow(F.gelu(stage.tap.widen(F.instance_norm(x)))))
    *skips, out = [residual(block.layer, level) for block, level in zip(network.skips, [image, *taps], strict=True)]
    for up, skip in zip(reversed(network.ups), reversed(skips), strict=True):
        out = residual(up.conv_block, torch.cat([up.transp_conv.conv(out), skip], 1))
    return network.heads[0].conv.conv(residual(network.last.layer, out))


def test_the_network_is_the_written_one():
    network = small(2, base_channels=4, depths=[2, 1, 1]).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        image = torch.randn(1, 2, 16, 24, 16, dtype=torch.float64)
        torch.testing.assert_close(network(image), as_written(network, image))


def test_thin_volumes_are_padded_to_one_step():
    network = small()
    step = network.stride
    for size, padded in (((1, step, 3), (2, 2, 2)), ((1, step + 1, 3), (1, 2, 1)), ((2 * step, 1, 1), (2, 1, 1))):
        assert network.pad(torch.zeros(1, 1, *size)).shape[2:] == tuple(step * cells for cells in padded)


@pytest.mark.parametrize(("dims", "shape"), [(3, (2, 1, 16, 16)), (3, (1, 16, 16)), (2, (1, 1, 16, 16, 16))])
def test_images_of_other_axes_are_told(dims, shape):
    with pytest.raises(ValueError, match=f"{dims} spatial axes.*option dims"):
        small(dims=dims)(torch.zeros(shape))


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 17, 20), (1, 3, 2), (16, 9, 8)])
def test_volumes_of_any_size_with_deep_supervision(size):
    network = small(3, depths=[1, 2, 1], deep_supervision=True).eval()
    with torch.no_grad():
        maps = network(torch.randn(2, 3, *size))
    assert [tuple(logits.shape) for logits in maps] == [(2, 3, *(-(-n // cell) for n in size)) for cell in (1, 2, 4)]
    assert all(torch.isfinite(logits).all() for logits in maps)


@pytest.mark.parametrize("options", [{}, {"gsc": "product", "fue": True, "deep_supervision": True}])
def test_volumes_teach_every_parameter(options):
    network = small(2, **options)
    logits = network(torch.randn(1, 2, 9, 8, 8))
    sum(level.square().mean() for level in (logits if options else [logits])).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    without = [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert all("conv" in key and key.endswith("bias") for key in without)


def test_volumes_export_and_stay_close_under_autocast():
    network, x = small(2, fue=True).eval(), torch.randn(1, 2, 8, 8, 12)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - network(x)).norm() / network(x).norm() < 0.05


def test_checkpointing_of_volumes_changes_nothing_but_memory():
    x, runs = torch.randn(1, 1, 8, 8, 8), []
    for checkpointing in (False, True):
        network = small(checkpointing=checkpointing).train()
        logits = network(x)
        logits.square().mean().backward()
        runs.append([logits, *(p.grad for p in network.parameters())])
    for plain, recomputed in zip(*runs, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_training_volumes_in_bfloat16_on_a_cpu_is_warned_of():
    network, image = small().train(), torch.randn(2, 1, 8, 8, 8)
    with pytest.warns(UserWarning, match=r"bfloat16 are wrong.*trainer.precision: 32-true"), torch.autocast("cpu"):
        network(image)
    with warnings.catch_warnings(), torch.autocast("cpu"):
        warnings.simplefilter("error")
        network.eval()(image)


def test_repeated_passes_are_bit_equal():
    x, runs = torch.randn(1, 1, 8, 8, 8), []
    network = small()
    for _ in range(2):
        network.zero_grad()
        logits = network(x)
        logits.square().mean().backward()
        runs.append([logits, *(p.grad.clone() for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 1}, "dims is 1; it must be 2 or 3"),
        ({"base_channels": 0}, "base_channels is 0"),
        ({"d_state": 0}, "d_state is 0"),
        ({"depths": []}, r"depths is \[\]; it needs positive values"),
        ({"depths": [2, 0]}, r"depths is \[2, 0\]"),
        ({"gsc": "mean"}, "gsc is 'mean'; it must be 'sum' or 'product'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=f"Network 'segmamba': {message}"):
        small(**options)
