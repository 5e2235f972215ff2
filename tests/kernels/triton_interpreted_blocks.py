"""The Triton kernels around the scan, run in Python by Triton's interpreter: test_blocks_interpreter.py collects them.

The interpreter has to be chosen before Triton is imported, and serves CPU tensors.
"""

from dataclasses import replace

import pytest
import torch

from mambaseg.kernels import share_sums as share_sums_host
from mambaseg.kernels.batch_norm_act import batch_norm_act
from mambaseg.kernels.batch_norm_act import triton_launch as batch_norm_launch
from mambaseg.kernels.bilinear_doubling import bilinear_doubling, bilinear_doubling_reference
from mambaseg.kernels.bilinear_doubling import triton_launch as doubling_launch
from mambaseg.kernels.causal_conv1d import (
    causal_conv1d,
    causal_conv1d_reference,
    causal_conv1d_update,
    causal_conv1d_update_reference,
)
from mambaseg.kernels.causal_conv1d import triton_launch as convolution_launch
from mambaseg.kernels.depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_reference
from mambaseg.kernels.depthwise_conv2d import triton_launch as map_convolution_launch
from mambaseg.kernels.largest_class import largest_class
from mambaseg.kernels.largest_class import triton_launch as largest_class_launch
from mambaseg.kernels.norm_gate import layer_norm, layer_norm_reference, merge_norm_gate, merge_norm_gate_reference
from mambaseg.kernels.norm_gate import triton_launch as norm_gate_launch
from mambaseg.kernels.rms_scores import rms_scores, rms_scores_reference
from mambaseg.kernels.rms_scores import triton_launch as rms_scores_launch
from mambaseg.kernels.selective_state_update import selective_state_update, selective_state_update_reference
from mambaseg.kernels.selective_state_update import triton_launch as update_launch
from mambaseg.kernels.softmax_sums import losses_of_sums, softmax_sums
from mambaseg.kernels.softmax_sums import triton_launch as softmax_sums_launch
from tests.kernels.block_cases import (
    batch_norm_inputs,
    compare_batch_norm,
    compare_largest_class,
    compare_loss_sums,
    compare_losses_of_sums,
    compare_share_sums,
    compare_shift_in_half,
    compare_stacked_loss_sums,
    convolution_inputs,
    doubling_inputs,
    loss_inputs,
    map_convolution_inputs,
    norm_gate_inputs,
    running_statistics,
    score_inputs,
    stacked_loss_inputs,
    sums_inputs,
    update_inputs,
)
from tests.kernels.scan_cases import assert_close, gradients, in_float64


@pytest.fixture(autouse=True)
def _count_launches(monkeypatch):
    """Fail a case whose calls were served by anything but the Triton kernels."""
    launches = []

    def counted(function):
        return lambda *arguments: launches.append(1) or function(*arguments)

    for module, name in (
        (batch_norm_launch, "forward"),
        (convolution_launch, "forward"),
        (convolution_launch, "update"),
        (map_convolution_launch, "forward"),
        (doubling_launch, "forward"),
        (norm_gate_launch, "forward"),
        (rms_scores_launch, "forward"),
        (share_sums_host, "share_sums"),
        (softmax_sums_launch, "forward"),
        (softmax_sums_launch, "losses_forward"),
        (largest_class_launch, "forward"),
        (update_launch, "update"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    yield
    assert launches


def _compare(operator, reference, inputs, tolerance, **options):
    truth_inputs = in_float64(inputs)
    out, truth = operator(**inputs, **options), reference(**truth_inputs, **options)
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], tolerance)


@pytest.mark.parametrize(
    ("batch", "dim", "length", "width"), [(1, 3, 1, 4), (2, 67, 19, 4), (1, 2, 41, 3), (2, 5, 9, 2)]
)
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.usefixtures("_poisoned")
def test_convolution(batch, dim, length, width, initial):
    inputs = convolution_inputs(batch, dim, length, width, dtype=torch.float32, initial=initial)
    _compare(causal_conv1d, causal_conv1d_reference, inputs, 1e-5, activation="silu")


@pytest.mark.parametrize(("width", "length"), [(1, 9), (7, 3), (9, 20)])
def test_convolution_of_other_widths(width, length):
    inputs = convolution_inputs(1, 3, length, width, dtype=torch.float32, initial=width > 1)
    _compare(causal_conv1d, causal_conv1d_reference, inputs, 1e-5, activation="silu")


@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_without_bias_in_time_order(activation):
    inputs = convolution_inputs(1, 5, 35, 4, dtype=torch.float32, bias=False, channels_last=False)
    _compare(causal_conv1d, causal_conv1d_reference, inputs, 1e-5, activation=activation)


