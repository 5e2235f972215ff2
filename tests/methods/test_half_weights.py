"""Weights cast together give what autocast gives."""

from typing import Any

import pytest
import torch

from mambaseg.methods.components.half_weights import forward_in_half
from mambaseg.networks import SegmentationNetwork, create_network, list_networks

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"channels": [8, 8, 16, 16, 16]},
    "nnmamba_seg": {"dims": 2, "base_channels": 16},
    "nnmamba_landmark": {"dims": 2, "base_channels": 16},
    "mamba_unet": {"embed_dim": 32},
    "swin_unet": {"embed_dim": 24},
    "segmamba": {"dims": 2, "base_channels": 16},
    "uvm_net": {"channels": [16, 32, 32], "grid": 8},
}


@pytest.mark.parametrize("name", list_networks("segment"))
def test_it_is_autocast_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    network = create_network(name, 1, 4, **SMALL.get(name, {}))
    assert isinstance(network, SegmentationNetwork)
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):  # zero at first, where a rounding would not show
            torch.nn.init.normal_(parameter, std=0.1)
    statistics = {key: buffer.clone() for key, buffer in network.named_buffers()}
    image = torch.randn(2, 1, 32, 32)
    runs = []
    for together in (False, True):
        torch.manual_seed(1)  # dropout
        network.zero_grad()
        network.load_state_dict(statistics, strict=False)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            run = forward_in_half(network, image, torch.bfloat16) if together else network.forward_with_features(image)
        sum(output.float().square().mean() for output in run).backward()
        runs.append({"logits": run[0], "decoded": run[1]} | {key: p.grad for key, p in network.named_parameters()})
        runs[-1] |= {key: buffer.clone() for key, buffer in network.named_buffers()}
    plain, cast = runs
    for key, expected in plain.items():
        if expected is None:
            assert cast[key] is None, key
            continue
        assert torch.equal(cast[key], expected), key
        assert cast[key].dtype == expected.dtype


def test_gradients_have_the_layout_of_their_weights() -> None:
    network = create_network("unet", 1, 4, **SMALL["unet"])
    assert isinstance(network, SegmentationNetwork)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        logits, _ = forward_in_half(network, torch.randn(1, 1, 32, 32), torch.bfloat16)
    logits.float().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.stride() == parameter.stride(), key


def test_frozen_and_unused_layers_get_no_gradient() -> None:
    network = create_network("unet", 1, 4, **SMALL["unet"])
    assert isinstance(network, SegmentationNetwork)
    network.unused = torch.nn.Linear(2, 2)
    frozen = {id(parameter) for name, parameter in network.named_parameters() if name.startswith("encoder")}
    grads = []
    for together in (False, True):
        torch.manual_seed(1)  # dropout
        network.zero_grad()
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        image = torch.ones(2, 1, 32, 32)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            run = forward_in_half(network, image, torch.bfloat16) if together else network.forward_with_features(image)
        run[0].float().square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert frozen
    for name, expected in grads[0].items():
        assert (grads[1][name] is None) == (expected is None), name
        assert expected is None or torch.equal(grads[1][name], expected), name


def test_nothing_is_computed_for_frozen_layers() -> None:
    network = create_network("unet", 1, 4, **SMALL["unet"])
    assert isinstance(network, SegmentationNetwork)
    network.encoder.requires_grad_(False)
    seen = []
    network.encoder.register_forward_hook(lambda _module, _inputs, maps: seen.extend(maps))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        forward_in_half(network, torch.ones(1, 1, 32, 32), torch.bfloat16)
    assert seen
    assert not any(level.requires_grad for level in seen)
