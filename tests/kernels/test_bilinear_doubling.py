"""Bilinear doubling: values and every gradient against torch's interpolation, and as torch operators."""

import pytest
import torch
from torch.nn import functional as F

from mambaseg.kernels.bilinear_doubling import bilinear_doubling, bilinear_doubling_reference
from mambaseg.kernels.bilinear_doubling.op import bilinear_doubling_backward, bilinear_doubling_forward
from tests.kernels.block_cases import doubling_inputs
from tests.kernels.scan_cases import assert_close, gradients, in_float64

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 7), (14, 9)]


def _interpolate(x, skip=None):
    doubled = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=True)
    doubled = doubled.permute(0, 2, 3, 1)
    return doubled if skip is None else torch.cat((skip, doubled), -1)


def _compare(operator, inputs, tolerance):
    truth_inputs = in_float64(inputs)
    out, truth = operator(**inputs), _interpolate(**truth_inputs)
    assert out.is_contiguous()
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "skip_channels"), [(1, 0), (3, 2), (16, 16)])
@pytest.mark.parametrize("operator", [bilinear_doubling, bilinear_doubling_reference])
def test_is_torchs_interpolation(operator, size, channels, skip_channels):
    _compare(operator, doubling_inputs(2, *size, channels, skip_channels), 1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize("operator", [bilinear_doubling, bilinear_doubling_reference])
def test_types(operator, dtype, tolerance):
    inputs = doubling_inputs(2, 9, 7, 33, 5, dtype=dtype)
    assert operator(**inputs).dtype == dtype
    _compare(operator, inputs, tolerance)


@pytest.mark.parametrize("operator", [bilinear_doubling, bilinear_doubling_reference])
def test_a_wider_skip_decides_the_type(operator):
    inputs = doubling_inputs(2, 3, 4, 5, 6, dtype=torch.float32)
    inputs["x"] = inputs["x"].detach().bfloat16().requires_grad_()
    assert operator(**inputs).dtype == torch.float32
    _compare(operator, inputs, 4e-3)


def test_any_strides():
    inputs = doubling_inputs(2, 4, 5, 3, 2)
    for name in ("x", "skip"):
        inputs[name] = inputs[name].detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    _compare(bilinear_doubling, inputs, 1e-13)


@pytest.mark.parametrize("name", ["x", "skip"])
def test_one_gradient_alone(name):
    inputs = doubling_inputs(2, 4, 5, 3, 2)
    expected = gradients(_interpolate(**inputs), inputs)[name]
    alone = {key: value.detach().requires_grad_(key == name) for key, value in inputs.items()}
    grads = gradients(bilinear_doubling(**alone), {name: alone[name]})
    assert_close(f"d{name}", grads[name], expected, 1e-13)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 112])
def test_each_position_goes_into_at_most_four(size):
    """What the backward pass of the kernels sums over: positions 2k - 1 to 2k + 2."""
    columns = torch.eye(size, dtype=torch.float64).view(size, 1, size, 1)
    for k, row in enumerate(_interpolate(columns)[:, 0, :, 0]):
        met = row.nonzero().flatten()
        assert met.min() >= max(2 * k - 1, 0)
        assert met.max() <= min(2 * k + 2, 2 * size - 1)


def test_forced_reference_is_the_definition(monkeypatch):
    inputs = doubling_inputs(2, 4, 5, 3, 2)
    expected = bilinear_doubling_reference(**inputs)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(bilinear_doubling(**inputs), expected)


@pytest.mark.parametrize(
    ("x", "skip"),
    [
        ((2, 5), None),
        ((2, 0, 4, 3), None),
        ((2, 4, 5, 3), (2, 4, 5, 3)),
        ((2, 4, 5, 3), (8, 10, 3)),
        ((2, 4, 5, 3), (2, 8, 10, 0)),
    ],
)
def test_wrong_shapes_are_named(x, skip):
    with pytest.raises(ValueError, match="x \\(B, H, W, C\\)" if skip is None else "skip has shape"):
        bilinear_doubling(torch.zeros(x), None if skip is None else torch.zeros(skip))


@pytest.mark.parametrize("skip_channels", [0, 2])
def test_gradcheck(skip_channels):
    tensors = doubling_inputs(2, 3, 2, 2, skip_channels).values()
    assert torch.autograd.gradcheck(bilinear_doubling, tuple(tensors))


@pytest.mark.parametrize("skip_channels", [0, 2])
def test_opcheck(skip_channels):
    inputs = doubling_inputs(2, 3, 4, 3, skip_channels, dtype=torch.float32)
    torch.library.opcheck(bilinear_doubling_forward, (inputs["x"], inputs.get("skip")))
    torch.library.opcheck(bilinear_doubling_backward, (torch.randn(2, 6, 8, 7)[..., skip_channels:],))


def test_meta_tensors_give_shapes():
    inputs = doubling_inputs(2, 4, 5, 3, 2, device="meta")
    assert bilinear_doubling(**inputs).shape == (2, 8, 10, 5)


def test_compiles_without_graph_breaks():
    inputs = doubling_inputs(2, 4, 5, 3, 2)
    _compare(torch.compile(bilinear_doubling, fullgraph=True, backend="aot_eager"), inputs, 1e-13)


class _Doubling(torch.nn.Module):
    def forward(self, x, skip):
        return bilinear_doubling(x, skip)


def test_exports_as_one_node():
    arguments = tuple(doubling_inputs(2, 4, 5, 3, 2, requires_grad=False).values())
    program = torch.export.export(_Doubling(), arguments)
    assert sum("bilinear_doubling" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(*arguments), _Doubling()(*arguments))


def test_autocast_keeps_the_input_type():
    inputs = doubling_inputs(2, 4, 5, 3, 2, dtype=torch.bfloat16)
    expected = bilinear_doubling(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bilinear_doubling(**inputs), expected)


def test_same_call_twice_is_bit_equal():
    runs = []
    for _ in range(2):
        inputs = doubling_inputs(2, 9, 13, 16, 16, dtype=torch.float32)
        out = bilinear_doubling(**inputs)
        runs.append([out, *gradients(out, inputs).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("channels", [1, 3, 16, 40, 64, 100, 256, 5000])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_hold_one_vector_a_lane(channels, itemsize):
    launch = pytest.importorskip("mambaseg.kernels.bilinear_doubling.triton_launch")
    tile = launch.choose_tile(channels, itemsize)
    values = tile.rows * tile.columns * tile.channels
    assert values * itemsize == launch.WARPS * launch.WARP * launch.VECTOR_BYTES
    assert tile.columns in (tile.rows, 2 * tile.rows)
    assert (tile.blocks - 1) * tile.channels < channels <= tile.blocks * tile.channels
