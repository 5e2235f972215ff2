"""The directional scan's Triton kernels, and the sums after a backward scan, run in Python by Triton's interpreter.

test_triton_interpreter.py collects them in a process: the interpreter has to be chosen before Triton is imported.
"""

import pytest
import torch

from mambaseg.kernels.directional_scan import directional_scan, plain, triton_launch
from mambaseg.kernels.directional_scan.projection import Layout
from mambaseg.kernels.selective_scan import triton_launch as scan_launch
from mambaseg.kernels.selective_scan.triton_shares import Shares
from tests.kernels.scan_cases import (
    assert_close,
    compare_directional_scans,
    directional_inputs,
    gradients,
)

ORDER = torch.tensor([[3, 1, 0, 2, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]], dtype=torch.int32)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize(("rank", "d_state"), [(3, 2), (5, 4), (8, 1), (12, 1), (12, 5), (18, 4)])
def test_float32(rank, d_state):
    """Step sizes are made in both passes, in the forward pass alone, or in neither, as the rank grows."""
    inputs = directional_inputs(2, 6, 3, 4, d_state, rank, dtype=torch.float32)
    compare_directional_scans(inputs, 1e-5, 1e-4, map_height=3)


def test_orders():
    inputs = directional_inputs(1, 7, 3, 2, 2, 6, dtype=torch.float32)
    compare_directional_scans(inputs, 1e-5, 1e-4, order=ORDER)


@pytest.mark.parametrize("rank", [6, 10])
def test_bfloat16(rank):
    inputs = directional_inputs(1, 7, 3, 2, 4, rank, dtype=torch.bfloat16)
    compare_directional_scans(inputs, 2e-2, 5e-2, order=ORDER)


def test_autocast_projects_float32_pixels_in_half():
    inputs = directional_inputs(1, 7, 3, 2, 4, 10, dtype=torch.float32)
    expected = directional_scan(**inputs, order=ORDER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = directional_scan(**inputs, order=ORDER)
        grads = gradients(out, inputs)
    assert_close("out", out, expected, 2e-2)
    for name, truth in gradients(expected, inputs).items():
        assert_close(f"d{name}", grads[name], truth, 5e-2)


@pytest.mark.parametrize("joint", [0, 1 << 10])
def test_both_products_of_the_step_sizes_weights(joint, monkeypatch):
    monkeypatch.setattr(triton_launch, "JOINT_COLUMNS", joint)
    inputs = directional_inputs(2, 7, 5, 2, 2, 11, dtype=torch.float32)
    compare_directional_scans(inputs, 1e-5, 1e-4, order=ORDER)


def test_same_call_twice_is_bit_equal():
    inputs = directional_inputs(2, 7, 3, 2, 3, 9, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = directional_scan(**inputs, order=ORDER)
        runs.append([out, *gradients(out, inputs).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize(("rank", "d_state", "channels"), [(3, 1, 5), (6, 5, 70), (24, 4, 33)])
def test_packing(rank, d_state, channels):
    layout = Layout(3, rank, d_state)
    inputs = directional_inputs(1, 1, channels, 3, d_state, rank, dtype=torch.float32)
    parameters = [inputs[name].detach() for name in ("x_proj_weight", "dt_projs_weight", "A_logs")]
    packed = triton_launch.pack_parameters(*parameters, layout, torch.float32)
    for result, truth in zip(packed, plain.pack_parameters(*parameters, layout, torch.float32), strict=True):
        torch.testing.assert_close(result, truth)
    unpacked, _ = triton_launch._unpack(packed[0], None, layout)
    assert torch.equal(unpacked, parameters[0])


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize(("blocks", "rank", "d_state"), [(1, 0, 2), (5, 3, 4), (40, 0, 3), (150, 6, 1)])
@pytest.mark.parametrize("spare", [0, 2])
def test_sums_over_shares(blocks, rank, d_state, spare):
    """Shares are added one after another, several at a time, or both; columns that nobody has become zero."""
    generator = torch.Generator().manual_seed(blocks)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    whole = draw(2, 5, 3, 7)
    filled = 1 << (rank - 1).bit_length() if rank else 0
    shares = Shares(
        whole, whole, draw(blocks, 2, 5, 3, 2 * d_state + rank), draw(2, blocks, 3, 7, d_state),
        draw(2, blocks, 3, 7), draw(2, blocks, 3, 7), draw(2, blocks, 3, 7, filled), rank,
    )  # fmt: skip
    grad_B, grad_C = torch.empty(2, 2, 5, 3, d_state + spare)
    grad_coefficients = torch.empty(2, 5, 3, rank + spare) if rank else None
    shares.sum_rows(grad_B, grad_C, grad_coefficients)
    truth = torch.split(shares.rows.sum(0), [d_state, d_state, rank], dim=-1)
    for grad, part in zip((grad_B, grad_C, grad_coefficients), truth, strict=True):
        if grad is not None:
            torch.testing.assert_close(grad, torch.nn.functional.pad(part, (0, spare)), rtol=1e-4, atol=1e-4)
    factor = draw(3, 7, d_state)
    sums = shares.sum_parameters(torch.float32, rank, factor)
    expected = [share.sum((0, 1)) for share in (shares.A, shares.D, shares.bias, shares.weight)]
    expected = [expected[0] * factor, *expected[1:3], expected[3][..., :rank] if rank else torch.empty(0)]
    for measured, total in zip(sums, expected, strict=True):
        torch.testing.assert_close(measured, total, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("directions", [1, 4])
def test_sum_over_directions(directions):
    scans = torch.randn(2, 17, directions, 70, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(triton_launch._sum_directions(scans), scans.sum(2))


def test_kernels_serve_the_operator(monkeypatch):
    """The cases above would pass on the plain path too."""
    calls = []
    for module, name in ((triton_launch, "pack_parameters"), (triton_launch, "backward"), (scan_launch, "forward")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, run=function, name=name: calls.append(name) or run(*given))
    inputs = directional_inputs(1, 7, 3, 2, 2, 3, dtype=torch.float32)
    gradients(directional_scan(**inputs, order=ORDER), inputs)
    assert calls == ["pack_parameters", "forward", "backward"]
