"""Convolutions before batch norm: what torch's two modules compute, without the bias on the way."""

import copy

import pytest
import torch
from torch import nn

from mambaseg.networks import create_network
from mambaseg.networks.layers import conv_norm
from mambaseg.networks.layers.conv_norm import ConvBeforeNorm, convolve_and_normalise


def pair(bias=True, **options):
    torch.manual_seed(0)
    convolution = ConvBeforeNorm(2, 3, 3, padding=1, bias=bias, dtype=torch.float64)
    norm = nn.BatchNorm2d(3, dtype=torch.float64, **options)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return convolution, norm


@pytest.mark.parametrize(
    ("bias", "options", "training"),
    [
        (True, {}, True),
        (True, {"momentum": 0.3}, True),
        (True, {"momentum": None}, True),
        (True, {"track_running_stats": False}, True),
        (False, {}, True),
        (True, {}, False),
    ],
)
def test_values_gradients_and_statistics_are_those_of_the_two_modules(bias, options, training):
    own = pair(bias, **options)
    theirs = copy.deepcopy(own)
    seen_by_hook = []
    own[0].register_forward_hook(lambda *_: seen_by_hook.append(1))
    for part in (*own, *theirs):
        part.train(training)
    images = torch.randn(4, 2, 6, 5, dtype=torch.float64)
    for _ in range(2):
        seen, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
        out, truth = convolve_and_normalise(seen, *own), theirs[1](theirs[0](expected))
        torch.testing.assert_close(out, truth)
        up = torch.randn_like(out)
        out.backward(up)
        truth.backward(up)
        torch.testing.assert_close(seen.grad, expected.grad)
    assert len(seen_by_hook) == 2
    for part, other in zip(own, theirs, strict=True):
        for (name, value), reference in zip(part.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value.grad, reference.grad, rtol=1e-7, atol=1e-12, msg=name)
        for (name, value), reference in zip(part.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(value, reference, msg=name)


def norm_layers(**options):
    return [*pair(**options), nn.LeakyReLU(0.1, inplace=True)]


@pytest.fixture
def launched(monkeypatch):
    """Take the path of a GPU, and list the calls of its operator."""
    calls = []
    operator = conv_norm.batch_norm_act
    monkeypatch.setattr(conv_norm, "on_own_kernels", lambda _: True)
    monkeypatch.setattr(conv_norm, "batch_norm_act", lambda *given: calls.append(1) or operator(*given))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("momentum", [0.3, 0.0])
def test_own_kernels_do_what_the_modules_do(launched, bias, activated, momentum):
    own = norm_layers(bias=bias, momentum=momentum)[: 2 + activated]
    theirs = copy.deepcopy(own)
    for step in range(3):
        torch.manual_seed(step)
        images = torch.randn(4, 2, 6, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        seen, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
        out, truth = convolve_and_normalise(seen, *own), nn.Sequential(*theirs)(expected)
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, truth)
        up = torch.randn_like(out)
        out.backward(up)
        truth.backward(up)
        torch.testing.assert_close(seen.grad, expected.grad)
    assert len(launched) == 3
    for part, other in zip(own, theirs, strict=True):
        for (name, value), reference in zip(part.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value.grad, reference.grad, rtol=1e-7, atol=1e-12, msg=name)
        for (name, value), reference in zip(part.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(value, reference, msg=name)


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"eval": True}, {"nchw": True}]
)
def test_other_norms_are_left_to_torch(launched, options):
    kinds = {"affine", "momentum", "track_running_stats"}
    convolution = ConvBeforeNorm(2, 3, 3)
    norm = nn.BatchNorm2d(3, **{name: value for name, value in options.items() if name in kinds})
    norm.train("eval" not in options)
    memory_format = torch.contiguous_format if "nchw" in options else torch.channels_last
    images = torch.randn(2, 2, 6, 5).contiguous(memory_format=memory_format)
    convolve_and_normalise(images, convolution, norm, nn.LeakyReLU())
    assert not launched


def test_unet_on_own_kernels_is_the_same_network(launched, monkeypatch):
    torch.manual_seed(0)
    own = create_network("unet", 1, 3, dropout=[0.0] * 5).double()
    theirs = copy.deepcopy(own)
    images = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    out = own(images)
    monkeypatch.setattr(conv_norm, "on_own_kernels", lambda _: False)
    truth = theirs(images)
    assert len(launched) == 18
    torch.testing.assert_close(out, truth)
    for logits in (out, truth):
        logits.square().sum().backward()
    for (name, value), reference in zip(own.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(value.grad, reference.grad, rtol=1e-6, atol=1e-8, msg=name)
    for (name, value), reference in zip(own.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(value, reference, msg=name)


def results_of(network, images, autocast):
    """Return logits, gradients of weights, and running statistics of a training pass."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        out = network(images)
    grads = torch.autograd.grad(out.float().square().mean(), [p for p in network.parameters() if p.dim() > 1])
    return [out, *grads, *(b for b in network.buffers() if b.is_floating_point())]


def mean_error(results, truth):
    """Return the root of the mean square of the relative errors of several tensors."""
    errors = [(r.double().cpu() - t).norm() / t.norm() for r, t in zip(results, truth, strict=True)]
    return torch.stack(errors).square().mean().sqrt()


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_unet_on_a_gpu_is_as_near_the_truth_as_the_modules_of_torch(monkeypatch, autocast):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    own = create_network("unet", 1, 3, dropout=[0.0] * 5).cuda()
    theirs, true = copy.deepcopy(own), copy.deepcopy(own).cpu().double()
    images = torch.randn(4, 1, 64, 64)
    truth = results_of(true, images.double(), autocast=False)
    measured = results_of(own, images.cuda(), autocast)
    monkeypatch.setattr(conv_norm, "on_own_kernels", lambda _: False)
    reference = results_of(theirs, images.cuda(), autocast)
    assert mean_error(measured, truth) <= 1.5 * mean_error(reference, truth) + 1e-4
    batches = [b for b in own.buffers() if not b.is_floating_point()]
    assert all(int(b) == 1 for b in batches)
