"""The four-direction scan against a slow composition of its definition."""

import pytest
import torch

from mambaseg.kernels import ss2d
from mambaseg.kernels.ss2d import ss2d_reference
from tests.kernels.scan_cases import assert_close, gradients, in_float64, map_inputs


def _compare(inputs, tolerance, gradient_tolerance):
    truth_inputs = in_float64(inputs)
    out, truth = ss2d(**inputs), ss2d_reference(**truth_inputs)
    assert out.dtype == inputs["x"].dtype
    assert_close("y", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (6, 1), (3, 5), (7, 4), (8, 8)])
@pytest.mark.parametrize("d_state", [1, 4])
def test_float64(height, width, d_state):
    _compare(map_inputs(2, 5, height, width, d_state), 1e-10, 1e-10)


def test_float32():
    _compare(map_inputs(2, 8, 10, 14, 16, dtype=torch.float32), 1e-5, 1e-4)


def test_bfloat16():
    # Every projection rounds to 8 bits of mantissa and the rounded step sizes feed the scan.
    _compare(map_inputs(2, 8, 6, 5, 4, dtype=torch.bfloat16), 2e-2, 5e-2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_layouts_agree(memory_format):
    inputs = map_inputs(2, 8, 4, 6, 4)
    laid_out = inputs | {"x": inputs["x"].detach().contiguous(memory_format=memory_format)}
    assert torch.equal(ss2d(**laid_out), ss2d(**inputs))


def test_autocast_projects_in_half_and_scans_in_float32():
    inputs = map_inputs(2, 8, 6, 6, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ss2d(**inputs)
    assert out.dtype == torch.float32
    assert_close("y", out, ss2d(**inputs), 2e-2)


def test_compiles_and_exports():
    inputs = map_inputs(1, 6, 4, 5, 4)
    expected = ss2d(**inputs)
    compiled = torch.compile(ss2d, fullgraph=True, backend="aot_eager")(**inputs)
    assert_close("y", compiled, expected, 1e-12)
    truth = gradients(expected, inputs)
    for name, grad in gradients(compiled, inputs).items():
        assert_close(f"d{name}", grad, truth[name], 1e-10)


@pytest.mark.parametrize("name", ["x_proj_weight", "dt_projs_bias", "Ds"])
def test_wrong_weight_shapes_are_named(name):
    inputs = map_inputs(1, 6, 4, 5, 4)
    inputs[name] = inputs[name][:-1]
    with pytest.raises(ValueError, match=f"{name} has shape"):
        ss2d(**inputs)
