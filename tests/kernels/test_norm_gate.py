"""Merge, LayerNorm and gate: values and every gradient against the definition, and as torch operators."""

import pytest
import torch
from torch.nn import functional as F

from mambaseg.kernels.norm_gate import (
    layer_norm,
    layer_norm_reference,
    merge_norm_gate,
    merge_norm_gate_reference,
)
from mambaseg.kernels.norm_gate.op import norm_gate_backward, norm_gate_forward
from tests.kernels.block_cases import norm_gate_inputs
from tests.kernels.scan_cases import assert_close, gradients, in_float64


def _compare(inputs, tolerance, gradient_tolerance):
    truth_inputs = in_float64(inputs)
    out, truth = merge_norm_gate(**inputs), merge_norm_gate_reference(**truth_inputs)
    assert out.dtype == inputs["z"].dtype
    assert out.is_contiguous()
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


def test_definition_is_torchs_composition():
    y, z, weight, bias = norm_gate_inputs(2, 7, 4, 12).values()
    expected = F.layer_norm(y.sum(2), (12,), weight, bias, 1e-3) * F.silu(z)
    torch.testing.assert_close(merge_norm_gate_reference(y, z, weight, bias, 1e-3), expected)


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("channels", [2, 5, 33, 192])
def test_directions_and_channels(directions, channels):
    _compare(norm_gate_inputs(2, 7, directions, channels), 1e-11, 1e-9)


def test_one_channel_is_normalised_away():
    inputs = norm_gate_inputs(2, 7, 4, 1)
    torch.testing.assert_close(merge_norm_gate(**inputs), inputs["bias"] * F.silu(inputs["z"]))


@pytest.mark.parametrize(
    ("dtype", "gate_dtype", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 6e-3),
        (torch.float16, torch.float16, 1e-3),
        (torch.float32, torch.bfloat16, 4e-3),
        (torch.bfloat16, torch.float32, 4e-3),
    ],
)
@pytest.mark.parametrize("directions", [1, 4])
def test_types(dtype, gate_dtype, tolerance, directions):
    _compare(norm_gate_inputs(2, 21, directions, 48, dtype, gate_dtype), tolerance, tolerance)


def test_large_mean_keeps_accuracy():
    inputs = norm_gate_inputs(2, 9, 4, 64, dtype=torch.float32)
    inputs["y"] = (inputs["y"].detach() + 100).requires_grad_()
    _compare(inputs, 1e-4, 1e-4)


def test_inputs_of_any_strides():
    inputs = norm_gate_inputs(2, 6, 4, 10)
    inputs["y"] = inputs["y"].detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
    inputs["z"] = inputs["z"].detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    _compare(inputs, 1e-11, 1e-9)


def test_gradient_of_the_directions_is_one_tensor():
    inputs = norm_gate_inputs(2, 6, 4, 10)
    (grad,) = torch.autograd.grad(merge_norm_gate(**inputs).sum(), inputs["y"])
    assert grad.stride(2) == 0
    assert grad.untyped_storage().nbytes() == 2 * 6 * 10 * 8


def test_several_directions_need_not_outlive_the_forward_pass():
    inputs = norm_gate_inputs(2, 6, 4, 10)
    merge_norm_gate(**inputs)
    out = norm_gate_forward(*inputs.values(), 1e-5, True, torch.float64)[0]
    saved = [tensor for tensor in out.grad_fn.saved_tensors if tensor is not None]
    assert max(tensor.numel() for tensor in saved) == 2 * 6 * 10


def test_inference_keeps_nothing():
    inputs = norm_gate_inputs(2, 6, 4, 10, requires_grad=False)
    assert norm_gate_forward(*inputs.values(), 1e-5, False, torch.float64)[3].numel() == 0


def test_differentiating_without_saving_is_refused():
    out = norm_gate_forward(*norm_gate_inputs(2, 6, 4, 10).values(), 1e-5, False, torch.float64)[0]
    with pytest.raises(RuntimeError, match="save=False"):
        out.sum().backward()


def test_forced_reference_is_the_definition(monkeypatch):
    inputs = norm_gate_inputs(2, 6, 4, 10)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(merge_norm_gate(**inputs), merge_norm_gate_reference(**inputs))


