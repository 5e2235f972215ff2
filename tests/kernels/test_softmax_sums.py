"""The sums of cross-entropy and Dice: values and gradients against their definition, and as torch operators."""

import pytest
import torch
from torch.nn import functional as F

from mambaseg.kernels.softmax_sums import (
    losses_of_sums,
    losses_of_sums_reference,
    softmax_sums,
    softmax_sums_reference,
    stacked_softmax_sums,
)
from mambaseg.kernels.softmax_sums.op import (
    losses_of_sums_backward,
    losses_of_sums_forward,
    softmax_sums_backward,
    softmax_sums_forward,
)
from tests.kernels.block_cases import (
    compare_loss_sums,
    compare_losses_of_sums,
    compare_stacked_loss_sums,
    loss_inputs,
    stacked_loss_inputs,
    sums_inputs,
)

SHAPES = [(2, 4, 5, 7), (1, 3, 6), (2, 2, 3, 4, 5), (3, 5), (1, 32, 4, 4), (1, 1, 3, 3)]


STACKED = [[(2, 4, 5, 7), (2, 4, 5, 7)], [(2, 4, 5, 7), (1, 4, 3, 4, 5)], [(3, 3, 9)], [(3, 5), (1, 5, 6), (2, 5, 4)]]


def test_definition_is_that_of_the_losses():
    logits, target = loss_inputs((2, 4, 5, 7))
    overlap, squares, counts, cross_entropy = softmax_sums_reference(logits, target)
    p, known = logits.softmax(1), target != 255
    for c in range(4):
        torch.testing.assert_close(overlap[c], p[:, c][target == c].sum())
        torch.testing.assert_close(squares[c], p[:, c][known].square().sum())
        assert counts[c] == (target == c).sum()
    torch.testing.assert_close(cross_entropy, F.cross_entropy(logits, target, ignore_index=255, reduction="sum"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_shapes(shape, unknown):
    compare_loss_sums(*loss_inputs(shape, unknown=unknown), 1e-12, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_types(dtype, tolerance):
    compare_loss_sums(*loss_inputs((2, 4, 9, 7), dtype=dtype), 1e-6, tolerance)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_labels_of_other_types(kind):
    logits, target = loss_inputs((2, 4, 9, 7))
    compare_loss_sums(logits, target.to(kind), 1e-12, 1e-12)


def test_gradient_has_the_layout_of_the_logits():
    logits, target = loss_inputs((2, 4, 5, 7), memory_format=torch.channels_last)
    compare_loss_sums(logits, target, 1e-12, 1e-12)
    (grad,) = torch.autograd.grad(softmax_sums(logits, target)[0].sum(), logits)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (3, 2, 1, 0), (1, 0, 2, 3)])
def test_any_strides(order):
    logits, target = loss_inputs((2, 4, 5, 7))
    back = sorted(range(4), key=order.__getitem__)
    logits = logits.detach().permute(order).contiguous().permute(back)[:, :, 1:, ::2].requires_grad_()
    compare_loss_sums(logits, target[:, 1:, ::2], 1e-12, 1e-12)


def test_nothing_known_gives_exact_zeros():
    logits, target = loss_inputs((2, 4, 5, 7), unknown=1.1)
    sums = softmax_sums(logits, target)
    assert not torch.hstack(sums).any()
    (grad,) = torch.autograd.grad(torch.hstack(sums).sum(), logits)
    assert not grad.any()


def test_an_empty_batch_gives_zeros():
    logits = torch.zeros(0, 4, 5, 7, requires_grad=True)
    sums = torch.hstack(softmax_sums(logits, torch.zeros(0, 5, 7, dtype=torch.int64)))
    assert torch.equal(sums, torch.zeros(13))
    assert torch.autograd.grad(sums.sum(), logits)[0].shape == logits.shape


def test_absent_classes_and_another_label_of_the_unknown():
    logits, target = loss_inputs((2, 4, 5, 7))
    only = torch.where(target == 255, 255, 2)
    compare_loss_sums(logits, only, 1e-12, 1e-12)
    moved = torch.where(target == 255, -1, target)
    pairs = zip(softmax_sums(logits, moved, -1), softmax_sums(logits, target), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    none_of_the_first = softmax_sums(logits, torch.where(target == 255, 0, target), 0)
    assert none_of_the_first[0][0] == none_of_the_first[2][0] == 0


def test_a_label_that_is_none_makes_the_cross_entropy_nan():
    logits, target = loss_inputs((2, 4, 5, 7))
    for stray in (4, -1, 254):
        target[0, 0, 0] = stray
        *others, cross_entropy = softmax_sums(logits, target)
        assert cross_entropy.isnan()
        assert torch.hstack(others).isfinite().all()


def test_extreme_logits():
    logits, target = loss_inputs((2, 4, 5, 7), dtype=torch.float32)
    compare_loss_sums((logits.detach() * 1e4).requires_grad_(), target, 1e-6, 1e-6)


def test_forced_reference_is_the_definition(monkeypatch):
    logits, target = loss_inputs((2, 4, 5, 7))
    expected = softmax_sums_reference(logits, target)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert all(torch.equal(*pair) for pair in zip(softmax_sums(logits, target), expected, strict=True))


@pytest.mark.parametrize("shape", [(2, 5, 6), (3, 5, 7), (2, 4, 5, 7)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"integer target \(B, \*S\)"):
        softmax_sums(torch.zeros(2, 4, 5, 7), torch.zeros(shape, dtype=torch.int64))


def test_probabilities_are_no_target():
    with pytest.raises(ValueError, match=r"target torch\.float32"):
        softmax_sums(torch.zeros(2, 4, 5, 7), torch.zeros(2, 5, 7))


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_gradcheck(shape):
    logits, target = loss_inputs(shape)

    def differentiable(logits):
        overlap, squares, _, cross_entropy = softmax_sums(logits, target)
        return overlap, squares, cross_entropy

    assert torch.autograd.gradcheck(differentiable, logits)


def test_opcheck():
    logits, target = loss_inputs((2, 4, 7), dtype=torch.float32)
    for given in (logits, logits.detach().mT.contiguous().mT.requires_grad_()):
        torch.library.opcheck(softmax_sums_forward, ([given], [target], [1], 255))
        torch.library.opcheck(softmax_sums_backward, (torch.randn(1, 13), [given.detach()], [target], [1], 255))


def test_opcheck_of_several_logits():
    (first, some), (second, more) = [
        (logits.flatten(2).detach().requires_grad_(), [target.flatten(1) for target in targets])
        for logits, targets in stacked_loss_inputs(STACKED[0], torch.float32)
    ]
    torch.library.opcheck(softmax_sums_forward, ([first, second], some + more, [1, 2], 255))


def test_meta_tensors_give_shapes():
    logits, target = loss_inputs((2, 4, 5, 7), device="meta")
    assert [sums.shape for sums in softmax_sums(logits, target)] == [(4,), (4,), (4,), ()]


def test_compiles_without_graph_breaks():
    logits, target = loss_inputs((2, 4, 5, 7), memory_format=torch.channels_last)
    compiled = torch.compile(softmax_sums, fullgraph=True, backend="aot_eager")
    runs = []
    for run in (compiled, softmax_sums):
        sums = run(logits, target)
        (grad,) = torch.autograd.grad(sums[0].square().sum() + sums[3], logits)
        runs.append((*sums, grad))
    for name, given, expected in zip("oscel", *runs, strict=True):
        torch.testing.assert_close(given, expected, msg=name)


class _Sums(torch.nn.Module):
    def forward(self, logits, target):
        return softmax_sums(logits, target)


def test_exports_as_one_node():
    logits, target = loss_inputs((2, 4, 5, 7))
    arguments = (logits.detach(), target)
    program = torch.export.export(_Sums(), arguments)
    assert sum("softmax_sums" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(*arguments), _Sums()(*arguments))


def test_autocast_keeps_the_sums():
    logits, target = loss_inputs((2, 4, 5, 7), dtype=torch.float32)
    expected = softmax_sums(logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(*pair) for pair in zip(softmax_sums(logits, target), expected, strict=True))


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 14, 32, 33, 104, 256])
def test_tiles_hold_whole_pixels(classes):
    launch = pytest.importorskip("mambaseg.kernels.softmax_sums.triton_launch")
    tile = launch.choose_tile(classes)
    assert classes <= tile.classes < 2 * classes
    assert tile.pixels >= 32
    assert tile.warps in (1, 2, 4, 8, 16)
    assert tile.classes * tile.pixels == launch.WARP_VALUES * tile.warps


def test_too_many_classes_are_refused_with_the_fix():
    launch = pytest.importorskip("mambaseg.kernels.softmax_sums.triton_launch")
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        launch.choose_tile(257)


@pytest.mark.parametrize("shapes", STACKED)
def test_stacked_sums_are_those_of_each_target(shapes):
    compare_stacked_loss_sums(stacked_loss_inputs(shapes), 1e-12, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_stacked_sums_of_other_types(dtype, tolerance):
    compare_stacked_loss_sums(stacked_loss_inputs(STACKED[0], dtype), 1e-6, tolerance)


def test_forced_reference_is_the_definition_of_stacked_sums_and_losses(monkeypatch):
    pairs, (sums, weights) = stacked_loss_inputs(STACKED[1]), sums_inputs(4)
    stacked, losses = stacked_softmax_sums(pairs), losses_of_sums(sums, weights, 1e-5)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    torch.testing.assert_close(stacked_softmax_sums(pairs), stacked, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses_of_sums(sums, weights, 1e-5), losses, rtol=1e-12, atol=1e-12)


def test_wrong_shapes_of_a_stack_are_named():
    logits, target = loss_inputs((2, 4, 5, 7))
    with pytest.raises(ValueError, match=r"integer target \(B, \*S\)"):
        stacked_softmax_sums([(logits, [target, target[:1]])])


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_losses_of_sums(classes, dtype, tolerance):
    compare_losses_of_sums(*sums_inputs(classes, dtype), tolerance)


def test_losses_gradcheck():
    sums, weights = sums_inputs(3)
    counts = sums.detach()[:4, 6:9]

    def differentiable(overlap, squares, entropy):
        return losses_of_sums(torch.cat([overlap, squares, counts, entropy], 1), weights[:4], 1e-5)

    parts = [part.detach().requires_grad_() for part in (sums[:4, :3], sums[:4, 3:6], sums[:4, 9:])]
    assert torch.autograd.gradcheck(differentiable, parts)
    assert not torch.autograd.grad(losses_of_sums(sums, weights, 1e-5).sum(), sums)[0][:, 6:9].any()


@pytest.mark.parametrize("operator", [losses_of_sums, losses_of_sums_reference])
def test_a_loss_without_weight_may_be_nan(operator):
    sums, weights = sums_inputs(3)
    sums = torch.cat([sums[:, :-1], torch.full_like(sums[:, -1:], torch.nan)], 1)
    assert operator(sums, weights, 1e-5).isnan().tolist() == [True, True, False, False, True]


def test_losses_as_operators():
    sums, weights = sums_inputs(3, torch.float32)
    torch.library.opcheck(losses_of_sums_forward, (sums, weights, 1e-5))
    torch.library.opcheck(losses_of_sums_backward, (torch.randn(5), sums.detach(), weights, 1e-5))
    assert losses_of_sums(sums.to("meta"), weights.to("meta"), 1e-5).shape == (5,)
    compiled = torch.compile(losses_of_sums, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(sums, weights, 1e-5), losses_of_sums(sums, weights, 1e-5))
