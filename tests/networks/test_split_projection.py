"""A projection in halves is the projection, whole."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.networks.layers import patches, ss2d
from mambaseg.networks.layers.patches import PatchEmbed
from mambaseg.networks.layers.split_projection import project_in_halves
from mambaseg.networks.layers.ss2d import SS2D


def inputs(*, dtype=torch.float64, device="cpu", shape=(2, 3, 5)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, shape[-1], generator=generator, dtype=torch.float64)
    return x.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_()


def test_gradients_are_those_of_the_formula():
    assert torch.autograd.gradcheck(project_in_halves, inputs())


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (2, 3, 2, 5)])
def test_halves_and_gradients_are_those_of_the_whole(shape):
    x, weight = inputs(shape=shape)
    halves, whole = project_in_halves(x, weight), F.linear(x, weight)
    torch.testing.assert_close(torch.cat(halves, -1), whole, rtol=0, atol=0)
    upstream = torch.randn_like(whole)
    found = torch.autograd.grad(halves, (x, weight), upstream.chunk(2, -1))
    torch.testing.assert_close(found, torch.autograd.grad(whole, (x, weight), upstream))


def test_one_half_alone_can_be_used():
    x, weight = inputs()
    found = torch.autograd.grad(project_in_halves(x, weight)[1].sum(), weight)[0]
    assert found[:4].eq(0).all()
    assert found[4:].ne(0).all()


def test_autocast_chooses_the_type_and_parameters_keep_theirs():
    x, weight = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = project_in_halves(x, weight)
    assert first.dtype == second.dtype == torch.bfloat16
    assert [grad.dtype for grad in torch.autograd.grad((first + second).sum(), (x, weight))] == [torch.float32] * 2


@pytest.mark.parametrize("size", [(16, 24), (18, 27)])
def test_patches_are_embedded_alike_by_product_and_by_convolution(monkeypatch, size):
    torch.manual_seed(0)
    layer, image = PatchEmbed(3, 6).double(), torch.randn(2, 1, *size, dtype=torch.float64).expand(-1, 3, -1, -1)
    runs = []
    for by_product in (False, True):
        monkeypatch.setattr(patches, "on_own_kernels", lambda x, answer=by_product: answer)
        tokens = layer(image)
        runs.append((tokens, *torch.autograd.grad(tokens.square().sum(), list(layer.parameters()))))
    torch.testing.assert_close(runs[1], runs[0])


def test_ss2d_is_the_same_in_halves(monkeypatch):
    torch.manual_seed(0)
    layer, x = SS2D(8).double(), torch.randn(2, 4, 5, 8, dtype=torch.float64)
    runs = []
    for in_halves in (False, True):
        monkeypatch.setattr(ss2d, "on_own_kernels", lambda x, answer=in_halves: answer)
        out = layer(x)
        runs.append((out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))))
    torch.testing.assert_close(runs[1], runs[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_on_a_gpu(dtype):
    x, weight = inputs(dtype=dtype, device="cuda", shape=(2, 784, 96))
    halves, whole = project_in_halves(x, weight), F.linear(x, weight)
    torch.testing.assert_close(torch.cat(halves, -1), whole, rtol=0, atol=0)
    upstream = torch.randn_like(whole)
    found = torch.autograd.grad(halves, (x, weight), upstream.chunk(2, -1))
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(found, torch.autograd.grad(whole, (x, weight), upstream), **tolerance)
