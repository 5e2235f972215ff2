"""Cross-entropy and Dice of a student: from sums taken in one pass they are those of the two readable losses."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mambaseg.losses.cross_entropy import partial_cross_entropy
from mambaseg.losses.dice import soft_dice_loss
from mambaseg.methods.components import segmentation_loss as module
from mambaseg.methods.components.segmentation_loss import segmentation_loss
from mambaseg.methods.components.student_output import StudentOutput
from tests.kernels.block_cases import loss_inputs
from tests.kernels.scan_cases import assert_close

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
WEIGHTS = [(1.0, 1.0), (0.3, 0.0), (0.0, 0.7), (0.0, 0.0)]


def loss_and_gradient(logits, target, weights):
    output = StudentOutput(logits, logits)
    loss = segmentation_loss(output, target, *weights)
    (grad,) = torch.autograd.grad(loss, logits) if any(weights) else (torch.zeros_like(logits),)
    return loss.detach(), grad, "probabilities" in vars(output)


def both_ways(patch, logits, target, weights):
    """Return loss and gradient of the readable losses and of those from sums."""
    runs = []
    for own in (False, True):
        patch.setattr(module, "on_own_kernels", lambda _, own=own: own)
        *results, computed_probabilities = loss_and_gradient(logits, target, weights)
        assert computed_probabilities == (weights[1] > 0 and not own)
        runs.append(results)
    return runs


def check_alike(runs, tolerance):
    (loss, grad), (own_loss, own_grad) = runs
    assert own_loss.dtype == loss.dtype
    assert own_grad.dtype == grad.dtype
    torch.testing.assert_close(own_loss, loss, rtol=tolerance, atol=tolerance)
    assert_close("gradient", own_grad, grad, tolerance)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (2, 3, 3, 4, 5)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_sums_give_the_same_loss_and_gradient(weights, shape, dtype, monkeypatch):
    logits, target = loss_inputs(shape, dtype)
    runs = both_ways(monkeypatch, logits, target, weights)
    check_alike(runs, TOLERANCE[dtype])
    assert runs[0][0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_it_is_the_weighted_sum_of_both_losses():
    logits, target = loss_inputs((2, 4, 5, 7))
    expected = 0.3 * partial_cross_entropy(logits, target) + 0.7 * soft_dice_loss(logits.softmax(1), target)
    loss, _, _ = loss_and_gradient(logits, target, (0.3, 0.7))
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("own", [False, True])
def test_nothing_known_gives_exact_zeros(own, monkeypatch):
    monkeypatch.setattr(module, "on_own_kernels", lambda _: own)
    loss, grad, _ = loss_and_gradient(*loss_inputs((2, 4, 5, 7), torch.float32, unknown=1.1), (1.0, 1.0))
    assert loss == 0
    assert not grad.any()


def test_all_sums_are_added_over_processes_at_once(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "on_own_kernels", lambda _: True)
    monkeypatch.setattr(module, "over_processes", lambda *sums: calls.append(len(sums)) or sums)
    for weights in WEIGHTS:
        loss_and_gradient(*loss_inputs((2, 4, 5, 7)), weights)
    assert calls == [4, 4, 4]


def _rank(rank, folder, results):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    logits, target = loss_inputs((4, 4, 5, 7))
    own = slice(2 * rank, 2 * rank + 2)
    with pytest.MonkeyPatch.context() as patch:
        shares = both_ways(patch, logits.detach()[own].requires_grad_(), target[own], (0.3, 0.7))
    results[rank] = shares
    dist.destroy_process_group()


def test_two_processes_have_the_loss_of_the_whole_batch(tmp_path):
    logits, target = loss_inputs((4, 4, 5, 7))
    loss, grad, _ = loss_and_gradient(logits, target, (0.3, 0.7))
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(str(tmp_path), results), nprocs=2)
        ranks = [results[rank] for rank in range(2)]
    for way in range(2):
        for rank in ranks:
            torch.testing.assert_close(rank[way][0], loss)
        # DDP takes the mean over processes of what each of them sends back.
        torch.testing.assert_close(torch.cat([rank[way][1] for rank in ranks]) / 2, grad)


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_kernels_give_the_same_loss_and_gradient(classes, memory_format, dtype, weights, monkeypatch):
    logits, target = loss_inputs((4, classes, 224, 224), dtype, "cuda", memory_format=memory_format)
    check_alike(both_ways(monkeypatch, logits, target, weights), TOLERANCE[dtype])


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_are_taken_and_allowed_among_deterministic_algorithms():
    logits, target = loss_inputs((4, 4, 224, 224), torch.bfloat16, "cuda")
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            loss, grad, computed_probabilities = loss_and_gradient(logits, target, (1.0, 1.0))
            assert not computed_probabilities
            runs.append((loss, grad))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.gpu
def test_no_sum_waits_for_the_gpu():
    logits, target = loss_inputs((2, 4, 32, 32), torch.float32, "cuda")
    loss_and_gradient(logits, target, (1.0, 1.0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradient(logits, target, (1.0, 1.0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