def test_convolution_in_one_segment_and_in_many(monkeypatch):
    for wanted in (1, 1000):
        monkeypatch.setattr(convolution_launch, "WANTED_PROGRAMS", wanted)
        inputs = convolution_inputs(1, 3, 70, 4, dtype=torch.float32, initial=True)
        _compare(causal_conv1d, causal_conv1d_reference, inputs, 1e-5, activation="silu")


def test_convolution_of_half_inputs():
    inputs = convolution_inputs(1, 4, 9, 4, dtype=torch.bfloat16, initial=True)
    _compare(causal_conv1d, causal_conv1d_reference, inputs, 1e-2, activation="silu")


@pytest.mark.parametrize(("width", "state_length", "bias"), [(4, 4, True), (4, 3, False), (2, 5, True), (1, 1, True)])
def test_convolution_step(width, state_length, bias):
    inputs = convolution_inputs(2, 131, state_length + 1, width, dtype=torch.float32, bias=bias, requires_grad=False)
    x, state = inputs["x"][..., -1], inputs["x"][..., :-1]
    truth_state = state.double()
    wide = in_float64({name: inputs[name] for name in ("weight", "bias")})
    truth = causal_conv1d_update_reference(x.double(), truth_state, *wide.values(), "silu")
    out = causal_conv1d_update(x, state, inputs["weight"], inputs["bias"], "silu")
    assert_close("out", out, truth, 1e-5)
    assert torch.equal(state.double(), truth_state)


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "side"),
    [(1, 1, 1, 1, 3), (2, 3, 2, 67, 3), (1, 4, 3, 3, 5), (1, 6, 2, 2, 1), (1, 5, 7, 3, 3)],
)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.usefixtures("_poisoned")
def test_map_convolution(batch, height, width, channels, side, activation):
    inputs = map_convolution_inputs(batch, height, width, channels, side, dtype=torch.float32)
    _compare(depthwise_conv2d, depthwise_conv2d_reference, inputs, 1e-5, activation=activation)


def test_map_convolution_without_bias_of_any_strides():
    inputs = map_convolution_inputs(2, 3, 4, 3, dtype=torch.float32, bias=False)
    inputs["x"] = inputs["x"].detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
    _compare(depthwise_conv2d, depthwise_conv2d_reference, inputs, 1e-5, activation="silu")


def test_map_convolution_in_one_segment_and_in_many(monkeypatch):
    for wanted in (1, 1000):
        monkeypatch.setattr(map_convolution_launch, "WANTED_PROGRAMS", wanted)
        inputs = map_convolution_inputs(1, 2, 19, 3, dtype=torch.float32)
        _compare(depthwise_conv2d, depthwise_conv2d_reference, inputs, 1e-5, activation="silu")


def test_map_convolution_of_half_inputs():
    inputs = map_convolution_inputs(1, 4, 5, 6, dtype=torch.bfloat16)
    _compare(depthwise_conv2d, depthwise_conv2d_reference, inputs, 1e-2, activation="silu")


@pytest.mark.parametrize(("dim", "d_state", "groups"), [(3, 2, None), (70, 16, 2), (6, 5, 3), (1, 1, 1)])
@pytest.mark.parametrize("options", [True, False])
def test_state_update(dim, d_state, groups, options):
    inputs = update_inputs(2, dim, d_state, groups, dtype=torch.float32, options=options)
    truth_inputs = in_float64(inputs)
    truth_inputs["state"].requires_grad_(False)
    truth = selective_state_update_reference(**truth_inputs)
    assert_close("out", selective_state_update(**inputs), truth.detach(), 1e-5)
    assert_close("state", inputs["state"], truth_inputs["state"], 1e-5)


def test_state_update_in_a_strided_cache():
    inputs = update_inputs(2, 5, 3, dtype=torch.float32)
    cache = torch.zeros(2, 3, 5, 2)
    view = cache[..., 0].transpose(1, 2).copy_(inputs["state"])
    out = selective_state_update(**inputs | {"state": view})
    assert torch.equal(out, selective_state_update(**inputs))
    assert torch.equal(view, inputs["state"])
    assert not cache[..., 1].any()


