"""UVM-Net: published counts and cost, the block and the released network written out, the released code's quirks."""

import math

import pytest
import torch
import torch.nn.functional as F

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.cost import build_on_meta, forward_cost
from mambaseg.networks.layers.uvm_block import UvmBlock, UvmForm
from tests.networks.test_mamba import by_definition

RELEASED = {"tokens": "memory", "softmax_dim": "batch"}
FORMS = [
    UvmForm(grid=4, d_state=2),
    UvmForm(grid=5, d_state=2, tokens="memory", softmax_dim="batch"),
    UvmForm(grid=3, d_state=3, spatial_ssm=False, softmax_dim="tokens"),
    UvmForm(grid=4, d_state=2, spatial_ssm=False, tokens="memory"),
]


def small(in_channels=3, num_classes=3, **options):
    torch.manual_seed(0)
    widths = {"channels": [4, 6, 8], "grid": 4, "d_state": 2}
    return create_network("uvm_net", in_channels, num_classes, **widths | options)


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def levels(network):
    return [*network.encoder, *network.decoder]


def scans(network):
    return [level.mixer.bi_ssm for level in levels(network)]


def test_parameters_and_entries_are_as_many_as_published():
    network = build_on_meta("uvm_net", 3, 3)
    assert count(network) == 1_003_940_200
    assert len(network.state_dict()) == 425
    assert count(build_on_meta("uvm_net", 3, 3, spatial_ssm=False)) == 56_166_760


def test_every_part_has_its_published_size():
    network = build_on_meta("uvm_net", 3, 3)
    sizes = {3: 105_309_925, 64: 105_429_008, 128: 105_725_968, 256: 106_848_272, 512: 111_206_416, 1024: 128_376_848}
    assert [count(level.mixer) for level in network.encoder] == [sizes[c] for c in (3, 64, 128, 256, 512)]
    assert [count(level.mixer) for level in network.decoder] == [sizes[c] for c in (128, 256, 512, 1024)]
    assert [count(part.along_channels) for part in scans(network)] == [105_308_160] * 9
    assert count(*(scan for part in scans(network) for scan in (part.along_tokens, part.attention))) == 22_394_392
    convolutions = [part for level in levels(network) for part in (level.convolutions, level.norms)]
    assert count(network.heads, *convolutions) == 17_263_107


def test_published_cost_of_an_image():
    network = build_on_meta("uvm_net", 3, 3)
    resizing = 0
    maps = [(level.mixer.last_conv.in_channels, 256 >> depth) for depth, level in enumerate(network.encoder)]
    maps += [(level.mixer.last_conv.in_channels, 256 >> depth) for depth, level in enumerate(network.decoder)]
    for channels, side in maps:
        if side != 64:  # width then height, to the grid and back
            resizing += channels * (side * 64 * side + 64 * 64 * side + 64 * side * 64 + side * side * 64)
    cost = forward_cost(network, (256, 256))
    assert (cost.macs - resizing) / 1e9 == pytest.approx(501.6, rel=2e-4)


@torch.no_grad()
def test_full_width_network_gives_the_published_shapes():
    network = create_network("uvm_net", 3, 3, grid=4).eval()
    pyramid = network.features(torch.randn(1, 3, 48, 64))
    widths = (64, 128, 256, 512, 512)
    assert [tuple(x.shape) for x in pyramid] == [(1, c, 48 >> d, 64 >> d) for d, c in enumerate(widths)]
    decoded = network.decode_levels(pyramid)
    assert [tuple(x.shape) for x in decoded] == [(1, c, 48 >> d, 64 >> d) for d, c in enumerate((64, 64, 128, 256))]
    logits = network.classify(decoded[0])
    assert logits.shape == (1, 3, 48, 64)
    assert torch.isfinite(logits).all()


