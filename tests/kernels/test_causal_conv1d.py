"""The causal convolution: values and every gradient against its definition, and as torch operators."""

import pytest
import torch
from torch.nn import functional as F

from mambaseg.kernels.causal_conv1d import (
    causal_conv1d,
    causal_conv1d_reference,
    causal_conv1d_update,
    plain,
)
from mambaseg.kernels.causal_conv1d.op import causal_conv1d_backward, causal_conv1d_forward, causal_conv1d_step
from tests.kernels.block_cases import convolution_inputs
from tests.kernels.scan_cases import assert_close, gradients, in_float64


def _compare(inputs, tolerance, gradient_tolerance, activation="silu"):
    truth_inputs = in_float64(inputs)
    out, last = causal_conv1d(**inputs, return_final_states=True, activation=activation)
    truth, truth_last = causal_conv1d_reference(**truth_inputs, return_final_states=True, activation=activation)
    assert out.dtype == last.dtype == inputs["x"].dtype
    assert_close("out", out, truth, tolerance)
    assert torch.equal(last.double(), truth_last)
    expected = gradients(truth, truth_inputs, truth_last)
    for name, grad in gradients(out, inputs, last).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_definition_is_torchs_padded_convolution(activation):
    inputs = convolution_inputs(2, 5, 11, 4)
    out = causal_conv1d_reference(**inputs, activation=activation)
    padded = F.pad(inputs["x"], (3, 0))
    expected = F.conv1d(padded, inputs["weight"].unsqueeze(1), inputs["bias"], groups=5)
    torch.testing.assert_close(out, F.silu(expected) if activation else expected)


@pytest.mark.parametrize("width", [2, 3, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 5, 63])
@pytest.mark.parametrize("initial", [True, False])
def test_widths_and_lengths(width, length, initial):
    _compare(convolution_inputs(2, 6, length, width, initial=initial), 1e-12, 1e-12)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_options_and_layouts(activation, bias, channels_last):
    inputs = convolution_inputs(3, 5, 21, 4, bias=bias, initial=True, channels_last=channels_last)
    _compare(inputs, 1e-12, 1e-12, activation)


def test_one_tap():
    inputs = convolution_inputs(2, 4, 9, 1)
    out, last = causal_conv1d(**inputs, return_final_states=True)
    torch.testing.assert_close(out, inputs["x"] * inputs["weight"] + inputs["bias"][:, None])
    assert last.shape == (2, 4, 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_types(dtype, tolerance):
    _compare(convolution_inputs(2, 33, 100, 4, dtype=dtype, initial=True), tolerance, tolerance)


def test_stretches_of_time_join(monkeypatch):
    monkeypatch.setattr(plain, "STRETCH_ELEMENTS", 1)
    _compare(convolution_inputs(2, 3, 50, 4, initial=True), 1e-12, 1e-12)


def test_stretches_shorter_than_the_taps(monkeypatch):
    monkeypatch.setattr(plain, "_stretches", lambda x: [(start, start + 1) for start in range(x.shape[1])])
    _compare(convolution_inputs(2, 3, 9, 7, initial=True), 1e-12, 1e-12)


def test_final_states_continue_the_sequence():
    inputs = convolution_inputs(2, 5, 23, 4)
    whole = causal_conv1d(**inputs, activation="silu")
    x, weight, bias, _ = inputs.values()
    pieces, states = [], None
    for part in x.split([1, 2, 9, 11], dim=-1):
        out, states = causal_conv1d(part, weight, bias, states, return_final_states=True, activation="silu")
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole)


def test_result_is_channels_last():
    out = causal_conv1d(**convolution_inputs(2, 5, 23, 4))
    assert out.stride(1) == 1


