"""Swin-UNet: published counts, attention against a token-by-token definition, windows and sizes of all kinds."""

import math

import pytest
import torch
import torch.nn.functional as F

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.layers.swin_block import SwinBlock, WindowAttention, resize_bias_table, window_mask
from tests.networks.golden import fill, wave

PARTS = {
    "patch_embed": 4_896,
    "layers.0": 299_190,
    "layers.1": 1_188_204,
    "layers.2": 4_735_704,
    "layers.3": 14_183_856,
    "layers_up.0": 1_180_416,
    "layers_up.1": 3_848_280,
    "layers_up.2": 965_676,
    "layers_up.3": 224_694,
    "concat_back_dim.1": 295_296,
    "concat_back_dim.2": 73_920,
    "concat_back_dim.3": 18_528,
    "norm": 1_536,
    "norm_up": 192,
    "up": 147_648,
    "output": 384,
}


def tiny(**options):
    torch.manual_seed(0)
    return create_network("swin_unet", 1, 3, **{"embed_dim": 8, "depths": [2, 2], "heads": [2, 2]} | options).eval()


def attended_by_definition(block, x):
    """Shifted-window attention from its definition, query by query, in the map's own coordinates (1, H, W, C)."""
    attention, w, (height, width) = block.attn, block.window, x.shape[1:3]
    shift = [block.shift if length > w else 0 for length in (height, width)]
    places = [(i, j) for i in range(height) for j in range(width)]
    window_of = {p: tuple(math.floor((axis - s) / w) for axis, s in zip(p, shift, strict=True)) for p in places}
    q, k, v = attention.qkv(x)[0].view(height, width, 3, attention.heads, -1).unbind(2)
    out = torch.zeros_like(x)
    for i, j in places:
        seen = [p for p in places if window_of[p] == window_of[i, j]]
        heads = []
        for h in range(attention.heads):
            logits = []
            for a, b in seen:
                row = (i - a + w - 1) * (2 * w - 1) + (j - b + w - 1)
                bias = attention.relative_position_bias_table[row, h]
                logits.append(q[i, j, h] @ k[a, b, h] / math.sqrt(q.shape[-1]) + bias)
            weights = torch.stack(logits).softmax(0)
            heads.append(sum(weight * v[a, b, h] for weight, (a, b) in zip(weights, seen, strict=True)))
        out[0, i, j] = attention.proj(torch.cat(heads))
    return out


@pytest.mark.parametrize(("num_classes", "count"), [(2, 27_168_228), (4, 27_168_420), (9, 27_168_900)])
def test_parameter_count(num_classes, count):
    network = create_network("swin_unet", 1, num_classes)
    assert sum(p.numel() for p in network.parameters()) == count


def test_parameters_by_part_and_published_names():
    network = create_network("swin_unet", 1, 4)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in network.named_parameters():
        counts[next(part for part in PARTS if name.startswith(f"{part}."))] += parameter.numel()
    assert counts == PARTS
    state = network.state_dict()
    assert state["layers.2.blocks.1.attn.relative_position_bias_table"].shape == (169, 12)
    assert state["layers_up.1.blocks.0.mlp.fc1.weight"].shape == (4 * 384, 384)
    assert {"layers.0.downsample.reduction.weight", "layers_up.2.upsample.expand.weight"} <= set(state)


def test_a_published_file_with_its_buffers_loads_strictly():
    network = create_network("swin_unet", 1, 4)
    published = {key: value + 1 for key, value in network.state_dict().items()}
    for name, module in network.named_modules():
        if isinstance(module, WindowAttention):
            published[f"{name}.relative_position_index"] = module.relative_position_index
        if isinstance(module, SwinBlock) and module.shift and not name.startswith("layers.3"):
            published[f"{name}.attn_mask"] = torch.zeros(4, 49, 49)
    assert len(published) == 238
    network.load_state_dict(published)
    assert torch.equal(network.norm_up.weight, torch.full((96,), 2.0))


