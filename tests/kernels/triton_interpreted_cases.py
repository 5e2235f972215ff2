"""The Triton kernels run in Python by Triton's interpreter: test_triton_interpreter.py collects them in a process.

The interpreter has to be chosen before Triton is imported, and serves CPU tensors.
"""

import pytest
import torch

from mambaseg.kernels import selective_scan, ss2d, ss3d
from mambaseg.kernels.selective_scan import (
    grouped_scan,
    grouped_scan_reference,
    op,
    selective_scan_reference,
    triton_launch,
)
from mambaseg.kernels.selective_scan.triton_launch import Plan
from mambaseg.kernels.ss2d import ss2d_reference
from mambaseg.kernels.ss3d import ss3d_reference
from tests.kernels.scan_cases import (
    assert_close,
    gradients,
    in_float64,
    map_inputs,
    poison_allocations,
    scan_inputs,
    volume_inputs,
)


def _compare(inputs, tolerance, gradient_tolerance, softplus=True):
    truth_inputs = in_float64(inputs)
    out, last = selective_scan(**inputs, delta_softplus=softplus, return_last_state=True)
    truth, truth_last = selective_scan_reference(**truth_inputs, delta_softplus=softplus, return_last_state=True)
    assert_close("out", out, truth, tolerance)
    assert_close("last_state", last, truth_last, tolerance)
    expected = gradients(truth, truth_inputs, truth_last)
    for name, grad in gradients(out, inputs, last).items():
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


def _compare_maps(operator, reference, inputs, **options):
    truth_inputs = in_float64(inputs)
    out, truth = operator(**inputs, **options), reference(**truth_inputs, **options)
    assert_close("y", out, truth, 1e-5)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], 1e-4)


@pytest.fixture(autouse=True)
def _count_launches(monkeypatch):
    """Fail a case whose calls were served by anything but the Triton kernels."""
    launches = []
    forward = triton_launch.forward
    monkeypatch.setattr(triton_launch, "forward", lambda *arguments: launches.append(1) or forward(*arguments))
    yield
    assert launches


@pytest.mark.parametrize(
    ("batch", "dim", "length", "d_state", "groups"),
    [(1, 3, 1, 2, 1), (2, 6, 7, 3, 2), (1, 9, 11, 1, None), (1, 5, 35, 2, 1), (1, 33, 3, 16, 1)],
)
def test_float32(batch, dim, length, d_state, groups):
    _compare(scan_inputs(batch, dim, length, d_state, groups, dtype=torch.float32), 1e-5, 1e-4)


def test_without_options():
    inputs = scan_inputs(1, 3, 6, 2, 1, dtype=torch.float32, skip=False, bias=False)
    inputs["delta"] = inputs["delta"].detach().abs().requires_grad_()
    _compare(inputs, 1e-5, 1e-4, softplus=False)


def test_small_step_sizes_keep_relative_accuracy():
    inputs = scan_inputs(1, 3, 6, 2, 1, dtype=torch.float32, skip=False)
    inputs["delta_bias"] = (inputs["delta_bias"].detach() - 12).requires_grad_()
    _compare(inputs, 1e-5, 1e-4)


def test_bfloat16():
    _compare(scan_inputs(1, 4, 9, 2, 1, dtype=torch.bfloat16), 1e-2, 1e-2)


@pytest.mark.parametrize(("height", "width"), [(1, 4), (3, 2), (5, 7)])
def test_four_directions(height, width):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    length = height * width
    inputs = {"u": draw(1, length, 1, 3), "delta": draw(1, length, 4, 3), "A": (-draw(4, 3, 2).abs()).detach()}
    inputs |= {"B": draw(1, length, 4, 2), "C": draw(1, length, 4, 2)}

    def scan(scanner, tensors):
        tensors = tensors | {"u": tensors["u"].expand(-1, -1, 4, -1)}
        return scanner(**tensors, D=None, delta_bias=None, delta_softplus=True, map_height=height)

    inputs["A"].requires_grad_()
    out, last = scan(grouped_scan, inputs)
    truth, truth_last = scan(grouped_scan_reference, inputs)
    assert_close("out", out, truth, 1e-5)
    expected = gradients(truth, inputs, truth_last)
    for name, grad in gradients(out, inputs, last).items():
        assert_close(f"d{name}", grad, expected[name], 1e-4)


@pytest.mark.parametrize(
    ("plan", "chunk", "d_state"),
    [
        (Plan(1, 1, 2, 3), 4, 4),
        (Plan(2, 2, 2, 2), 2, 3),
        (Plan(4, 1, 4, 2), 8, 4),
        (Plan(4, 2, 2, 1), 8, 4),
        (Plan(8, 4, 4, 1), 4, 32),
        (Plan(2, 2, 4, 1), 8, 5),
    ],
)
def test_plans(plan, chunk, d_state, monkeypatch):
    """Segments of time, lanes that share a channel, and several sums a lane give what one lane in one walk gives."""
    monkeypatch.setattr(triton_launch, "choose_plan", lambda *_, **__: plan)
    monkeypatch.setattr(op, "CPU_CHUNK", chunk)
    _compare(scan_inputs(1, 5, 19 if d_state < 32 else 3, d_state, 1, dtype=torch.float32), 1e-5, 1e-4)


@pytest.mark.parametrize(
    ("plan", "size"),
    [
        (None, (3, 5)),
        (Plan(2, 2, 4, 1), (3, 5)),
        (Plan(4, 1, 2, 2), (3, 5)),
        (Plan(2, 2, 2, 1), (4, 6)),
        (Plan(2, 1, 4, 3), (8, 4)),
        (Plan(4, 2, 2, 2), (2, 10)),
    ],
)
def test_ss2d(plan, size, monkeypatch):
    """The step size comes from coefficients inside the kernels; lines of the last three maps are whole blocks."""
    if plan is not None:
        monkeypatch.setattr(triton_launch, "choose_plan", lambda *_, **__: plan)
        monkeypatch.setattr(op, "CPU_CHUNK", 8)
    inputs = map_inputs(1, 5, *size, 4, rank=3, dtype=torch.float32)
    _compare_maps(ss2d, ss2d_reference, inputs)


@pytest.mark.parametrize("d_state", [8, 1])
def test_ss2d_with_step_sizes_in_memory(d_state, monkeypatch):
    """What a GPU does with larger ranks: backward, and with few states forward too."""
    monkeypatch.setattr(triton_launch, "ROOMY_RANK", 2)
    inputs = map_inputs(2, 5, 3, 4, d_state, rank=3, dtype=torch.float32)
    _compare_maps(ss2d, ss2d_reference, inputs)


def test_ss3d():
    """The kernels read a table of positions."""
    inputs = volume_inputs(1, 3, (2, 3, 2), 2, directions=3, dtype=torch.float32)
    directions = ("dhw", "-wdh", "hwd")
    _compare_maps(ss3d, ss3d_reference, inputs, directions=directions)


def test_every_output_is_written(monkeypatch):
    poison_allocations(monkeypatch)
    _compare(scan_inputs(1, 9, 7, 3, 1, dtype=torch.float32), 1e-5, 1e-4)


def test_same_call_twice_is_bit_equal():
    inputs = scan_inputs(1, 4, 9, 2, 2, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
        runs.append([out, last, *gradients(out, inputs, last).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