@pytest.mark.parametrize("state_length", [3, 4, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_update_repeats_the_convolution(state_length, bias):
    inputs = convolution_inputs(2, 5, 12, 4, bias=bias, requires_grad=False)
    expected = causal_conv1d(**inputs, activation="silu")
    state = torch.zeros(2, 5, state_length, dtype=torch.float64)
    for t in range(12):
        out = causal_conv1d_update(inputs["x"][..., t], state, inputs["weight"], inputs["bias"], "silu")
        torch.testing.assert_close(out, expected[..., t])
    assert torch.equal(state, inputs["x"][..., 12 - state_length :])


def test_forced_reference_is_the_definition(monkeypatch):
    inputs = convolution_inputs(2, 5, 12, 4, initial=True)
    expected = causal_conv1d_reference(**inputs, activation="silu")
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(causal_conv1d(**inputs, activation="silu"), expected)
    state = inputs["x"].detach()[..., 4:8].clone()
    update = causal_conv1d_update(inputs["x"].detach()[..., 8], state, inputs["weight"], inputs["bias"])
    torch.testing.assert_close(update, causal_conv1d_reference(*list(inputs.values())[:3])[..., 8].detach())


def test_same_call_twice_is_bit_equal():
    inputs = convolution_inputs(2, 8, 70, 4, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = causal_conv1d(**inputs, activation="silu")
        runs.append([out, *gradients(out, inputs).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("name", "shape"), [("weight", (4, 4)), ("bias", (4,)), ("initial_states", (2, 5, 4)), ("x", (2, 5))]
)
def test_wrong_shapes_are_named(name, shape):
    inputs = convolution_inputs(2, 5, 9, 4, requires_grad=False) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match="x \\(B, D, L\\)" if name == "x" else f"{name} has shape"):
        causal_conv1d(**inputs)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'relu' is not"):
        causal_conv1d(**convolution_inputs(2, 5, 9, 4), activation="relu")


def test_update_needs_enough_states():
    with pytest.raises(ValueError, match="conv_state has shape"):
        causal_conv1d_update(torch.zeros(2, 5), torch.zeros(2, 5, 2), torch.zeros(5, 4))


def _operator_inputs(initial=True, requires_grad=True, dtype=torch.float64):
    inputs = convolution_inputs(2, 3, 6, 4, dtype=dtype, initial=initial)
    x, *rest = (None if value is None else value.detach() for value in inputs.values())
    return [
        None if value is None else value.requires_grad_(requires_grad)
        for value in (x.transpose(1, 2).contiguous(), *rest)
    ]


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("initial", [True, False])
def test_gradcheck(silu, initial):
    x, weight, bias, states = _operator_inputs(initial)
    tensors = (x, weight, bias, states) if initial else (x, weight, bias)
    assert torch.autograd.gradcheck(
        lambda *given: causal_conv1d_forward(*given, *(() if initial else (None,)), silu), tensors
    )


@pytest.mark.parametrize("initial", [True, False])
def test_opcheck(initial):
    tensors = _operator_inputs(initial, dtype=torch.float32)
    torch.library.opcheck(causal_conv1d_forward, (*tensors, True))
    tensors = _operator_inputs(initial, requires_grad=False, dtype=torch.float32)
    torch.library.opcheck(causal_conv1d_backward, (torch.randn_like(tensors[0]), *tensors, True))


def test_opcheck_update():
    arguments = (torch.randn(2, 5), torch.randn(2, 5, 4), torch.randn(5, 4), torch.randn(5), True)
    torch.library.opcheck(causal_conv1d_step, arguments)


def test_meta_tensors_give_shapes():
    inputs = convolution_inputs(2, 6, 50, 4, device="meta")
    assert causal_conv1d(**inputs, activation="silu").shape == inputs["x"].shape


def test_compiles_without_graph_breaks():
    inputs = convolution_inputs(2, 6, 50, 4, initial=True)

    def convolve(**arguments):
        return causal_conv1d(**arguments, return_final_states=True, activation="silu")

    out, last = torch.compile(convolve, fullgraph=True, backend="aot_eager")(**inputs)
    expected, expected_last = convolve(**inputs)
    assert_close("out", out, expected, 1e-12)
    truth = gradients(expected, inputs, expected_last)
    for name, grad in gradients(out, inputs, last).items():
        assert_close(f"d{name}", grad, truth[name], 1e-10)


def test_update_compiles_without_graph_breaks():
    x, state, weight = torch.randn(2, 5), torch.randn(2, 5, 4), torch.randn(5, 4)
    compiled_state = state.clone()
    out = torch.compile(causal_conv1d_update, fullgraph=True, backend="aot_eager")(x, compiled_state, weight)
    torch.testing.assert_close(out, causal_conv1d_update(x, state, weight))
    assert torch.equal(compiled_state, state)


class _Convolution(torch.nn.Module):
    def forward(self, x, weight, bias):
        return causal_conv1d(x, weight, bias, activation="silu")


def test_exports_as_one_node():
    arguments = tuple(convolution_inputs(2, 6, 50, 4, requires_grad=False).values())[:3]
    program = torch.export.export(_Convolution(), arguments)
    assert sum("causal_conv1d" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(*arguments), _Convolution()(*arguments))


def test_autocast_keeps_the_input_type():
    inputs = convolution_inputs(2, 6, 50, 4, dtype=torch.float32)
    expected = causal_conv1d(**inputs, activation="silu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(causal_conv1d(**inputs, activation="silu"), expected)