def test_same_call_twice_is_bit_equal():
    inputs = norm_gate_inputs(2, 70, 4, 24, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = merge_norm_gate(**inputs)
        runs.append([out, *gradients(out, inputs).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize(("name", "shape"), [("z", (2, 6, 5)), ("weight", (9,)), ("bias", (11,)), ("y", (2, 6, 10))])
def test_wrong_shapes_are_named(name, shape):
    inputs = norm_gate_inputs(2, 6, 4, 10) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match="y \\(B, L, G, E\\)" if name == "y" else f"{name} has shape"):
        merge_norm_gate(**inputs)


@pytest.mark.parametrize("directions", [1, 3])
def test_gradcheck(directions):
    assert torch.autograd.gradcheck(
        lambda *tensors: norm_gate_forward(*tensors, 1e-5, True, torch.float64)[0],
        tuple(norm_gate_inputs(2, 3, directions, 5).values()),
    )


@pytest.mark.parametrize("directions", [1, 3])
def test_opcheck(directions):
    y, z, weight, bias = norm_gate_inputs(2, 3, directions, 5, dtype=torch.float32).values()
    torch.library.opcheck(norm_gate_forward, (y, z, weight, bias, 1e-5, True, torch.float32))
    y, z, weight, bias = (tensor.detach() for tensor in (y, z, weight, bias))
    _, mean, rstd, _ = norm_gate_forward(y, z, weight, bias, 1e-5, True, torch.float32)
    torch.library.opcheck(norm_gate_backward, (torch.randn(2, 3, 5), y.sum(2), z, weight, bias, mean, rstd))


@pytest.mark.parametrize("directions", [1, 3])
def test_fake_shapes_equal_real_ones(directions):
    tensors = tuple(norm_gate_inputs(2, 3, directions, 5, torch.bfloat16, torch.float16, requires_grad=False).values())
    real = norm_gate_forward(*tensors, 1e-5, True, torch.float16)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = norm_gate_forward(*(mode.from_tensor(tensor) for tensor in tensors), 1e-5, True, torch.float16)
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@pytest.mark.parametrize("directions", [1, 4])
def test_compiles_without_graph_breaks(directions):
    inputs = norm_gate_inputs(2, 7, directions, 10)
    out = torch.compile(merge_norm_gate, fullgraph=True, backend="aot_eager")(**inputs)
    expected = merge_norm_gate(**inputs)
    assert_close("out", out, expected, 1e-12)
    truth = gradients(expected, inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, truth[name], 1e-10)


class _NormGate(torch.nn.Module):
    def forward(self, y, z, weight, bias):
        return merge_norm_gate(y, z, weight, bias)


def test_exports_as_one_node():
    arguments = tuple(norm_gate_inputs(2, 7, 4, 10, requires_grad=False).values())
    program = torch.export.export(_NormGate(), arguments)
    assert sum("norm_gate" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(*arguments), _NormGate()(*arguments))


def test_autocast_keeps_float32():
    inputs = norm_gate_inputs(2, 7, 4, 10, dtype=torch.float32)
    expected = merge_norm_gate(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(merge_norm_gate(**inputs), expected)


def _norm_inputs(dtype=torch.float64, shape=(2, 3, 5, 24)):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape) * 2 + 1, torch.randn(shape[-1]), torch.randn(shape[-1])
    return {"x": x.to(dtype).requires_grad_(), "weight": weight.requires_grad_(), "bias": bias.requires_grad_()}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-6), (torch.bfloat16, 6e-3)]
)
@pytest.mark.parametrize("result", [torch.float32, torch.bfloat16])
def test_layer_norm_alone(dtype, tolerance, result):
    inputs = _norm_inputs(dtype)
    truth_inputs = in_float64(inputs)
    truth = layer_norm_reference(**truth_inputs)
    torch.testing.assert_close(truth, F.layer_norm(truth_inputs["x"], (24,), *list(truth_inputs.values())[1:]))
    out = layer_norm(**inputs, dtype=result)
    assert (out.dtype, out.shape) == (result, truth.shape)
    tolerance = max(tolerance, 6e-3 if result == torch.bfloat16 else 1e-6)
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_are_merged_and_normalised_without_a_gate(dtype):
    inputs = norm_gate_inputs(2, 7, 4, 24, dtype)
    del inputs["z"]
    truth_inputs = in_float64(inputs)
    out, truth = merge_norm_gate(z=None, **inputs), merge_norm_gate_reference(z=None, **truth_inputs)
    assert out.dtype == dtype
    assert_close("out", out, truth, 6e-3)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], 6e-3)


def test_gradcheck_of_layer_norm():
    inputs = [tensor.detach().double().requires_grad_() for tensor in _norm_inputs(shape=(2, 3, 5)).values()]
    assert torch.autograd.gradcheck(layer_norm, inputs)


def test_opcheck_of_layer_norm():
    x, weight, bias = _norm_inputs(torch.float32, (1, 6, 1, 5)).values()
    torch.library.opcheck(norm_gate_forward, (x, None, weight, bias, 1e-5, True, torch.bfloat16))


def test_layer_norm_names_wrong_shapes():
    with pytest.raises(ValueError, match="layer_norm takes"):
        layer_norm(torch.zeros(2, 3), torch.zeros(4), torch.zeros(3))
