"""The fast CPU path against the step loop: values and every gradient."""

import pytest
import torch
from torch import Tensor

from mambaseg.kernels import selective_scan
from mambaseg.kernels.selective_scan import chunked, grouped_scan, grouped_scan_reference, selective_scan_reference
from tests.kernels.scan_cases import assert_close, gradients, in_float64, scan_inputs

OPTIONS = {
    "plain": {"skip": False, "bias": False},
    "skip": {"skip": True, "bias": False},
    "bias": {"skip": False, "bias": True},
    "all": {"skip": True, "bias": True, "gate": True},
}


def _compare(inputs, tolerance, gradient_tolerance, softplus=True):
    """Compare with the reference in float64, so that the error measured is this path's alone."""
    truth_inputs = in_float64(inputs)
    out, last = selective_scan(**inputs, delta_softplus=softplus, return_last_state=True)
    truth, truth_last = selective_scan_reference(**truth_inputs, delta_softplus=softplus, return_last_state=True)
    assert out.dtype == inputs["u"].dtype
    assert_close("out", out, truth, tolerance)
    assert_close("last_state", last, truth_last, tolerance)
    truth_grads = gradients(truth, truth_inputs, truth_last)
    for name, grad in gradients(out, inputs, last).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, truth_grads[name], gradient_tolerance)


@pytest.mark.parametrize("length", [1, 7, 49, 63, 100])
@pytest.mark.parametrize("d_state", [1, 2, 8, 16])
def test_lengths_and_states(length, d_state):
    _compare(scan_inputs(2, 6, length, d_state, groups=2), 1e-10, 1e-10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("softplus", [True, False])
def test_options(options, groups, softplus):
    inputs = scan_inputs(3, 9, 37, 4, groups, **options)
    if not softplus:
        # Without softplus only positive step sizes decay; the bias is drawn around -3.
        inputs["delta"] = (inputs["delta"].detach().abs() + 6).requires_grad_()
    _compare(inputs, 1e-10, 1e-10, softplus)


@pytest.mark.parametrize(("dim", "groups"), [(1, 1), (5, 1), (7, 7), (33, 3)])
def test_odd_channel_counts_in_float32(dim, groups):
    _compare(scan_inputs(2, dim, 100, 16, groups, dtype=torch.float32), 1e-5, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_accumulate_in_float32(dtype):
    # The bound is one rounding of the outputs to the half type; the state itself adds nothing visible.
    _compare(scan_inputs(2, 8, 100, 4, 2, dtype=dtype, gate=True), 4e-3, 6e-3)


def test_batch_cut_into_slices(monkeypatch):
    monkeypatch.setattr(chunked, "STEP_ELEMENTS", 2 * 6 * 4)
    _compare(scan_inputs(5, 6, 40, 4, 2), 1e-10, 1e-10)


def test_long_sequence_stays_accurate_in_float32():
    _compare(scan_inputs(1, 4, 2000, 2, 1, dtype=torch.float32), 1e-5, 1e-4)


def _strided(tensor: Tensor) -> Tensor:
    """Lay the same values out with gaps and the last axis outermost."""
    gapped = torch.stack([tensor.detach(), torch.full_like(tensor, float("nan"))], dim=-1).movedim(-2, 0).contiguous()
    return gapped.movedim(0, -2)[..., 0].requires_grad_()


def test_non_contiguous_inputs():
    inputs = scan_inputs(2, 6, 21, 3, 2, gate=True)
    strided = {name: _strided(value) for name, value in inputs.items()}
    assert not strided["u"].is_contiguous()
    _compare(strided, 1e-10, 1e-10)


def test_unused_last_state_costs_no_gradient():
    inputs = scan_inputs(1, 4, 9, 2, 1)
    out = selective_scan(**inputs, delta_softplus=True)
    expected = gradients(selective_scan_reference(**inputs, delta_softplus=True), inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], 1e-10)


def test_only_the_last_state_used():
    inputs = scan_inputs(1, 4, 9, 2, 1, skip=False)
    _, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    _, truth = selective_scan_reference(**inputs, delta_softplus=True, return_last_state=True)
    (grad,) = torch.autograd.grad(last.sum(), inputs["u"])
    (expected,) = torch.autograd.grad(truth.sum(), inputs["u"])
    assert_close("du", grad, expected, 1e-10)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 7), (8, 8)])
def test_grouped_scan_of_a_map_in_four_directions(height, width):
    sequences = scan_inputs(2, 12, height * width, 3, 4, bias=False, skip=False)
    inputs = {
        "u": sequences["u"].unflatten(1, (4, 3)).permute(0, 3, 1, 2),
        "delta": sequences["delta"].unflatten(1, (4, 3)).permute(0, 3, 1, 2) - 2,
        "A": sequences["A"].unflatten(0, (4, 3)),
        "B": sequences["B"].permute(0, 3, 1, 2),
        "C": sequences["C"].permute(0, 3, 1, 2),
    }
    out, last = grouped_scan(**inputs, delta_softplus=True, map_height=height)
    truth, truth_last = grouped_scan_reference(
        **inputs, D=None, delta_bias=None, delta_softplus=True, map_height=height
    )
    assert_close("out", out, truth, 1e-12)
    expected = gradients(truth, inputs, truth_last)
    for name, grad in gradients(out, inputs, last).items():
        assert_close(f"d{name}", grad, expected[name], 1e-10)


def test_same_call_twice_is_bit_equal():
    inputs = scan_inputs(2, 8, 70, 4, 2, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
        runs.append([out, last, *gradients(out, inputs, last).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_forced_reference_is_the_step_loop(monkeypatch):
    inputs = scan_inputs(2, 4, 11, 3, 2, gate=True)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(
        selective_scan(**inputs, delta_softplus=True), selective_scan_reference(**inputs, delta_softplus=True)
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("delta", (2, 4, 8)), ("A", (5, 3)), ("B", (2, 2, 4, 9)), ("C", (2, 2, 3, 8)), ("D", (5,)), ("z", (1, 4, 9))],
)
def test_wrong_shapes_are_named(name, shape):
    inputs = scan_inputs(2, 4, 9, 3, 2, gate=True) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"{name} has shape"):
        selective_scan(**inputs)


def test_groups_must_divide_channels():
    with pytest.raises(ValueError, match="3 groups must divide dim 4"):
        selective_scan(**scan_inputs(1, 4, 5, 2, 3))
