"""Batch norm and LeakyReLU on a GPU: run with ``pytest -m gpu tests/kernels -n 0``."""

import pytest
import torch

from mambaseg.kernels.batch_norm_act import batch_norm_act, batch_norm_act_reference
from mambaseg.kernels.batch_norm_act.op import batch_norm_act_backward, batch_norm_act_forward, batch_norm_statistics
from tests.kernels.block_cases import (
    batch_norm_inputs,
    compare_batch_norm,
    compare_shift_in_half,
    running_statistics,
)
from tests.kernels.scan_cases import PRECISION, assert_close, gradients, in_float64

pytestmark = pytest.mark.gpu

LEVELS = [(200704, 16), (50176, 32), (12544, 64), (3136, 128), (784, 256)]
ODD = [(100003, 16), (997, 24), (333, 100), (2000, 512), (4097, 1), (5, 3), (600, 9000)]


@pytest.mark.parametrize(("rows", "channels"), LEVELS + ODD)
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.usefixtures("_poisoned")
def test_shapes_and_types(rows, channels, dtype, slope):
    compare_batch_norm(batch_norm_inputs(rows, channels, dtype, "cuda"), *PRECISION[dtype], slope)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shift_is_rounded_as_the_rows_would_be(dtype):
    compare_shift_in_half(dtype, "cuda")


def test_accuracy_at_a_large_mean():
    """Squares summed around 0 would leave a variance that errs by more than a percent."""
    inputs = batch_norm_inputs(100003, 16, torch.float32, "cuda", mean=1e3)
    # Without a kink, which the least difference carries some of so many values across.
    compare_batch_norm(inputs, 1e-4, 1e-2, slope=1.0)


def test_same_call_twice_is_bit_equal():
    inputs = batch_norm_inputs(100003, 16, torch.float32, "cuda")
    runs = []
    for _ in range(2):
        running = running_statistics(16, torch.float32, "cuda")
        out = batch_norm_act(**inputs, slope=0.01, running=running)
        runs.append([out, *gradients(out, inputs).values(), running.mean, running.variance])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_replays_of_a_recorded_graph_are_calls():
    inputs = batch_norm_inputs(5000, 16, torch.bfloat16, "cuda")
    running, expected = (running_statistics(16, torch.float32, "cuda") for _ in range(2))

    def run(statistics):
        out = batch_norm_act(**inputs, slope=0.01, running=statistics)
        return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out))]

    # What differentiates ``inputs`` remembers its stream as long as a result lives, and may not be the default one.
    with torch.cuda.stream(torch.cuda.Stream()):
        truth = [run(expected) for _ in range(3)][-1]
        run(running)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(running)
    for _ in range(2):
        graph.replay()
    assert all(torch.equal(measured, known) for measured, known in zip(results, truth, strict=True))
    assert torch.equal(running.mean, expected.mean)
    assert torch.equal(running.variance, expected.variance)
    assert running.batches == expected.batches == 6


def test_beyond_32_bits():
    """The same rows again and again have the statistics, and mean gradients, of those rows."""
    if torch.cuda.mem_get_info()[0] < 32 * 2**30:
        pytest.skip("needs 32 GiB of free GPU memory")
    channels, times = 64, 2**15 + 3
    some = batch_norm_inputs(1024, channels, torch.bfloat16, "cuda")
    inputs = some | {"x": some["x"].detach().repeat(times, 1).requires_grad_()}
    out = batch_norm_act(**inputs, slope=0.01)
    exact = in_float64(some)
    truth = batch_norm_act_reference(**exact, slope=0.01)
    assert_close("out", out[-1024:], truth, 1e-2)
    upstream = torch.randn(1024, channels, device="cuda", dtype=torch.bfloat16)
    grads = torch.autograd.grad(out, list(inputs.values()), upstream.repeat(times, 1))
    expected = torch.autograd.grad(truth, list(exact.values()), upstream.double().cpu())
    assert_close("dx", grads[0][-1024:], expected[0], 1e-2)
    for name, grad, known in zip(("dweight", "dbias"), grads[1:], expected[1:], strict=True):
        assert_close(name, grad / times, known, 1e-3)


def test_new_lengths_compile_nothing():
    from mambaseg.kernels.batch_norm_act import triton_kernels

    kernels = (
        triton_kernels.statistics_kernel,
        triton_kernels.merge_statistics_kernel,
        triton_kernels.batch_norm_act_fwd_kernel,
        triton_kernels.gradient_sums_kernel,
        triton_kernels.batch_norm_act_bwd_kernel,
    )
    running = running_statistics(24, torch.float32, "cuda")

    def run(rows):
        inputs = batch_norm_inputs(rows, 24, torch.float32, "cuda")
        gradients(batch_norm_act(**inputs, slope=0.01, running=running), inputs)
        return [sum(len(cache[0]) for cache in kernel.device_caches.values()) for kernel in kernels]

    compiled = run(100)
    assert all(run(rows) == compiled for rows in (2, 16, 17, 49, 1000, 256000, 1000003))


def test_opcheck():
    x, weight, bias = batch_norm_inputs(20, 6, torch.float32, "cuda").values()
    running = running_statistics(6, torch.float32, "cuda")
    rows, mean, rstd = x.detach(), torch.randn(6, device="cuda"), torch.rand(6, device="cuda")
    buffers = (running.mean, running.variance, running.batches, running.shift)
    torch.library.opcheck(batch_norm_statistics, (rows, *buffers, 0.1, 1e-5))
    torch.library.opcheck(batch_norm_act_forward, (x, mean, rstd, weight, bias, 0.01))
    parameters = (weight.detach(), bias.detach())
    torch.library.opcheck(batch_norm_act_backward, (torch.randn_like(rows), rows, mean, rstd, *parameters, 0.01))


def test_float64_is_refused_with_the_fix():
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        batch_norm_act(**batch_norm_inputs(20, 6, device="cuda"))