@pytest.mark.parametrize(
    ("batch", "length", "directions", "channels"), [(1, 1, 1, 1), (2, 7, 4, 5), (1, 3, 2, 192), (3, 11, 1, 33)]
)
@pytest.mark.usefixtures("_poisoned")
def test_norm_gate(batch, length, directions, channels):
    inputs = norm_gate_inputs(batch, length, directions, channels, dtype=torch.float32)
    if channels == 1:
        expected = inputs["bias"] * torch.nn.functional.silu(inputs["z"])
        torch.testing.assert_close(merge_norm_gate(**inputs), expected)
        return
    _compare(merge_norm_gate, merge_norm_gate_reference, inputs, 1e-5)


@pytest.mark.parametrize("shape", [(1, 3), (2, 3, 5), (7, 200)])
@pytest.mark.usefixtures("_poisoned")
def test_layer_norm(shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1])
    inputs = {"x": x.requires_grad_(), "weight": weight.requires_grad_(), "bias": bias.requires_grad_()}
    _compare(layer_norm, layer_norm_reference, inputs, 1e-5)


def test_norm_gate_of_rows_in_several_programs(monkeypatch):
    monkeypatch.setattr(norm_gate_launch, "FEWEST_BLOCKS", 1)
    monkeypatch.setattr(norm_gate_launch, "MOST_WARPS", 3 * 4)
    inputs = norm_gate_inputs(2, 7, 4, 200, dtype=torch.float32)
    _compare(merge_norm_gate, merge_norm_gate_reference, inputs, 1e-5)


def test_norm_gate_keeps_accuracy_at_a_large_mean():
    inputs = norm_gate_inputs(1, 5, 1, 24, dtype=torch.float32)
    inputs["y"] = (inputs["y"].detach() + 100).requires_grad_()
    _compare(merge_norm_gate, merge_norm_gate_reference, inputs, 1e-4)


@pytest.mark.parametrize(("dtype", "gate_dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])
def test_norm_gate_of_half_inputs(dtype, gate_dtype):
    _compare(merge_norm_gate, merge_norm_gate_reference, norm_gate_inputs(1, 5, 4, 24, dtype, gate_dtype), 1e-2)


def test_norm_gate_of_any_strides():
    inputs = norm_gate_inputs(2, 6, 4, 10, dtype=torch.float32)
    inputs["y"] = inputs["y"].detach().permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3).requires_grad_()
    inputs["z"] = inputs["z"].detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    _compare(merge_norm_gate, merge_norm_gate_reference, inputs, 1e-5)


@pytest.mark.parametrize(("rows", "channels"), [(2, 3), (37, 1), (300, 5), (150, 24), (70, 16), (33, 130)])
@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.usefixtures("_poisoned")
def test_batch_norm(rows, channels, slope):
    inputs = batch_norm_inputs(rows, channels, dtype=torch.float32)
    # Of two rows, normalised to -1 and 1, the gradient nearly vanishes.
    compare_batch_norm(inputs, 1e-5, 1e-4 if rows > 2 else 1e-1, slope)


@pytest.mark.parametrize("programs", [1, 2, 3, 7])
def test_batch_norm_of_rows_in_few_programs(monkeypatch, programs):
    small = {"MOST_PROGRAMS": programs, "FORWARD_VALUES": 1, "BACKWARD_VALUES": 1, "MERGED_SHARES": 2}
    for name, value in small.items():
        monkeypatch.setattr(batch_norm_launch, name, value)
    compare_batch_norm(batch_norm_inputs(301, 16, dtype=torch.float32), 1e-5, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_of_half_rows(dtype):
    compare_batch_norm(batch_norm_inputs(200, 24, dtype=dtype), 1e-2, 1e-2)


def test_batch_norm_rounds_a_shift_as_the_rows():
    compare_shift_in_half(torch.float16)  # the interpreter cuts what it casts to bfloat16 off


def test_batch_norm_of_any_strides():
    inputs = batch_norm_inputs(60, 10, dtype=torch.float32)
    inputs["x"] = inputs["x"].detach().t().contiguous().t().requires_grad_()
    compare_batch_norm(inputs, 1e-5, 1e-4)


def test_batch_norm_keeps_accuracy_at_a_large_mean(monkeypatch):
    monkeypatch.setattr(batch_norm_launch, "MOST_PROGRAMS", 3)
    monkeypatch.setattr(batch_norm_launch, "FORWARD_VALUES", 1)
    inputs = batch_norm_inputs(500, 8, dtype=torch.float32, mean=1e4)
    compare_batch_norm(inputs, 1e-3, 1e-3)


def test_batch_norm_of_rows_whose_first_ones_are_far_off(monkeypatch):
    """Rows of zeros, as an image's margin, before the others: sums around a first block's mean would cancel."""
    monkeypatch.setattr(batch_norm_launch, "FORWARD_VALUES", 1)
    inputs = batch_norm_inputs(500, 8, dtype=torch.float32, mean=1e3)
    inputs["x"].detach()[:100] = 0
    compare_batch_norm(inputs, 1e-5, 1e-3)


def test_batch_norm_without_running_statistics_and_without_a_shift():
    inputs = batch_norm_inputs(50, 6, dtype=torch.float32)
    running = running_statistics(6, torch.float32)
    expected = batch_norm_act(**inputs, running=running)
    assert torch.equal(batch_norm_act(**inputs), expected)
    unshifted = replace(running_statistics(6, torch.float32), shift=None)
    batch_norm_act(**inputs, running=unshifted)
    assert torch.equal(unshifted.variance, running.variance)
    torch.testing.assert_close(unshifted.mean + 0.3 * running.shift, running.mean)


@pytest.mark.parametrize(
    ("batch", "height", "width", "side", "channels", "classes"),
    [(1, 1, 1, 1, 1, 1), (2, 3, 5, 2, 6, 3), (2, 2, 3, 4, 24, 4), (1, 3, 2, 3, 33, 2), (2, 5, 7, 4, 96, 4)],
)
@pytest.mark.usefixtures("_poisoned")
def test_scores(batch, height, width, side, channels, classes):
    inputs = score_inputs(batch, height, width, side, channels, classes, dtype=torch.float32)
    _compare(rms_scores, rms_scores_reference, inputs, 1e-5)


def test_scores_of_pixels_in_few_programs(monkeypatch):
    monkeypatch.setattr(rms_scores_launch, "MOST_PROGRAMS", 3)
    monkeypatch.setattr(rms_scores_launch, "CHUNK_VALUES", 128)
    inputs = score_inputs(2, 5, 3, 4, 24, 4, dtype=torch.float32)
    _compare(rms_scores, rms_scores_reference, inputs, 1e-5)


def test_scores_of_half_inputs_of_any_strides():
    inputs = score_inputs(2, 3, 5, 4, 20, 3, dtype=torch.bfloat16)
    for name in ("vectors", "scores"):
        inputs[name] = inputs[name].detach().transpose(0, 4).contiguous().transpose(0, 4).requires_grad_()
    _compare(rms_scores, rms_scores_reference, inputs, 1e-2)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (3, 1), (7, 2), (3, 9)])
