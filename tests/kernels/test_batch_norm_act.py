"""Batch norm and LeakyReLU: values and gradients against the definition and torch's own, and as torch operators."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mambaseg.kernels.batch_norm_act import RunningStatistics, batch_norm_act, batch_norm_act_reference
from mambaseg.kernels.batch_norm_act.op import batch_norm_act_backward, batch_norm_act_forward, batch_norm_statistics
from tests.kernels.block_cases import batch_norm_inputs, compare_batch_norm, compare_shift_in_half, running_statistics
from tests.kernels.scan_cases import gradients

SIZES = [(2, 1), (2, 5), (37, 3), (100, 24), (12, 33)]


def running_of(norm):
    return RunningStatistics(norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum)


@pytest.mark.parametrize("operator", [batch_norm_act, batch_norm_act_reference])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
def test_values_gradients_and_running_statistics_are_those_of_torch(operator, slope):
    norm, own = (nn.BatchNorm1d(6, eps=1e-3, momentum=0.2, dtype=torch.float64) for _ in range(2))
    for step in range(3):
        inputs = batch_norm_inputs(20 + step, 6)
        out = operator(**inputs, eps=1e-3, slope=slope, running=running_of(own))
        F.batch_norm(inputs["x"].detach(), norm.running_mean, norm.running_var, training=True, momentum=0.2)
        norm.num_batches_tracked.add_(1)
        normalised = F.batch_norm(inputs["x"], None, None, inputs["weight"], inputs["bias"], training=True, eps=1e-3)
        expected = F.leaky_relu(normalised, slope)
        torch.testing.assert_close(out, expected)
        truth = gradients(expected, inputs)
        for name, grad in gradients(out, inputs).items():
            torch.testing.assert_close(grad, truth[name])
        for (name, buffer), reference in zip(own.named_buffers(), norm.buffers(), strict=True):
            torch.testing.assert_close(buffer, reference, msg=name)


@pytest.mark.parametrize(("rows", "channels"), SIZES)
def test_sizes(rows, channels):
    # Of two rows, normalised to -1 and 1, the gradient nearly vanishes.
    compare_batch_norm(batch_norm_inputs(rows, channels), 1e-12, 1e-10 if rows > 2 else 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_types(dtype, tolerance):
    compare_batch_norm(batch_norm_inputs(100, 24, dtype=dtype), tolerance, tolerance)


def test_any_strides():
    inputs = batch_norm_inputs(20, 6)
    inputs["x"] = inputs["x"].detach().t().contiguous().t().requires_grad_()
    compare_batch_norm(inputs, 1e-12, 1e-10)


def test_accuracy_at_a_large_mean():
    compare_batch_norm(batch_norm_inputs(500, 8, dtype=torch.float32, mean=1e4), 1e-3, 1e-3)


def test_shift_moves_the_running_mean_alone():
    inputs, shift = batch_norm_inputs(20, 6), torch.randn(6, dtype=torch.float64)
    plain, shifted, truth = (nn.BatchNorm1d(6, dtype=torch.float64) for _ in range(3))
    out = batch_norm_act(**inputs, running=running_of(plain))
    with_shift = RunningStatistics(shifted.running_mean, shifted.running_var, shifted.num_batches_tracked, 0.1, shift)
    assert torch.equal(batch_norm_act(**inputs, running=with_shift), out)
    truth(inputs["x"].detach() + shift)
    for buffer, reference in zip(shifted.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(buffer, reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shift_is_rounded_as_the_rows_would_be(dtype):
    compare_shift_in_half(dtype)


def test_forced_reference_is_the_definition(monkeypatch):
    inputs = batch_norm_inputs(20, 6)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(batch_norm_act(**inputs), batch_norm_act_reference(**inputs))


def test_same_call_twice_is_bit_equal():
    inputs = batch_norm_inputs(700, 24, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = batch_norm_act(**inputs, slope=0.01)
        runs.append([out, *gradients(out, inputs).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize(("name", "shape"), [("x", (2, 3, 6)), ("x", (0, 6)), ("weight", (5,)), ("bias", (6, 1))])
def test_wrong_shapes_are_refused(name, shape):
    inputs = batch_norm_inputs(20, 6, requires_grad=False) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"rows x \(M, C\)"):
        batch_norm_act(**inputs)


def test_one_row_is_refused_as_by_torch():
    inputs = batch_norm_inputs(1, 6)
    for refusing in (lambda: batch_norm_act(**inputs), lambda: nn.BatchNorm1d(6)(inputs["x"])):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            refusing()


@pytest.mark.parametrize(("rows", "channels"), SIZES[2:])
def test_gradcheck(rows, channels):
    inputs = batch_norm_inputs(rows, channels)
    assert torch.autograd.gradcheck(lambda *given: batch_norm_act(*given, slope=0.3), tuple(inputs.values()))


def test_opcheck():
    x, weight, bias = batch_norm_inputs(20, 6, dtype=torch.float32).values()
    running = running_statistics(6, torch.float32)
    rows, mean, rstd = x.detach(), torch.randn(6), torch.rand(6)
    buffers = (running.mean, running.variance, running.batches, running.shift)
    torch.library.opcheck(batch_norm_statistics, (rows, *buffers, 0.1, 1e-5))
    torch.library.opcheck(batch_norm_statistics, (rows, None, None, None, None, 0.1, 1e-5))
    torch.library.opcheck(batch_norm_act_forward, (x, mean, rstd, weight, bias, 0.01))
    parameters = (weight.detach(), bias.detach())
    torch.library.opcheck(batch_norm_act_backward, (torch.randn(20, 6), rows, mean, rstd, *parameters, 0.01))


def test_meta_tensors_give_shapes():
    assert batch_norm_act(**batch_norm_inputs(20, 6, device="meta")).shape == (20, 6)


def test_compiles_without_graph_breaks():
    inputs = batch_norm_inputs(20, 6)
    runs = []
    for operator in (batch_norm_act, torch.compile(batch_norm_act, fullgraph=True, backend="aot_eager")):
        running = running_statistics(6)
        out = operator(**inputs, slope=0.01, running=running)
        runs.append([out, *gradients(out, inputs).values(), running.mean, running.variance, running.batches])
    for own, compiled in zip(*runs, strict=True):
        torch.testing.assert_close(compiled, own)


def test_exports_as_two_nodes():
    class Norm(nn.Module):
        def forward(self, x, weight, bias):
            return batch_norm_act(x, weight, bias, slope=0.01)

    arguments = tuple(batch_norm_inputs(20, 6, requires_grad=False).values())
    program = torch.export.export(Norm(), arguments)
    assert sum("mambaseg" in str(node.target) for node in program.graph.nodes) == 2
    torch.testing.assert_close(program.module()(*arguments), Norm()(*arguments))


def test_autocast_keeps_float32():
    inputs = batch_norm_inputs(20, 6, dtype=torch.float32)
    expected = batch_norm_act(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(batch_norm_act(**inputs), expected)


@pytest.mark.parametrize("rows", [2, 100, 3136, 802816, 2**31 + 5])
@pytest.mark.parametrize("channels", [1, 16, 24, 64, 100, 512, 70000])
@pytest.mark.parametrize("values", [8, 16])
def test_programs_take_every_row_and_are_not_too_many(rows, channels, values):
    launch = pytest.importorskip("mambaseg.kernels.batch_norm_act.triton_launch")
    plan = launch.choose_plan(rows, channels, values)
    assert plan.channels * plan.channel_programs >= channels
    taken = plan.rows * plan.row_blocks
    assert taken * (plan.row_programs - 1) < rows <= taken * plan.row_programs
    assert plan.row_programs * plan.channel_programs <= max(launch.MOST_PROGRAMS, plan.channel_programs)
    assert plan.row_programs <= launch.MERGED_SHARES
    few = launch.choose_plan(5, channels, values)
    assert (plan.rows, plan.channels) == (few.rows, few.channels)
    assert plan.rows * plan.channels == launch.WARPS * 32 * values