def mixed_by_definition(block, form, x):
    """A UVM block step by step, (B, C, H, W), with torch's own resizing."""
    first, _, second = block.local_conv
    bi_ssm, (batch, channels, *size), places = block.bi_ssm, x.shape, form.grid**2
    cells = F.interpolate(x, (form.grid, form.grid), mode="bilinear", align_corners=True)
    cells = cells + second(F.relu(first(cells)))
    flat = cells.flatten(1)
    released = form.tokens == "memory"
    tokens = flat.view(batch, places, channels) if released else flat.view(batch, channels, places).mT
    normed = F.layer_norm(tokens, (channels,), bi_ssm.norm.weight, bi_ssm.norm.bias)
    y = by_definition(bi_ssm.along_tokens, normed)
    z = by_definition(bi_ssm.along_channels, y.mT).mT if form.spatial_ssm else y
    parts = by_definition(bi_ssm.attention, normed).exp()
    r = parts / parts.sum({"batch": 0, "tokens": 1, "channels": 2}[form.softmax_dim], keepdim=True) * z
    flat = (r if released else r.mT).flatten(1)
    mixed = block.last_conv(flat.view(batch, channels, form.grid, form.grid))
    return x + F.interpolate(mixed, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(4, 4), (7, 3)])
def test_block_and_its_gradients_are_the_definition(form, size):
    torch.manual_seed(0)
    block = UvmBlock(6, form).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    fast, slow = block(x), mixed_by_definition(block, form, x)
    torch.testing.assert_close(fast, slow)
    weight, inputs = torch.randn_like(x), [x, *block.parameters()]
    fast_grads, slow_grads = (torch.autograd.grad((out * weight).sum(), inputs) for out in (fast, slow))
    for fast_grad, slow_grad in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(fast_grad, slow_grad)


@pytest.mark.parametrize("tokens", ["places", "memory"])
def test_block_passes_gradcheck(tokens):
    torch.manual_seed(0)
    block = UvmBlock(2, UvmForm(grid=2, tokens=tokens, d_state=2)).double()
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(block.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(block, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()), fast_mode=True)


def released(network, form, image):
    """The released network step by step, (B, C, H, W), for sizes that need no padding."""

    def level(part, x):
        x = mixed_by_definition(part.mixer, form, x)
        for convolution, norm in zip(part.convolutions, part.norms, strict=True):
            x = F.relu(norm(F.conv2d(x, convolution.weight, padding=1)))
        return x

    maps = [level(network.encoder[0], image)]
    for part in network.encoder[1:]:
        maps.append(level(part, F.max_pool2d(maps[-1], 2)))
    x = maps.pop()
    for part in reversed(network.decoder):
        enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = level(part, torch.cat([maps.pop(), enlarged], dim=1))
    return network.heads[0](x) + image


def test_released_network_is_the_definition():
    network = small(add_image=True, **RELEASED).double().train()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    torch.testing.assert_close(network(x), released(network, UvmForm(4, d_state=2, **RELEASED), x))


def test_the_image_is_added_to_the_full_size_alone():
    plain, added = small(deep_supervision=True).eval(), small(deep_supervision=True, add_image=True).eval()
    added.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 9, 10)
    with torch.no_grad():
        (full, half), (full_added, half_added) = plain(x), added(x)
        assert torch.equal(full_added, full + x)
        assert torch.equal(half_added, half)
        assert torch.equal(added.forward_with_features(x)[0], full_added)


def test_attention_over_the_batch_is_none_for_one_image():
    network = small(**RELEASED)
    network(torch.randn(1, 3, 16, 16)).square().mean().backward()
    assert all(not p.grad.any() for part in scans(network) for p in part.attention.parameters())


@pytest.mark.parametrize(("options", "alone"), [({}, True), ({"softmax_dim": "tokens"}, True), (RELEASED, False)])
@torch.no_grad()
def test_images_depend_on_their_batch_as_released_only(options, alone):
    network, x = small(**options).eval(), torch.randn(2, 3, 16, 16)
    assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-6) == alone