@pytest.mark.parametrize(("channels", "skip_channels"), [(1, 0), (3, 0), (16, 16), (40, 3), (70, 0)])
@pytest.mark.usefixtures("_poisoned")
def test_doubling(size, channels, skip_channels):
    inputs = doubling_inputs(2, *size, channels, skip_channels, dtype=torch.float32)
    _compare(bilinear_doubling, bilinear_doubling_reference, inputs, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("_poisoned")
def test_doubling_of_half_maps_of_any_strides(dtype):
    inputs = doubling_inputs(2, 3, 9, 16, 8, dtype=dtype)
    inputs["x"] = inputs["x"].detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    _compare(bilinear_doubling, bilinear_doubling_reference, inputs, 4e-3)


def test_doubling_behind_a_skip_of_another_type():
    inputs = doubling_inputs(1, 2, 3, 16, 8, dtype=torch.float32)
    inputs["x"] = inputs["x"].detach().bfloat16().requires_grad_()
    _compare(bilinear_doubling, bilinear_doubling_reference, inputs, 4e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 4), (5, 2, 9), (37, 10, 3), (1025, 3, 2), (130, 2, 8450)])
@pytest.mark.usefixtures("_poisoned")
def test_share_sums(shape):
    compare_share_sums(shape)


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 4, 5, 7), (1, 3, 3, 7, 13), (3, 5), (2, 33, 35), (2, 1, 3)])
@pytest.mark.usefixtures("_poisoned")
def test_loss_sums(shape):
    compare_loss_sums(*loss_inputs(shape, dtype=torch.float32), 1e-5, 1e-5 if shape[1] > 1 else 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("_poisoned")
def test_loss_sums_in_several_programs(memory_format):
    compare_loss_sums(*loss_inputs((2, 4, 13, 11), dtype=torch.float32, memory_format=memory_format), 1e-5, 1e-5)


def test_loss_sums_of_any_strides():
    logits, target = loss_inputs((2, 4, 6, 7), dtype=torch.float32)
    logits = logits.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)[:, :, 1:, ::2].requires_grad_()
    compare_loss_sums(logits, target[:, 1:, ::2], 1e-5, 1e-5)


def test_loss_sums_of_half_logits_and_small_labels():
    logits, target = loss_inputs((2, 4, 5, 7), dtype=torch.bfloat16)
    compare_loss_sums(logits, target.to(torch.uint8), 1e-5, 1e-2)


