"""One sweep over every registered network: sizes, channels, types, gradients, compile, export, round trips."""

import pytest
import torch

from mambaseg.errors import InputError
from mambaseg.networks import create_network, list_networks

SMALL = {
    "unet": {"channels": [4, 6, 8, 10, 12]},
    "mamba_unet": {"embed_dim": 8, "depths": [1, 1, 1], "d_state": 2},
    "swin_unet": {"embed_dim": 8, "depths": [2, 1, 2], "heads": [2, 2, 4], "window": 3},
}


def small(name, in_channels=1, num_classes=3, **options):
    torch.manual_seed(0)
    return create_network(name, in_channels, num_classes, **SMALL[name] | options)


def test_every_network_is_swept():
    assert set(SMALL) == set(list_networks())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 90), (64, 16)])
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_any_size_and_channels(name, size, in_channels):
    network = small(name, in_channels).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, in_channels, *size))
    assert logits.shape == (1, 3, *size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    network = small(name).train()
    network(torch.randn(2, 1, 40, 40)).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without  # so DDP needs no search for unused parameters
    dead = [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    # A bias before batch norm has no effect; everything else moves.
    assert all("conv_conv" in key and key.endswith("bias") for key in dead)


@pytest.mark.parametrize("name", SMALL)
def test_bf16_autocast_stays_close(name):
    network = small(name).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    assert (half.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name):
    first, second = small(name).eval(), create_network(name, 1, 3, **SMALL[name]).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(first(x), second(x))


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
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize("name", SMALL)
def test_decoder_features_cover_the_image_at_the_stated_stride(name):
    network = small(name)
    logits, decoded = network.forward_with_features(torch.randn(2, 1, 40, 50))
    padded = [-(-n // network.stride) * network.stride for n in (40, 50)]
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


def test_checkpointing_changes_nothing_but_memory():
    plain, frugal = small("mamba_unet").train(), small("mamba_unet", checkpointing=True).train()
    x = torch.randn(2, 1, 32, 32)
    grads = []
    for network in (plain, frugal):
        torch.manual_seed(5)
        network(x).square().mean().backward()
        grads.append([p.grad for p in network.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    from mambaseg.networks.layers.drop_path import DropPath

    torch.manual_seed(0)
    layer, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    y = layer(x)
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert all(sample.unique().numel() == 1 for sample in y[:50])
    assert torch.equal(layer.eval()(x), x)