@torch.no_grad()
def test_tokens_are_places_or_pieces_of_channels():
    x = torch.randn(1, 2, 4, 4)
    changed = x.clone()
    changed[0, 0, 1, 2] += 1  # the place 6, and of the memory the value 6: of the token 3
    for tokens, first in (("places", 6), ("memory", 3)):
        block = UvmBlock(2, UvmForm(grid=4, tokens=tokens, spatial_ssm=False, d_state=2))
        seen = []
        block.bi_ssm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        block.local_conv[2].weight.zero_()
        block(x)
        block(changed)
        assert (seen[0] != seen[1]).any(-1)[0].nonzero().flatten().tolist() == [first]


@torch.no_grad()
def test_a_grey_image_is_one_of_three_equal_colours():
    grey, colour = small(1).eval(), small(3).eval()
    colour.load_state_dict(grey.state_dict())
    x = torch.randn(2, 1, 9, 13)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("size", [(16, 16), (50, 70), (3, 21)])
@pytest.mark.parametrize("options", [{}, {"channels": [4, 6, 8, 8, 6]}, {"channels": [5, 3]}])
def test_images_of_any_size_with_deep_supervision(size, options):
    network = small(2, deep_supervision=True, **options).eval()
    with torch.no_grad():
        maps = network(torch.randn(2, 2, *size))
    cells = [2**depth for depth in range(len(network.decoder))]
    assert [tuple(logits.shape) for logits in maps] == [(2, 3, *(-(-n // cell) for n in size)) for cell in cells]
    assert all(torch.isfinite(logits).all() for logits in maps)


@pytest.mark.parametrize("options", [{}, {"spatial_ssm": False}, {"softmax_dim": "tokens"}, RELEASED])
def test_images_teach_every_parameter(options):
    network = small(deep_supervision=True, **options)
    sum(level.square().mean() for level in network(torch.randn(2, 3, 18, 20))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert not [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0]


def test_checkpointing_counts_each_batch_once():
    x, runs = torch.randn(2, 3, 16, 16), []
    for checkpointing in (False, True):
        network = small(checkpointing=checkpointing).train()
        network(x).square().mean().backward()
        runs.append([*(p.grad for p in network.parameters()), *network.buffers()])
    for plain, recomputed in zip(*runs, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_repeated_passes_are_bit_equal():
    x, runs = torch.randn(2, 3, 17, 16), []
    network = small()
    for _ in range(2):
        network.zero_grad()
        logits = network(x)
        logits.square().mean().backward()
        runs.append([logits, *(p.grad.clone() for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("options", [RELEASED | {"add_image": True}, {"softmax_dim": "tokens", "spatial_ssm": False}])
def test_other_forms_stay_close_under_autocast(options):
    network, x = small(**options).eval(), torch.randn(2, 3, 16, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x).float()
    assert (half - network(x)).norm() / network(x).norm() < 0.03


def test_a_smaller_grid_is_a_smaller_network():
    sizes = {grid: count(build_on_meta("uvm_net", 3, 3, grid=grid)) for grid in (8, 16)}
    channels = {grid: count(scans(build_on_meta("uvm_net", 3, 3, grid=grid))[0].along_channels) for grid in (8, 16)}
    assert {grid: sizes[grid] - 9 * channels[grid] for grid in (8, 16)} == {8: 56_166_760, 16: 56_166_760}
    d_model, rank = 16**2, math.ceil(16**2 / 16)
    inner = 2 * d_model
    assert channels[16] == 2 * d_model * inner + inner * (4 + 1 + rank + 32 + rank + 1 + 16 + 1) + inner * d_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [8]}, r"channels is \[8\]; it needs two or more widths of at least 2"),
        ({"channels": [8, 1]}, r"channels is \[8, 1\]"),
        ({"grid": 1}, "grid is 1; it must be at least 2"),
        ({"d_state": 0}, "d_state is 0; it must be at least 1"),
        ({"softmax_dim": "places"}, "softmax_dim is 'places'; it must be one of 'batch', 'tokens', 'channels'"),
        ({"tokens": "rows"}, "tokens is 'rows'; it must be one of 'places', 'memory'"),
        ({"add_image": True, "num_classes": 4}, "add_image needs as many classes as channels, not 4 and 3"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=f"Network 'uvm_net': {message}"):
        small(**options)
