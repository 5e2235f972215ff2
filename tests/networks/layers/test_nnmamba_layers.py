"""nnMamba's parts against their definitions, and their gradients against numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F

from mambaseg.networks.layers.nnmamba_layer import Added, NNMambaLayer
from mambaseg.networks.layers.nnmamba_unet import ChannelGate, ResidualStage
from mambaseg.networks.layers.siamese_mamba import SiameseMamba


def filled(layer):
    """A layer in evaluation and float64, with running statistics that are not those of a start."""
    for key, buffer in layer.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return layer.double().eval()


def values_and_gradients(run, layer, x):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = run(x)
    (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("length", [1, 7])
def test_siamese_mamba_is_the_mean_over_flips(length):
    torch.manual_seed(0)
    layer, x = SiameseMamba(6, d_state=3).double(), torch.randn(2, length, 6).double()
    once = super(SiameseMamba, layer).forward

    def definition(x):
        by_channels, by_steps = once(x.flip(2)).flip(2), once(x.flip(1)).flip(1)
        return (once(x) + by_channels + by_steps + once(x.flip(1, 2)).flip(1, 2)) / 4

    found, expected = values_and_gradients(layer, layer, x), values_and_gradients(definition, layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for axes in ((1,), (2,), (1, 2)):
        torch.testing.assert_close(layer(x.flip(axes)), layer(x).flip(axes), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_layer_by_its_definition(dims, siamese, plain):
    torch.manual_seed(0)
    layer = filled(NNMambaLayer(dims, 4, 2, siamese, plain))
    x = torch.randn(2, 4, *(3, 2, 5)[:dims]).double()

    def definition(x):
        a = layer.conv_in.norm(layer.conv_in.conv(x)).clamp(min=0)
        made = layer.mamba(torch.stack([row.reshape(4, -1).T for row in a])).mT.reshape(a.shape)
        return made if plain else F.relu(layer.conv_out.norm(layer.conv_out.conv(a + made)))

    found, expected = values_and_gradients(layer, layer, x), values_and_gradients(definition, layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(Added(layer)(x), x + definition(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_the_layer(training):
    torch.manual_seed(0)
    layer = filled(NNMambaLayer(3, 2, 2, siamese=True)).train(training)
    x = torch.randn(2, 2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


def test_stage_by_its_definition_with_a_shared_layer():
    torch.manual_seed(0)
    shared = NNMambaLayer(3, 6, 2)
    stage = filled(ResidualStage(3, 4, 6, 3, [shared]))
    x = torch.randn(2, 4, 5, 4, 3).double()

    def convolved(block, x):
        return block.norm2(block.conv2(F.relu(block.norm1(block.conv1(x)))))

    def definition(x):
        first, second, third = stage.blocks
        x = F.relu(convolved(first, x) + first.norm3(first.conv3(x)))
        x = F.relu(convolved(second, x) + shared(x) + x)
        return F.relu(convolved(third, x) + shared(x) + x)

    found, expected = values_and_gradients(stage, stage, x), values_and_gradients(definition, stage, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert found[0].shape == (2, 6, 3, 2, 2)


def test_a_shared_layer_learns_from_all_its_blocks():
    torch.manual_seed(0)
    shared = filled(ResidualStage(2, 4, 4, 3, [NNMambaLayer(2, 4, 2)]))
    apart = ResidualStage(2, 4, 4, 3, [copy.deepcopy(shared.mamba_layers[0]) for _ in range(2)]).double().eval()
    apart.blocks.load_state_dict(shared.blocks.state_dict())
    x = torch.randn(1, 4, 6, 6).double()
    assert torch.equal(shared(x), apart(x))
    for stage in (shared, apart):
        stage(x).square().sum().backward()
    first, second = (list(layer.parameters()) for layer in apart.mamba_layers)
    for whole, one, other in zip(shared.mamba_layers.parameters(), first, second, strict=True):
        torch.testing.assert_close(whole.grad, one.grad + other.grad)


def test_gate_by_its_definition():
    torch.manual_seed(0)
    gate, x = ChannelGate(32).double(), torch.randn(2, 32, 3, 4, 2).double()
    hidden = F.relu(x.mean((2, 3, 4)) @ gate.reduce.weight.T + gate.reduce.bias)
    factors = torch.sigmoid(hidden @ gate.expand.weight.T + gate.expand.bias)
    torch.testing.assert_close(gate(x), x * factors[:, :, None, None, None])
    assert (gate.reduce.out_features, ChannelGate(8).reduce.out_features) == (2, 1)
