"""Cross-entropy and Dice of a student: from sums taken in one pass they are those of the two readable losses."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mambaseg.losses.cross_entropy import partial_cross_entropy
from mambaseg.losses.dice import soft_dice_loss
from mambaseg.methods.components import segmentation_loss as module
from mambaseg.methods.components.segmentation_loss import SegmentationTerm, segmentation_losses
from mambaseg.methods.components.student_output import StudentOutput
from tests.kernels.block_cases import loss_inputs
from tests.kernels.scan_cases import assert_close

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
WEIGHTS = [(1.0, 1.0), (0.3, 0.0), (0.0, 0.7), (0.0, 0.0)]


def loss_and_gradient(logits, target, weights):
    output = StudentOutput(logits, logits)
    loss = segmentation_losses({"only": SegmentationTerm(output, target, *weights)})["only"]
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


def step_terms(rows=slice(None)):
    """Return the terms of two students, each with two targets and weights of its own, and the students' logits."""
    terms, leaves = {}, []
    for student, own_weights in (("cnn", WEIGHTS[:2]), ("mamba", WEIGHTS[2:])):
        logits, label = (t.detach()[rows] for t in loss_inputs((4, 4, 5, 7 + len(leaves)), unknown=0.5))
        output = StudentOutput(logits.requires_grad_(), logits)
        leaves.append(logits)
        pseudo_label = torch.where(label == 255, label.new_tensor(2), 255)
        for name, target, weights in zip(("supervised", "cross"), (label, pseudo_label), own_weights, strict=True):
            terms[f"{name}/{student}"] = SegmentationTerm(output, target, *weights, factor=0.7)
    return dict(sorted(terms.items())), leaves


def step_losses_and_gradients(patch, own, rows=slice(None)):
    patch.setattr(module, "on_own_kernels", lambda _: own)
    terms, leaves = step_terms(rows)
    losses = segmentation_losses(terms)
    total = sum(number * loss for number, loss in enumerate(losses.values(), start=1))
    return {name: loss.detach() for name, loss in losses.items()}, torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("own", [False, True])
def test_terms_computed_together_are_those_of_the_losses(own, monkeypatch):
    losses, grads = step_losses_and_gradients(monkeypatch, own)
    terms, leaves = step_terms()
    assert list(losses) == list(terms)
    expected = {
        name: 0.7
        * (
            t.ce * partial_cross_entropy(t.output.logits, t.target)
            + t.dice * soft_dice_loss(t.output.logits.softmax(1), t.target)
        )
        for name, t in terms.items()
    }
    total = sum(number * loss for number, loss in enumerate(expected.values(), start=1))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name].detach(), rtol=1e-12, atol=1e-12)
    for grad, truth in zip(grads, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(grad, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_all_terms_are_added_over_processes_at_once(own, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "over_processes", lambda *sums: calls.append(len(sums)) or sums)
    step_losses_and_gradients(monkeypatch, own)
    assert calls == [1 if own else 4]
    assert segmentation_losses({}) == {}
    loss_and_gradient(*loss_inputs((2, 4, 5, 7)), (0.0, 0.0))
    assert len(calls) == 1


@pytest.mark.parametrize("own", [False, True])
def test_a_term_of_factor_0_still_reaches_the_student(own, monkeypatch):
    monkeypatch.setattr(module, "on_own_kernels", lambda _: own)
    logits, target = loss_inputs((2, 4, 5, 7))
    loss = segmentation_losses({"a": SegmentationTerm(StudentOutput(logits, logits), target, 1.0, 1.0, 0.0)})["a"]
    assert loss == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def _rank(rank, folder, results):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    logits, target = loss_inputs((4, 4, 5, 7))
    own = slice(2 * rank, 2 * rank + 2)
    with pytest.MonkeyPatch.context() as patch:
        alone = both_ways(patch, logits.detach()[own].requires_grad_(), target[own], (0.3, 0.7))
        steps = [step_losses_and_gradients(patch, own_kernels, own) for own_kernels in (False, True)]
    results[rank] = alone, steps
    dist.destroy_process_group()


def test_two_processes_have_the_loss_of_the_whole_batch(tmp_path, monkeypatch):
    logits, target = loss_inputs((4, 4, 5, 7))
    loss, grad, _ = loss_and_gradient(logits, target, (0.3, 0.7))
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(str(tmp_path), results), nprocs=2)
        ranks, steps = zip(*(results[rank] for rank in range(2)), strict=True)
    for way in range(2):
        for rank in ranks:
            torch.testing.assert_close(rank[way][0], loss)
        # DDP takes the mean over processes of what each of them sends back.
        torch.testing.assert_close(torch.cat([rank[way][1] for rank in ranks]) / 2, grad)
    losses, grads = step_losses_and_gradients(monkeypatch, False)
    for way in range(2):
        for rank in steps:
            torch.testing.assert_close(rank[way][0], losses)
        for leaf, truth in enumerate(grads):
            torch.testing.assert_close(torch.cat([rank[way][1][leaf] for rank in steps]) / 2, truth)


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_kernels_give_the_same_loss_and_gradient(classes, memory_format, dtype, weights, monkeypatch):
    logits, target = loss_inputs((4, classes, 224, 224), dtype, "cuda", memory_format=memory_format)
    check_alike(both_ways(monkeypatch, logits, target, weights), TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_a_whole_step(dtype, monkeypatch):
    def run(own, device):
        monkeypatch.setattr(module, "on_own_kernels", lambda _: own)
        terms, leaves = {}, []
        for number, layout in enumerate((torch.contiguous_format, torch.channels_last)):
            logits, label = loss_inputs((16, 4, 224, 224), dtype, device, unknown=0.5, memory_format=layout)
            leaves.append(logits)
            output, pseudo_label = StudentOutput(logits, logits), torch.where(label == 255, number, 255)
            terms[f"supervised/{number}"] = SegmentationTerm(output, label, 0.5, 0.5)
            terms[f"cross/{number}"] = SegmentationTerm(output, pseudo_label, 0.0, 1.0, 0.1)
        losses = torch.stack(list(segmentation_losses(terms).values()))
        return losses.detach(), torch.autograd.grad(losses.sum(), leaves)

    (losses, grads), (own_losses, own_grads) = run(False, "cuda"), run(True, "cuda")
    torch.testing.assert_close(own_losses, losses, rtol=1e-5, atol=1e-5)
    for grad, truth in zip(own_grads, grads, strict=True):
        assert_close("gradient", grad, truth, TOLERANCE[dtype])


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
