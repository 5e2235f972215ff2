"""The kernels of losses and pseudo-labels on a GPU: run with ``pytest -m gpu tests/kernels -n 0``."""

import pytest
import torch

from mambaseg.kernels.softmax_sums import softmax_sums
from tests.kernels.block_cases import (
    compare_largest_class,
    compare_loss_sums,
    compare_losses_of_sums,
    compare_stacked_loss_sums,
    loss_inputs,
    stacked_loss_inputs,
    sums_inputs,
)
from tests.kernels.scan_cases import PRECISION

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "shape",
    [
        *((4, classes, 224, 224) for classes in (2, 3, 4, 5)),
        (2, 14, 33, 35, 31),
        (1, 32, 64, 48),
        (3, 256, 7, 5),
        (5, 4),
    ],
)
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.usefixtures("_poisoned")
def test_loss_sums(shape, dtype):
    gradient_tolerance = max(1e-5, PRECISION[dtype][0])
    compare_loss_sums(*loss_inputs(shape, dtype, "cuda"), 1e-5, gradient_tolerance)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 32])
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.usefixtures("_poisoned")
def test_loss_sums_of_channels_last_logits(classes, dtype):
    logits, target = loss_inputs((3, classes, 61, 80), dtype, "cuda", memory_format=torch.channels_last)
    compare_loss_sums(logits, target, 1e-5, PRECISION[dtype][0])
    (grad,) = torch.autograd.grad(softmax_sums(logits, target)[3], logits)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_loss_sums_of_any_strides():
    logits, target = loss_inputs((2, 4, 60, 70), torch.float32, "cuda")
    logits = logits.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)[:, :, 1:, ::2].requires_grad_()
    compare_loss_sums(logits, target[:, 1:, ::2], 1e-5, 1e-5)


def test_loss_sums_of_extreme_logits_and_of_nothing_known():
    logits, target = loss_inputs((2, 4, 50, 70), torch.float32, "cuda")
    compare_loss_sums((logits.detach() * 1e4).requires_grad_(), target, 1e-5, 1e-5)
    sums = torch.hstack(softmax_sums(logits, torch.full_like(target, 255)))
    assert not sums.any()
    assert not torch.autograd.grad(sums.sum(), logits)[0].any()
    empty = torch.hstack(softmax_sums(logits[:0], target[:0]))
    assert not empty.any()


@pytest.mark.parametrize(
    "shapes", [[(16, 4, 224, 224)] * 2, [(2, 4, 61, 80), (3, 4, 33, 7)], [(2, 5, 9, 16), (1, 5, 4097), (2, 5, 3)]]
)
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.usefixtures("_poisoned")
def test_stacked_loss_sums(shapes, dtype):
    compare_stacked_loss_sums(stacked_loss_inputs(shapes, dtype, "cuda"), 1e-5, max(1e-5, PRECISION[dtype][0]))


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 32, 256])
@pytest.mark.usefixtures("_poisoned")
def test_losses_of_sums(classes):
    compare_losses_of_sums(*sums_inputs(classes, torch.float32, "cuda"), 1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_loss_sums_twice_are_bit_equal(memory_format):
    runs = []
    for _ in range(2):
        logits, target = loss_inputs((16, 4, 224, 224), torch.float32, "cuda", memory_format=memory_format)
        sums = torch.hstack(softmax_sums(logits, target))
        runs.append((sums, *torch.autograd.grad(sums.sum(), logits)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("shape", [(16, 4, 224, 224), (2, 3, 61, 80), (1, 5, 3, 7), (2, 32, 33, 9), (1, 256, 5, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", list(PRECISION))
def test_largest_class(shape, memory_format, dtype):
    compare_largest_class(shape, dtype, "cuda", memory_format)