@pytest.mark.parametrize("size", [(6, 6), (4, 5), (2, 3), (3, 7), (9, 4)])
@pytest.mark.parametrize("shift", [0, 1])
def test_attention_is_its_definition(size, shift):
    torch.manual_seed(0)
    block = SwinBlock(8, heads=2, window=3, shift=shift).double()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(1, *size, 8, dtype=torch.float64, requires_grad=True)
    fast, slow = block._attend(x), attended_by_definition(block, x)
    torch.testing.assert_close(fast, slow)
    target = torch.randn_like(x)
    inputs = [x, *block.attn.parameters()]
    for a, b in zip(
        torch.autograd.grad((fast * target).sum(), inputs),
        torch.autograd.grad((slow * target).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_mask_cuts_a_rolled_map_where_the_published_one_does():
    size, window, shift = 14, 7, 3
    region = torch.zeros(size, size)
    edges = [slice(0, -window), slice(-window, -shift), slice(-shift, None)]
    for number, (rows, columns) in enumerate((r, c) for r in edges for c in edges):
        region[rows, columns] = number
    tokens = region.view(2, 7, 2, 7).transpose(1, 2).reshape(4, 49)
    expected = tokens[:, :, None] == tokens[:, None]
    assert torch.equal(window_mask((size, size), window, (shift, shift), torch.device("cpu")), expected)


def test_drop_path_and_shifts_alternate_as_published():
    network = create_network("swin_unet", 1, 4)
    rates = [[block.drop_path.rate for block in layer.blocks] for layer in (*network.layers, *network.layers_up[1:])]
    linear = torch.linspace(0, 0.2, 8).view(4, 2).tolist()
    assert rates == [*linear, *linear[2::-1]]
    assert [block.shift for layer in network.layers for block in layer.blocks] == [0, 3] * 4


def test_a_bias_table_for_another_window_is_resized():
    ramp = torch.arange(13.0)[:, None].expand(13, 13).reshape(-1, 1)
    grown = resize_bias_table(ramp, 8).view(15, 15)
    assert (grown.diff(dim=0)[1:-1] > 0).all()
    assert (grown[7] - 6).abs().max() < 1e-4  # distance 0 stays distance 0
    torch.testing.assert_close(resize_bias_table(ramp, 7), ramp)
    small, large = tiny(window=4), tiny(window=6)
    large.load_state_dict(small.state_dict())
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert large.state_dict()[key].shape == (121, 2)
    torch.testing.assert_close(large.state_dict()[key][60], small.state_dict()[key][24], atol=0.01, rtol=0)


def test_output_at_224_stays_what_it_was():
    network = create_network("swin_unet", 1, 4).eval()
    fill(network)
    with torch.no_grad():
        logits = network(wave(1, 224, 224))
    # Our own numbers (no published golden output exists), to notice a change.
    measured = [logits.mean(), logits.std(correction=0), logits[0, 0, 0, 0], logits[0, 3, 112, 74]]
    assert [value.item() for value in measured] == pytest.approx([-0.060900, 1.001167, 0.362403, -0.342577], abs=1e-4)


def test_checkpointing_changes_nothing_but_memory():
    x, grads = torch.randn(2, 1, 32, 32), []
    for checkpointing in (False, True):
        network = tiny(checkpointing=checkpointing).train()
        torch.manual_seed(5)
        F.mse_loss(network(x), torch.zeros(2, 3, 32, 32)).backward()
        grads.append([p.grad for p in network.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [2]}, r"heads is \[2\] and depths \[2, 2\]"),
        ({"heads": [2, 3]}, r"heads\[1\] is 3; it must divide that stage's 16"),
        ({"window": 1}, "window is 1"),
        ({"depths": [0, 2]}, r"depths is \[0, 2\]"),
        ({"grey_stem": "double"}, "grey_stem is 'double'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)