def test_loss_sums_of_extreme_logits():
    logits, target = loss_inputs((2, 4, 5, 7), dtype=torch.float32)
    compare_loss_sums((logits.detach() * 1e4).requires_grad_(), target, 1e-5, 1e-5)


@pytest.mark.parametrize("pixels", [0, 7])
def test_loss_sums_of_nothing_known_are_exact_zeros(pixels):
    logits, target = loss_inputs((2, 4, pixels), dtype=torch.float32, unknown=1.1)
    sums = torch.hstack(softmax_sums(logits, target))
    assert torch.equal(sums, torch.zeros(13))
    (grad,) = torch.autograd.grad(sums.sum(), logits)
    assert torch.equal(grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    "shapes", [[(2, 4, 5, 7), (2, 4, 5, 7)], [(2, 4, 13, 11), (1, 4, 3, 4, 5)], [(1, 3, 9), (2, 3, 150), (1, 3, 4)]]
)
@pytest.mark.usefixtures("_poisoned")
def test_stacked_loss_sums(shapes):
    compare_stacked_loss_sums(stacked_loss_inputs(shapes, torch.float32), 1e-5, 1e-5)


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
@pytest.mark.usefixtures("_poisoned")
def test_losses_of_sums(classes):
    compare_losses_of_sums(*sums_inputs(classes, torch.float32), 1e-5)


def test_loss_sums_of_a_label_that_is_none():
    logits, target = loss_inputs((2, 3, 5), dtype=torch.float32)
    for stray in (3, 4, -1):
        target[0, 0] = stray
        *others, cross_entropy = softmax_sums(logits, target)
        assert cross_entropy.isnan()
        assert torch.hstack(others).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 3, 150), (2, 5, 3, 4, 5), (3, 5), (2, 1, 3), (1, 33, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_largest_class(shape, dtype):
    compare_largest_class(shape, dtype)


def test_largest_class_of_other_layouts():
    compare_largest_class((2, 4, 13, 11), torch.float32, memory_format=torch.channels_last)
    logits = torch.randn(7, 6, 4, 2).permute(3, 2, 1, 0)[:, :, 1:, ::2]
    assert torch.equal(largest_class(logits), logits.argmax(1))


def test_same_call_twice_is_bit_equal():
    runs = []
    for _ in range(2):
        inputs = convolution_inputs(1, 4, 40, 4, dtype=torch.float32)
        out = causal_conv1d(**inputs, activation="silu")
        gate_inputs = norm_gate_inputs(2, 9, 4, 24, dtype=torch.float32)
        gated = merge_norm_gate(**gate_inputs)
        map_inputs = map_convolution_inputs(2, 2, 3, 3, dtype=torch.float32)
        convolved = depthwise_conv2d(**map_inputs, activation="silu")
        scores_inputs = score_inputs(2, 2, 3, 4, 24, 4, dtype=torch.float32)
        scored = rms_scores(**scores_inputs)
        pairs = [(out, inputs), (gated, gate_inputs), (convolved, map_inputs), (scored, scores_inputs)]
        small_inputs = doubling_inputs(2, 3, 9, 16, 16, dtype=torch.float32)
        pairs.append((bilinear_doubling(**small_inputs), small_inputs))
        runs.append([tensor for out, given in pairs for tensor in (out, *gradients(out, given).values())])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_float64_is_refused_with_the_fix():
    with pytest.raises(RuntimeError, match="causal_conv1d compute in float32"):
        causal_conv1d(**convolution_inputs(1, 3, 5, 4))
    with pytest.raises(RuntimeError, match="bilinear_doubling compute in float32"):
        bilinear_doubling(**doubling_inputs(1, 3, 5, 4))
    with pytest.raises(RuntimeError, match="depthwise_conv2d compute in float32"):
        depthwise_conv2d(**map_convolution_inputs(1, 3, 5, 4))
    with pytest.raises(RuntimeError, match="rms_scores compute in float32"):
        rms_scores(**score_inputs(1, 2, 2, 2, 3, 2))
    with pytest.raises(RuntimeError, match="softmax_sums compute in float32"):
        softmax_sums(*loss_inputs((1, 3, 5)))
    with pytest.raises(RuntimeError, match="losses_of_sums compute in float32"):
        losses_of_sums(*sums_inputs(3), 1e-5)
    with pytest.raises(RuntimeError, match="merge_norm_gate compute in float32"):
        merge_norm_gate(**norm_gate_inputs(1, 3, 2, 4))
