"""VMamba: published counts and golden outputs, the pyramid, and the sweep that classifiers need."""

import pytest
import torch

from mambaseg.errors import InputError
from mambaseg.networks import ClassificationNetwork, create_network, list_networks
from mambaseg.networks.cost import build_on_meta
from tests.networks.golden import fill, wave

COUNTS = {
    "vmamba_tiny": 22_893_448,
    "vmamba_small": 44_417_416,
    "vmamba_base": 76_254_056,
    "vmamba_tiny_s2l5": 30_705_832,
    "vmamba_small_s2l15": 50_147_752,
    "vmamba_base_s2l15": 88_557_800,
    "vmamba_tiny_s1l8": 30_249_064,
    "vmamba_small_s1l20": 49_012_840,
    "vmamba_base_s1l20": 86_614_504,
}
SMALL = {"embed_dim": 8, "depths": [1, 2]}
FAMILIES = ["vmamba_tiny", "vmamba_tiny_s2l5", "vmamba_tiny_s1l8"]


def small(name, in_channels=1, **options):
    torch.manual_seed(0)
    return create_network(name, in_channels, 5, **SMALL | options).eval()


def test_every_classifier_is_swept():
    assert {*COUNTS, "nnmamba_cls"} == set(list_networks("classify"))  # nnmamba_cls: test_nnmamba.py


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    assert sum(p.numel() for p in build_on_meta(name, 3, 1000).parameters()) == COUNTS[name]


def test_state_dict_layout_is_the_published_one():
    vanilla, later = (build_on_meta(name, 3, 1000).state_dict() for name in ("vmamba_tiny", "vmamba_tiny_s1l8"))
    assert len(vanilla) == 212
    assert len(build_on_meta("vmamba_small", 3, 1000).state_dict()) == 446
    assert {"patch_embed.0.weight", "patch_embed.2.bias", "layers.0.downsample.reduction.weight"} <= set(vanilla)
    assert {"layers.2.blocks.8.op.x_proj_weight", "classifier.norm.weight", "classifier.head.bias"} <= set(vanilla)
    assert {f"patch_embed.{i}.weight" for i in (0, 2, 5, 7)} <= set(later)
    assert {"layers.1.downsample.1.bias", "layers.1.downsample.3.weight", "layers.0.blocks.0.mlp.fc2.bias"} <= set(
        later
    )
    assert "layers.0.blocks.0.op.conv2d.bias" not in later
    assert later["layers.0.blocks.0.op.in_proj.weight"].shape == (96, 96)


def test_golden_output_of_the_first_release():
    network = create_network("vmamba_tiny", 3, 1000).eval()
    fill(network)
    with torch.no_grad():
        logits = network(wave(3, 64, 64))
    assert logits.mean().item() == pytest.approx(0.014112, abs=1e-5)
    assert logits.std(correction=0).item() == pytest.approx(0.507387, abs=1e-5)
    assert logits[0, [0, 500, 999]].tolist() == pytest.approx([0.553736, -0.852512, 0.039578], abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (9, 50)])
@pytest.mark.parametrize("in_channels", [1, 3, 4])
@torch.no_grad()
def test_any_size_and_the_pyramid(name, size, in_channels):
    network = small(name, in_channels)
    assert isinstance(network, ClassificationNetwork)
    x = torch.randn(1, in_channels, *size)
    logits = network(x)
    assert logits.shape == (1, 5)
    assert torch.isfinite(logits).all()
    padded = [-(-n // 8) * 8 for n in size]
    shapes = [tuple(level.shape) for level in network.features(network.pad(x))]
    assert shapes == [(1, 8 * 2**i, *(n // (4 * 2**i) for n in padded)) for i in range(2)]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns_and_checkpointing_changes_nothing(name):
    x, grads = torch.randn(2, 1, 16, 24), []
    for checkpointing in (False, True):
        network = small(name, checkpointing=checkpointing).train()
        torch.manual_seed(3)
        network(x).square().sum().backward()
        grads.append({key: p.grad for key, p in network.named_parameters()})
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads[0].values())
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad)


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_compile_and_export(name):
    network, x = small(name), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
        assert (half.float() - exact).norm() / exact.norm() < 0.03
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), exact)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), exact)


def test_a_classifier_cannot_be_a_student():
    from mambaseg.methods import Supervised
    from mambaseg.methods.components.optimizers import StudentConfig

    with pytest.raises(InputError, match="'vmamba_tiny' classifies whole images"):
        Supervised(students={"a": StudentConfig("vmamba_tiny", dict(SMALL))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": []}, r"depths is \[\]"),
        ({"stem": "pach"}, "stem is 'pach'"),
        ({"downsample": "pool"}, "downsample is 'pool'"),
        ({"forward_type": "v05_noz_onnone"}, "forward_type is 'v05_noz_onnone'"),
        ({"ssm_init": "v9"}, "ssm_init is 'v9'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        small("vmamba_tiny", **options)
