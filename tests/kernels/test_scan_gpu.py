"""The Triton kernels on a GPU, at the shapes of Mamba-UNet: run with ``pytest -m gpu tests/kernels -n 0``."""

import pytest
import torch

from mambaseg.kernels import selective_scan, ss2d
from mambaseg.kernels.selective_scan import selective_scan_reference
from mambaseg.kernels.ss2d import ss2d_reference
from tests.kernels.scan_cases import PRECISION, assert_close, gradients, in_float64, map_inputs, scan_inputs

pytestmark = pytest.mark.gpu

STAGES = [(2, 4 * 192, 3136), (2, 4 * 384, 784), (2, 4 * 768, 196), (2, 4 * 1536, 49), (1, 4 * 192, 16384)]


def _compare(inputs, dtype, softplus=True):
    """Compare with the chunked torch path in float64 on the CPU, itself tested against the step loop."""
    tolerance, gradient_tolerance = PRECISION[dtype]
    truth_inputs = in_float64(inputs)
    out, last = selective_scan(**inputs, delta_softplus=softplus, return_last_state=True)
    truth, truth_last = selective_scan(**truth_inputs, delta_softplus=softplus, return_last_state=True)
    assert out.dtype == dtype
    assert last.dtype == torch.float32
    assert_close("out", out, truth, tolerance)
    assert_close("last_state", last, truth_last, tolerance)
    expected = gradients(truth, truth_inputs, truth_last)
    for name, grad in gradients(out, inputs, last).items():
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


@pytest.mark.parametrize(("batch", "dim", "length"), STAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mamba_unet_shapes(batch, dim, length, dtype):
    _compare(scan_inputs(batch, dim, length, 16, 4, dtype=dtype, device="cuda"), dtype)


@pytest.mark.parametrize("length", [1, 7, 49, 63, 64, 65, 100, 1000])
@pytest.mark.parametrize("d_state", [1, 2, 8, 16, 64])
def test_odd_sizes(length, d_state):
    _compare(scan_inputs(3, 35, length, d_state, 5, dtype=torch.float32, device="cuda"), torch.float32)


@pytest.mark.parametrize("options", [{"skip": False}, {"bias": False}, {"gate": True}])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("dtype", list(PRECISION))
def test_options_and_types(options, groups, dtype):
    _compare(scan_inputs(2, 50, 77, 4, groups, dtype=dtype, device="cuda", **options), dtype)


def test_against_the_step_loop_on_the_same_device():
    inputs = scan_inputs(2, 12, 40, 4, 2, dtype=torch.float32, device="cuda")
    truth = selective_scan_reference(**inputs, delta_softplus=True)
    assert_close("out", selective_scan(**inputs, delta_softplus=True), truth, 1e-5)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 20), (7, 7), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d_state", "rank"), [(16, 6), (16, 12), (16, 24), (1, 6), (1, 12)])
@pytest.mark.usefixtures("no_tf32")
def test_ss2d(height, width, dtype, d_state, rank):
    """The kernels make the step sizes of both passes, of the forward pass alone, or of neither, as the rank grows."""
    # A half projection rounds in another order than the truth's; TF32 would hide errors of the scan in float32.
    tolerance, gradient_tolerance = (1e-5, 1e-4) if dtype == torch.float32 else (2e-2, 5e-2)
    inputs = map_inputs(2, 48, height, width, d_state, rank=rank, dtype=dtype, device="cuda")
    truth_inputs = in_float64(inputs)
    out, truth = ss2d(**inputs), ss2d(**truth_inputs)
    assert_close("y", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


def test_ss2d_against_the_definition():
    inputs = map_inputs(1, 8, 6, 10, 4, dtype=torch.float32, device="cuda")
    assert_close("y", ss2d(**inputs), ss2d_reference(**in_float64(inputs)), 1e-5)


def test_same_call_twice_is_bit_equal():
    inputs = scan_inputs(4, 4 * 96, 500, 16, 4, dtype=torch.float32, device="cuda")
    runs = []
    for _ in range(2):
        out, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
        runs.append([out, last, *gradients(out, inputs, last).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_autocast_trains_ss2d():
    inputs = map_inputs(2, 48, 14, 14, 16, dtype=torch.float32, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = ss2d(**inputs)
    assert_close("y", out, ss2d(**inputs), 2e-2)
    assert all(grad.isfinite().all() for grad in gradients(out, inputs).values())


def test_opcheck():
    from mambaseg.kernels.selective_scan.op import selective_scan_forward

    tensors = [torch.randn(2, 6, 4, 3), torch.randn(2, 6, 4, 3), -torch.rand(4, 3, 2)]
    tensors += [torch.randn(2, 6, 4, 2), torch.randn(2, 6, 4, 2), torch.randn(4, 3), torch.randn(4, 3) - 1]
    arguments = [tensor.cuda().requires_grad_() for tensor in tensors]
    torch.library.opcheck(selective_scan_forward, (*arguments, None, None, True, 2, True))


def test_compiles_with_inductor():
    inputs = map_inputs(2, 24, 14, 14, 4, dtype=torch.float32, device="cuda")
    compiled = torch.compile(ss2d, fullgraph=True)(**inputs)
    expected = ss2d(**inputs)
    assert_close("y", compiled, expected, 1e-4)
    truth = gradients(expected, inputs)
    for name, grad in gradients(compiled, inputs).items():
        assert_close(f"d{name}", grad, truth[name], 1e-3)


def test_float64_is_refused_with_the_fix():
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        selective_scan(**scan_inputs(1, 4, 5, 2, 1, device="cuda"))
