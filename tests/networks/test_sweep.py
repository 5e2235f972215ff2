"""One sweep over every registered network: sizes, channels, types, gradients, compile, export, round trips."""

import inspect

import pytest
import torch

from mambaseg.errors import InputError
from mambaseg.networks import create_network, list_networks
from mambaseg.networks.layers.drop_path import DropPath
from mambaseg.networks.register import NETWORKS

SMALL = {
    "unet": {"channels": [4, 6, 8, 10, 12]},
    "unet_cct": {"channels": [4, 6, 8, 10, 12]},
    "unet_urpc": {"channels": [4, 6, 8, 10, 12]},
    "segmamba": {"base_channels": 8, "depths": [1, 1, 1], "d_state": 2, "dims": 2},
    "swin_umamba": {"embed_dim": 8, "depths": [1, 1, 1, 1], "d_state": 2},
    "swin_umamba_d": {"embed_dim": 8, "depths": [1, 1, 1, 1], "d_state": 2},
    "umamba_bot": {"base_channels": 16, "strides": [1, 2, 2], "d_state": 2},
    "umamba_enc": {"base_channels": 16, "strides": [1, 2, 2], "d_state": 2},
    "nnmamba_seg": {"dims": 2, "base_channels": 8, "blocks": 3, "d_state": 2},
    "nnmamba_landmark": {"dims": 2, "base_channels": 8, "blocks": 2, "d_state": 2},
    "uvm_net": {"channels": [8, 10, 12], "grid": 6, "d_state": 2},
    "vm_unet": {"embed_dim": 8, "depths": [1, 1, 1], "decoder_depths": [1, 1, 1], "d_state": 2},
    "mamba_unet": {"embed_dim": 8, "depths": [1, 1, 1], "d_state": 2},
    "swin_unet": {"embed_dim": 8, "depths": [2, 1, 2], "heads": [2, 2, 4], "window": 3},
}


def small(name, in_channels=1, num_classes=3, **options):
    torch.manual_seed(0)
    return create_network(name, in_channels, num_classes, **SMALL[name] | options)


def outputs(network, x):
    """The logits as a list, whether or not the network is deeply supervised."""
    logits = network(x)
    return logits if isinstance(logits, list) else [logits]


def with_option(option):
    return [name for name in SMALL if option in inspect.signature(NETWORKS.get(name)).parameters]


def test_every_network_is_swept():
    assert set(SMALL) == set(list_networks("segment"))  # classifiers: test_vmamba.py, test_nnmamba.py


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 90), (64, 16)])
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_any_size_and_channels(name, size, in_channels):
    network = small(name, in_channels).eval()
    with torch.no_grad():
        logits = outputs(network, torch.randn(1, in_channels, *size))[0]
    assert logits.shape == (1, 3, *size)
    assert torch.isfinite(logits).all()


def assert_every_parameter_learns(network):
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    sum(logits.square().mean() for logits in outputs(network, torch.randn(2, 1, 40, 40))).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without  # so DDP needs no search for unused parameters
    dead = [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    # A bias before batch or instance norm has no effect; everything else moves.
    assert all("conv" in key and key.endswith("bias") for key in dead)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    assert_every_parameter_learns(small(name).train())


@pytest.mark.parametrize("name", SMALL)
def test_one_image_trains(name):
    network = small(name).train()
    sum(logits.square().mean() for logits in outputs(network, torch.randn(1, 1, 33, 40))).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("name", with_option("deep_supervision"))
def test_every_parameter_learns_with_the_other_supervision(name):
    default = inspect.signature(NETWORKS.get(name)).parameters["deep_supervision"].default
    assert_every_parameter_learns(small(name, deep_supervision=not default).train())


@pytest.mark.parametrize("name", with_option("deep_supervision"))
def test_deep_supervision_adds_logits_and_changes_none(name):
    deep, plain = small(name, deep_supervision=True).eval(), small(name, deep_supervision=False).eval()
    plain.load_state_dict(deep.state_dict())
    x = torch.randn(2, 1, 41, 50)
    with torch.no_grad():
        full, *others = deep(x)
        assert torch.equal(full, plain(x))
        assert torch.equal(full, deep.forward_with_features(x)[0])
    assert others
    cells = [next(c for c in (1, 2, 4, 8, 16, 32) if -(-50 // c) == logits.shape[3]) for logits in others]
    assert cells == sorted(cells)
    assert [tuple(logits.shape) for logits in others] == [(2, 3, -(-41 // c), -(-50 // c)) for c in cells]


@pytest.mark.parametrize("name", with_option("checkpointing"))
def test_checkpointing_changes_nothing_but_memory(name):
    x, runs = torch.randn(2, 1, 32, 32), []
    for checkpointing in (False, True):
        network = small(name, checkpointing=checkpointing).train()
        torch.manual_seed(5)
        logits = outputs(network, x)[0]
        logits.square().mean().backward()
        runs.append([logits, *(p.grad for p in network.parameters())])
    for plain, recomputed in zip(*runs, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("name", SMALL)
def test_bf16_autocast_stays_close(name):
    network = small(name).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        exact = outputs(network, x)
        with torch.autocast("cpu", torch.bfloat16):
            half = outputs(network, x)
    for a, b in zip(exact, half, strict=True):
        assert (b.float() - a).norm() / a.norm() < 0.03


@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name):
    first, second = small(name).eval(), create_network(name, 1, 3, **SMALL[name]).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 1, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(outputs(first, x), outputs(second, x), strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_export_equals_eager(name):
    network = small(name).eval()
    x = torch.randn(1, 1, 32, 32)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))


@pytest.mark.parametrize("name", SMALL)
def test_compile_equals_eager(name):
    network = small(name).eval()
    x = torch.randn(1, 1, 32, 32)
    torch.compiler.reset()  # each network is one more version of the same forward, and those are limited
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize("name", SMALL)
def test_decoder_features_cover_the_image_at_the_stated_stride(name):
    network = small(name)
    logits, decoded = network.forward_with_features(torch.randn(2, 1, 40, 50))
    padded = network.pad(torch.zeros(1, 1, 40, 50)).shape[2:]
    assert logits.shape[2:] == (40, 50)
    assert decoded.shape == (2, network.decoder_channels, *(n // network.decoder_stride for n in padded))


@pytest.mark.parametrize("name", SMALL)
def test_wrong_channels_and_options_are_named(name):
    with pytest.raises(ValueError, match=r"built for 1 input channels and got 3"):
        small(name)(torch.randn(1, 3, 32, 32))
    with pytest.raises(InputError, match="Did you mean"):
        create_network(name, 1, 3, **{next(iter(SMALL[name])) + "x": 1})
    with pytest.raises(InputError, match="num_classes is 0"):
        create_network(name, 1, 0)


def test_single_stem_equals_repeated_grey_and_loads_colour_weights():
    repeated, single = small("mamba_unet").eval(), small("mamba_unet", grey_stem="single").eval()
    assert single.patch_embed.proj.weight.shape[1] == 1
    single.load_state_dict(repeated.state_dict())
    x = torch.randn(2, 1, 40, 48)
    torch.testing.assert_close(single(x), repeated(x), atol=1e-5, rtol=1e-5)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    layer, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    y = layer(x)
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert all(sample.unique().numel() == 1 for sample in y[:50])
    assert torch.equal(layer.eval()(x), x)
