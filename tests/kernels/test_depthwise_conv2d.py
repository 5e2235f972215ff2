"""The depthwise convolution of maps: values and every gradient against its definition, and as torch operators."""

import pytest
import torch
from torch.nn import functional as F

from mambaseg.kernels.depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_reference
from mambaseg.kernels.depthwise_conv2d.op import depthwise_conv2d_backward, depthwise_conv2d_forward
from tests.kernels.block_cases import map_convolution_inputs
from tests.kernels.scan_cases import assert_close, gradients, in_float64


def _compare(inputs, tolerance, activation="silu"):
    truth_inputs = in_float64(inputs)
    out, truth = (
        depthwise_conv2d(**inputs, activation=activation),
        depthwise_conv2d_reference(**truth_inputs, activation=activation),
    )
    assert out.dtype == inputs["x"].dtype
    assert out.is_contiguous()
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], tolerance)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_definition_is_torchs_padded_convolution(activation, side):
    inputs = map_convolution_inputs(2, 5, 4, 3, side)
    out = depthwise_conv2d_reference(**inputs, activation=activation)
    maps = inputs["x"].permute(0, 3, 1, 2)
    expected = F.conv2d(maps, inputs["weight"].unsqueeze(1), inputs["bias"], padding=side // 2, groups=3)
    torch.testing.assert_close(out.permute(0, 3, 1, 2), F.silu(expected) if activation else expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (6, 1), (5, 9)])
@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_sizes_and_options(height, width, side, bias, activation):
    _compare(map_convolution_inputs(2, height, width, 3, side, bias=bias), 1e-12, activation)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_types(dtype, tolerance):
    _compare(map_convolution_inputs(2, 9, 7, 33, dtype=dtype), tolerance)


def test_any_strides():
    inputs = map_convolution_inputs(2, 4, 5, 3)
    inputs["x"] = inputs["x"].detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    _compare(inputs, 1e-12)


def test_forced_reference_is_the_definition(monkeypatch):
    inputs = map_convolution_inputs(2, 4, 5, 3)
    expected = depthwise_conv2d_reference(**inputs, activation="silu")
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(depthwise_conv2d(**inputs, activation="silu"), expected)


@pytest.mark.parametrize(
    ("name", "shape"), [("weight", (3, 3)), ("weight", (3, 2, 2)), ("weight", (4, 3, 3)), ("bias", (4,)), ("x", (2, 5))]
)
def test_wrong_shapes_are_named(name, shape):
    inputs = map_convolution_inputs(2, 4, 5, 3, requires_grad=False) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match="x \\(B, H, W, D\\)" if name == "x" else f"{name} has shape"):
        depthwise_conv2d(**inputs)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'relu' is not"):
        depthwise_conv2d(**map_convolution_inputs(1, 2, 2, 1), activation="relu")


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(silu, bias):
    tensors = [value for value in map_convolution_inputs(2, 3, 2, 2, bias=bias).values() if value is not None]
    missing = () if bias else (None,)
    assert torch.autograd.gradcheck(lambda *given: depthwise_conv2d_forward(*given, *missing, silu), tensors)


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias):
    tensors = list(map_convolution_inputs(2, 3, 4, 3, dtype=torch.float32, bias=bias).values())
    torch.library.opcheck(depthwise_conv2d_forward, (*tensors, True))
    plain = [None if tensor is None else tensor.detach() for tensor in tensors]
    torch.library.opcheck(depthwise_conv2d_backward, (torch.randn(2, 3, 4, 3), *plain, True))


def test_meta_tensors_give_shapes():
    inputs = map_convolution_inputs(2, 4, 5, 3, device="meta")
    assert depthwise_conv2d(**inputs, activation="silu").shape == inputs["x"].shape


def test_compiles_without_graph_breaks():
    inputs = map_convolution_inputs(2, 4, 5, 3)

    def convolve(**arguments):
        return depthwise_conv2d(**arguments, activation="silu")

    out = torch.compile(convolve, fullgraph=True, backend="aot_eager")(**inputs)
    expected = convolve(**inputs)
    assert_close("out", out, expected, 1e-12)
    truth = gradients(expected, inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, truth[name], 1e-10)


class _Convolution(torch.nn.Module):
    def forward(self, x, weight, bias):
        return depthwise_conv2d(x, weight, bias, activation="silu")


def test_exports_as_one_node():
    arguments = tuple(map_convolution_inputs(2, 4, 5, 3, requires_grad=False).values())
    program = torch.export.export(_Convolution(), arguments)
    assert sum("depthwise_conv2d" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(*arguments), _Convolution()(*arguments))


def test_autocast_keeps_the_input_type():
    inputs = map_convolution_inputs(2, 4, 5, 3, dtype=torch.float32)
    expected = depthwise_conv2d(**inputs, activation="silu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(depthwise_conv2d(**inputs, activation="silu"), expected)


@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1), (16, 56, 56, 192), (24, 7, 7, 1536), (1, 3, 9000, 8), (300, 500, 5, 70)]
)
@pytest.mark.parametrize("fewest", [8, 16])
def test_programs_cover_the_map_once(size, fewest):
    launch = pytest.importorskip("mambaseg.kernels.depthwise_conv2d.triton_launch")
    batch, height, width, channels = size
    grid = launch.divide(size, fewest)
    assert grid.segment_columns % launch.STEPS == 0
    assert fewest <= grid.segment_columns <= launch.MOST_COLUMNS
    assert (grid.segments - 1) * grid.segment_columns < width <= grid.segments * grid.segment_columns
    assert (grid.strips - 1) * launch.ROWS < height <= grid.strips * launch.ROWS
    blocks = -(-channels // launch.BLOCK)
    assert grid.programs == batch * grid.strips * grid.segments * blocks
