"""Losses against independent, slow definitions, and their behaviour where nothing is known."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from mambaseg.losses.cross_entropy import partial_cross_entropy
from mambaseg.losses.dice import soft_dice_loss
from mambaseg.losses.pooled_contrast import pooled_contrast_loss

IGNORE = 255


def problem(seed=0, shape=(3, 4, 5, 7), unknown=0.3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < unknown] = IGNORE
    return logits, target


def slow_dice(probabilities, target):
    losses = []
    for c in range(probabilities.shape[1]):
        intersection = size = 0.0
        for b in range(len(target)):
            for index in torch.cartesian_prod(*map(torch.arange, target.shape[1:])).tolist():
                t, p = target[(b, *index)].item(), probabilities[(b, c, *index)].item()
                if t != IGNORE:
                    intersection += p * (t == c)
                    size += p * p + (t == c)
        losses.append(1 - (2 * intersection + 1e-5) / (size + 1e-5))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_dice_equals_the_slow_definition(unknown):
    logits, target = problem(unknown=unknown)
    probabilities = logits.softmax(1)
    assert soft_dice_loss(probabilities, target).item() == pytest.approx(slow_dice(probabilities, target), abs=1e-12)


def test_dice_gradient():
    logits, target = problem()
    assert torch.autograd.gradcheck(lambda z: soft_dice_loss(z.softmax(1), target), logits)


def test_dice_on_a_half_equals_dice_with_the_other_half_unknown():
    logits, target = problem(shape=(4, 4, 6, 6), unknown=0.0)
    p = logits.softmax(1)
    masked = target.clone()
    masked[2:] = IGNORE
    torch.testing.assert_close(soft_dice_loss(p, masked), soft_dice_loss(p[:2], target[:2]))


def test_cross_entropy_is_the_mean_over_known_pixels():
    logits, target = problem()
    known = target != IGNORE
    picked = logits.log_softmax(1).movedim(1, -1)[known]
    expected = -picked.gather(1, target[known][:, None]).mean()
    torch.testing.assert_close(partial_cross_entropy(logits, target), expected)
    torch.testing.assert_close(
        partial_cross_entropy(logits, target), F.cross_entropy(logits, target, ignore_index=IGNORE)
    )


def test_the_deterministic_form_of_cross_entropy_is_the_same():
    logits, target = problem()
    plain = partial_cross_entropy(logits, target)
    (expected,) = torch.autograd.grad(plain, logits)
    torch.use_deterministic_algorithms(True)
    try:
        value = partial_cross_entropy(logits, target)
        (gradient,) = torch.autograd.grad(value, logits)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("loss", [partial_cross_entropy, lambda z, t: soft_dice_loss(z.softmax(1), t)])
def test_nothing_known_gives_zero_loss_and_zero_gradient(loss):
    logits, target = problem()
    value = loss(logits, torch.full_like(target, IGNORE))
    value.backward()
    assert value.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0.0


def test_bf16_logits_are_summed_in_fp32():
    logits, target = problem(shape=(4, 4, 64, 64), unknown=0.0)
    reference = partial_cross_entropy(logits.bfloat16().double(), target)
    assert partial_cross_entropy(logits.bfloat16(), target).item() == pytest.approx(reference.item(), rel=1e-6)


def test_pooled_contrast_by_hand():
    a = torch.zeros(2, 4, 3, 3)
    b = torch.zeros(2, 4, 3, 3)
    a[:, 0], b[0, 0], b[1, 1] = 2.0, 5.0, 7.0
    # Image 0: equal directions, distance 0. Image 1: orthogonal unit vectors, squared distance 2.
    assert pooled_contrast_loss([a, b], "paper").item() == pytest.approx(1.0)
    assert pooled_contrast_loss([a, b], "released").item() == pytest.approx(0.25)


@pytest.mark.parametrize("reduction", ["released", "paper"])
@pytest.mark.parametrize("networks", [2, 3])
def test_pooled_contrast_is_the_sum_over_pairs(networks, reduction):
    logits = [problem(seed)[0] for seed in range(networks)]
    units = [F.normalize(z.mean((2, 3)), dim=1) for z in logits]
    squares = [(a - b).square() for a, b in combinations(units, 2)]
    expected = sum(each.mean() if reduction == "released" else each.sum(1).mean() for each in squares)
    loss = pooled_contrast_loss(logits, reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for grad, truth in zip(*(torch.autograd.grad(value, logits) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(grad, truth, rtol=1e-12, atol=1e-12)


def test_pooled_contrast_gradient():
    logits = [problem(seed, (2, 3, 2, 3))[0] for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *z: pooled_contrast_loss(z), logits)


def test_pooled_contrast_of_no_evidence_is_finite():
    logits = [torch.zeros(2, 4, 3, 3, requires_grad=True), problem(0, (2, 4, 3, 3))[0].detach().float()]
    loss = pooled_contrast_loss(logits)
    assert loss.item() == pytest.approx(0.25)
    assert torch.autograd.grad(loss, logits[0])[0].isfinite().all()


def test_pooled_contrast_adds_bf16_logits_in_fp32():
    logits = [problem(seed, (3, 4, 64, 64))[0].detach().bfloat16().requires_grad_() for seed in range(2)]
    loss, exact = pooled_contrast_loss(logits), pooled_contrast_loss([z.double() for z in logits])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert all(grad.dtype == torch.bfloat16 for grad in torch.autograd.grad(loss, logits))


def test_pooled_contrast_moves_both_networks():
    a, b = (torch.randn(2, 4, 3, 3, requires_grad=True) for _ in range(2))
    pooled_contrast_loss([a, b]).backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooled_contrast_on_a_gpu_under_autocast(dtype):
    logits = [problem(seed, (3, 4, 64, 48))[0].detach().to("cuda", dtype) for seed in range(2)]
    logits = [logits[0].requires_grad_(), logits[1].contiguous(memory_format=torch.channels_last).requires_grad_()]
    exact = [z.detach().double().requires_grad_() for z in logits]
    with torch.autocast("cuda", torch.bfloat16):
        loss = pooled_contrast_loss(logits)
    truth = pooled_contrast_loss(exact)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-4)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for grad, expected in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(truth, exact), strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(
            grad.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )
