"""The operators around the scan on a GPU: run with ``pytest -m gpu tests/kernels -n 0``."""

import pytest
import torch

from mambaseg.kernels import selective_scan
from mambaseg.kernels.bilinear_doubling import bilinear_doubling, bilinear_doubling_reference
from mambaseg.kernels.causal_conv1d import causal_conv1d, causal_conv1d_reference, causal_conv1d_update
from mambaseg.kernels.depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_reference
from mambaseg.kernels.largest_class import largest_class
from mambaseg.kernels.norm_gate import layer_norm, layer_norm_reference, merge_norm_gate, merge_norm_gate_reference
from mambaseg.kernels.rms_scores import rms_scores, rms_scores_reference
from mambaseg.kernels.selective_state_update import selective_state_update, selective_state_update_reference
from mambaseg.kernels.softmax_sums import losses_of_sums, softmax_sums, softmax_sums_reference, stacked_softmax_sums
from tests.kernels.block_cases import (
    compare_share_sums,
    convolution_inputs,
    doubling_inputs,
    loss_inputs,
    map_convolution_inputs,
    norm_gate_inputs,
    score_inputs,
    sums_inputs,
    update_inputs,
)
from tests.kernels.scan_cases import PRECISION, assert_close, gradients, in_float64, scan_inputs

pytestmark = pytest.mark.gpu

MAPS = [(2, 56, 56, 192), (2, 28, 28, 384), (2, 14, 14, 768), (2, 7, 7, 1536)]
DECODER_MAPS = [(16, 112, 112, 16, 16), (16, 56, 56, 32, 32), (16, 28, 28, 64, 64), (16, 14, 14, 128, 128)]
STAGES = [(2, 3136, 192), (2, 784, 384), (2, 196, 768), (2, 49, 1536)]


def _compare(operator, reference, inputs, dtype, **options):
    tolerance, gradient_tolerance = PRECISION[dtype]
    truth_inputs = in_float64(inputs)
    out, truth = operator(**inputs, **options), reference(**truth_inputs, **options)
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


@pytest.mark.parametrize(("batch", "length", "dim"), [*STAGES, (1, 16384, 96), (3, 1000, 35)])
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.usefixtures("_poisoned")
def test_convolution_shapes_and_types(batch, length, dim, dtype, channels_last):
    inputs = convolution_inputs(batch, dim, length, 4, dtype=dtype, device="cuda", channels_last=channels_last)
    _compare(causal_conv1d, causal_conv1d_reference, inputs, dtype, activation="silu")


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 63, 100])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.usefixtures("_poisoned")
def test_convolution_widths(width, length, initial):
    inputs = convolution_inputs(3, 35, length, width, dtype=torch.float32, device="cuda", initial=initial and width > 1)
    _compare(causal_conv1d, causal_conv1d_reference, inputs, torch.float32, activation="silu")


@pytest.mark.parametrize("options", [{"bias": False}, {"initial": True}])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_options(options, activation):
    inputs = convolution_inputs(2, 50, 77, 4, dtype=torch.float32, device="cuda", **options)
    _compare(causal_conv1d, causal_conv1d_reference, inputs, torch.float32, activation=activation)


@pytest.mark.parametrize("dtype", list(PRECISION))
def test_convolution_steps(dtype):
    inputs = convolution_inputs(3, 200, 20, 4, dtype=dtype, device="cuda", requires_grad=False)
    expected = causal_conv1d(**inputs, activation="silu")
    state = torch.zeros(3, 200, 4, device="cuda", dtype=dtype)
    for t in range(20):
        out = causal_conv1d_update(inputs["x"][..., t], state, inputs["weight"], inputs["bias"], "silu")
        assert_close(f"step {t}", out, expected[..., t], PRECISION[dtype][0])
    assert torch.equal(state, inputs["x"][..., -4:])


@pytest.mark.parametrize("shape", [*MAPS, (1, 128, 128, 96), (3, 21, 50, 35), (1, 1, 1, 2), (2, 3, 2500, 7)])
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.usefixtures("_poisoned")
def test_map_convolution_shapes_and_types(shape, dtype):
    inputs = map_convolution_inputs(*shape, dtype=dtype, device="cuda")
    _compare(depthwise_conv2d, depthwise_conv2d_reference, inputs, dtype, activation="silu")


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.usefixtures("_poisoned")
def test_map_convolution_options(side, bias, activation):
    inputs = map_convolution_inputs(2, 9, 13, 50, side, dtype=torch.float32, device="cuda", bias=bias)
    _compare(depthwise_conv2d, depthwise_conv2d_reference, inputs, torch.float32, activation=activation)


@pytest.mark.parametrize(
    ("dim", "d_state", "groups"), [(1536, 16, None), (70, 16, 2), (35, 5, 5), (50, 1, 1), (9, 256, 1)]
)
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.parametrize("options", [True, False])
def test_state_update(dim, d_state, groups, dtype, options):
    inputs = update_inputs(3, dim, d_state, groups, dtype=dtype, device="cuda", options=options)
    truth_inputs = in_float64(inputs)
    truth_inputs["state"].requires_grad_(False)
    truth = selective_state_update_reference(**truth_inputs)
    assert_close("out", selective_state_update(**inputs), truth.detach(), PRECISION[dtype][0])
    assert_close("state", inputs["state"], truth_inputs["state"], 1e-5)


@pytest.mark.parametrize("groups", [None, 4])
def test_state_update_repeats_the_scan(groups):
    inputs = scan_inputs(2, 48, 25, 16, groups, dtype=torch.float32, device="cuda", gate=True, requires_grad=False)
    expected, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    state = torch.zeros_like(last)
    for t in range(25):
        x, dt, B, C, z = (inputs[name][..., t] for name in ("u", "delta", "B", "C", "z"))
        out = selective_state_update(state, x, dt, inputs["A"], B, C, inputs["D"], z, inputs["delta_bias"], True)
        assert_close(f"step {t}", out, expected[..., t], 1e-5)
    assert_close("last state", state, last, 1e-5)


@pytest.mark.parametrize(("batch", "length", "channels"), [*STAGES, (1, 7, 33), (3, 1000, 100), (1, 5, 4100)])
@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "gate_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.usefixtures("_poisoned")
def test_norm_gate(batch, length, channels, directions, dtype, gate_dtype):
    inputs = norm_gate_inputs(batch, length, directions, channels, dtype, gate_dtype, device="cuda")
    _compare(merge_norm_gate, merge_norm_gate_reference, inputs, gate_dtype)


@pytest.mark.parametrize(("shape", "result"), [((16, 56, 56, 96), torch.bfloat16), ((3, 7, 768), torch.float32)])
def test_layer_norm(shape, result):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size, device="cuda") for size in (shape, shape[-1:], shape[-1:]))
    inputs = {"x": x.requires_grad_(), "weight": weight.requires_grad_(), "bias": bias.requires_grad_()}

    def run(**tensors):
        return layer_norm(**tensors, dtype=result)

    _compare(run, layer_norm_reference, inputs, result)


@pytest.mark.parametrize(
    ("batch", "height", "width", "side", "channels", "classes"),
    [
        (2, 56, 56, 4, 96, 4),
        (3, 13, 7, 4, 96, 4),
        (2, 28, 28, 4, 24, 9),
        (2, 15, 9, 2, 33, 2),
        (1, 9, 5, 3, 768, 14),
        (1, 3, 2, 1, 5000, 1),
        (1, 4, 4, 2, 16, 200),
    ],
)
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.usefixtures("_poisoned")
def test_scores(batch, height, width, side, channels, classes, dtype):
    inputs = score_inputs(batch, height, width, side, channels, classes, dtype, "cuda")
    _compare(rms_scores, rms_scores_reference, inputs, dtype)


@pytest.mark.parametrize(
    "shape",
    [
        *DECODER_MAPS,
        (16, 112, 112, 16),
        (1, 1, 1, 1),
        (2, 1, 7, 3, 2),
        (3, 2, 1, 40, 16),
        (2, 21, 50, 35),
        (1, 13, 9, 200, 3),
    ],
)
@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.usefixtures("_poisoned")
def test_doubling(shape, dtype):
    _compare(bilinear_doubling, bilinear_doubling_reference, doubling_inputs(*shape, dtype=dtype, device="cuda"), dtype)


def test_doubling_in_float32_is_exact_to_rounding():
    inputs = doubling_inputs(16, 112, 112, 16, 16, dtype=torch.float32, device="cuda")
    truth_inputs = in_float64(inputs)
    out, truth = bilinear_doubling(**inputs), bilinear_doubling_reference(**truth_inputs)
    assert_close("out", out, truth, 1e-6)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, expected[name], 1e-6)


def test_doubling_of_any_strides():
    inputs = doubling_inputs(2, 30, 41, 24, 8, dtype=torch.float32, device="cuda")
    for name in ("x", "skip"):
        inputs[name] = inputs[name].detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
    _compare(bilinear_doubling, bilinear_doubling_reference, inputs, torch.float32)


@pytest.mark.parametrize(
    "shape", [(1568, 2, 192), (1365, 10, 192), (32, 10, 1536), (1568, 1, 4), (3, 5, 1000), (196, 2, 1536), (1, 1, 1)]
)
@pytest.mark.usefixtures("_poisoned")
def test_share_sums(shape):
    compare_share_sums(shape, "cuda")


def test_norm_gate_of_any_strides():
    inputs = norm_gate_inputs(2, 60, 4, 48, dtype=torch.float32, device="cuda")
    inputs["y"] = inputs["y"].detach().permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3).requires_grad_()
    inputs["z"] = inputs["z"].detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    _compare(merge_norm_gate, merge_norm_gate_reference, inputs, torch.float32)


def test_same_call_twice_is_bit_equal():
    runs = []
    for _ in range(2):
        inputs = convolution_inputs(4, 384, 784, 4, dtype=torch.float32, device="cuda", initial=True)
        out = causal_conv1d(**inputs, activation="silu")
        gate_inputs = norm_gate_inputs(4, 784, 4, 384, dtype=torch.float32, device="cuda")
        gated = merge_norm_gate(**gate_inputs)
        map_inputs = map_convolution_inputs(4, 28, 28, 384, dtype=torch.float32, device="cuda")
        convolved = depthwise_conv2d(**map_inputs, activation="silu")
        scores_inputs = score_inputs(4, 56, 56, 4, 96, 4, dtype=torch.float32, device="cuda")
        scored = rms_scores(**scores_inputs)
        pairs = [(out, inputs), (gated, gate_inputs), (convolved, map_inputs), (scored, scores_inputs)]
        small_inputs = doubling_inputs(*DECODER_MAPS[1], dtype=torch.float32, device="cuda")
        pairs.append((bilinear_doubling(**small_inputs), small_inputs))
        runs.append([tensor for out, given in pairs for tensor in (out, *gradients(out, given).values())])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def _skip_without_memory(gib):
    if torch.cuda.mem_get_info()[0] < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free GPU memory")


def test_convolution_beyond_32_bits():
    _skip_without_memory(24)
    length, dim = 2**24 + 40, 128
    x = torch.zeros(1, length, dim, device="cuda", dtype=torch.bfloat16)
    x[:, -64:] = torch.randn(1, 64, dim, device="cuda")
    weight = torch.randn(dim, 4, device="cuda")
    x.requires_grad_()
    out = causal_conv1d(x.transpose(1, 2), weight, activation="silu")
    tail = x.detach()[:, -64:].transpose(1, 2).double().cpu().requires_grad_()
    truth = causal_conv1d_reference(tail, weight.double().cpu(), activation="silu")
    assert_close("out", out[..., -64:], truth, 1e-2)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    (expected,) = torch.autograd.grad(truth.sum(), tail)
    assert_close("dx", grad[:, -64:].transpose(1, 2), expected, 1e-2)


def test_map_convolution_beyond_32_bits():
    _skip_without_memory(24)
    height, width, channels = 2**13 + 5, 2**11, 128
    x = torch.zeros(1, height, width, channels, device="cuda", dtype=torch.bfloat16)
    x[:, -8:] = torch.randn(1, 8, width, channels, device="cuda")
    weight = torch.randn(channels, 3, 3, device="cuda")
    x.requires_grad_()
    out = depthwise_conv2d(x, weight, activation="silu")
    tail = x.detach()[:, -9:].double().cpu().requires_grad_()
    truth = depthwise_conv2d_reference(tail, weight.double().cpu(), activation="silu")
    assert_close("out", out[:, -8:], truth[:, 1:], 1e-2)
    upstream = torch.zeros_like(out)
    upstream[:, -8:] = 1
    (grad,) = torch.autograd.grad(out, x, upstream)
    (expected,) = torch.autograd.grad(truth[:, 1:].sum(), tail)
    assert_close("dx", grad[:, -9:], expected, 1e-2)


def test_doubling_beyond_32_bits():
    """The small map has more than 2^31 elements as well; channels are independent, so one of them is looked at."""
    _skip_without_memory(56)
    x = torch.randn(1, 2**13 + 5, 2**12, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    out = bilinear_doubling(x)
    channel = x.detach()[..., -1:].double().requires_grad_()
    truth = bilinear_doubling_reference(channel)
    assert_close("out", out[..., -1:], truth, 1e-2)
    upstream = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, x, upstream)
    (expected,) = torch.autograd.grad(truth, channel, upstream[..., -1:].double())
    assert_close("dx", grad[..., -1:], expected, 1e-2)


def test_norm_gate_beyond_32_bits():
    _skip_without_memory(48)
    length, channels = 2**24 + 40, 128
    y = torch.zeros(1, length, 1, channels, device="cuda", dtype=torch.bfloat16)
    y[:, -64:] = torch.randn(1, 64, 1, channels, device="cuda")
    z = torch.ones(1, length, channels, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(2, channels, device="cuda")
    y.requires_grad_()
    out = merge_norm_gate(y, z, weight, bias)
    tail = y.detach()[:, -64:].double().cpu().requires_grad_()
    truth = merge_norm_gate_reference(tail, z[:, -64:].double().cpu(), weight.double().cpu(), bias.double().cpu())
    assert_close("out", out[:, -64:], truth, 1e-2)
    upstream = torch.zeros_like(out)
    upstream[:, -64:] = torch.randn(1, 64, channels, device="cuda")
    (grad,) = torch.autograd.grad(out, y, upstream)
    (expected,) = torch.autograd.grad(truth, tail, upstream[:, -64:].double().cpu())
    assert_close("dy", grad[:, -64:], expected, 1e-2)


def test_scores_beyond_32_bits():
    _skip_without_memory(24)
    batch, side, channels, classes = 2, 2**12, 48, 2
    vectors = torch.zeros(batch, side, side, 4, channels, device="cuda", dtype=torch.bfloat16)
    scores = torch.zeros(batch, side, side, 4, classes, device="cuda", dtype=torch.bfloat16)
    vectors[:, -4:], scores[:, -4:] = (torch.randn_like(tensor[:, -4:]) for tensor in (vectors, scores))
    shift = torch.randn(classes, device="cuda")
    vectors.requires_grad_()
    out = rms_scores(vectors, scores, shift)
    tail = vectors.detach()[:, -4:].double().cpu().requires_grad_()
    truth = rms_scores_reference(tail, scores[:, -4:].double().cpu(), shift.double().cpu())
    assert_close("out", out[:, :, -8:], truth, 1e-2)
    upstream = torch.zeros_like(out)
    upstream[:, :, -8:] = 1
    (grad,) = torch.autograd.grad(out, vectors, upstream)
    (expected,) = torch.autograd.grad(truth.sum(), tail)
    assert_close("dvectors", grad[:, -4:], expected, 1e-2)


@pytest.mark.parametrize("channels_last", [True, False])
def test_loss_sums_beyond_32_bits(channels_last):
    """Images, classes and pixels beyond 2^31 elements from the start, of which the last are known."""
    _skip_without_memory(32)
    batch, classes, pixels, tail = 2, 5, 2**29 + 24, 1000
    shape = (batch, pixels, classes) if channels_last else (batch, classes, pixels)
    logits = torch.zeros(shape, device="cuda", dtype=torch.bfloat16)
    logits = logits.transpose(1, 2) if channels_last else logits
    known, labels = loss_inputs((batch, classes, tail), torch.bfloat16, "cuda")
    logits[..., -tail:] = known.detach()
    target = torch.full((batch, pixels), 255, dtype=torch.uint8, device="cuda")
    target[..., -tail:] = labels
    sums = torch.hstack(softmax_sums(logits.requires_grad_(), target))
    exact = known.detach().double().requires_grad_()
    truth = torch.hstack(softmax_sums_reference(exact, labels))
    assert_close("sums", sums, truth, 1e-5)
    (grad,), (expected,) = torch.autograd.grad(sums.sum(), logits), torch.autograd.grad(truth.sum(), exact)
    assert_close("gradient", grad[..., -tail:], expected, 1e-2)
    assert not grad[..., :-tail].any()


def test_new_lengths_compile_nothing():
    from mambaseg.kernels.bilinear_doubling.triton_kernels import (
        bilinear_doubling_bwd_kernel,
        bilinear_doubling_fwd_kernel,
    )
    from mambaseg.kernels.causal_conv1d.triton_kernels import causal_conv1d_bwd_kernel, causal_conv1d_fwd_kernel
    from mambaseg.kernels.depthwise_conv2d.triton_kernels import (
        depthwise_conv2d_kernel,
        depthwise_conv2d_weights_kernel,
    )
    from mambaseg.kernels.largest_class.triton_kernels import largest_class_kernel
    from mambaseg.kernels.norm_gate.triton_kernels import norm_gate_bwd_kernel, norm_gate_fwd_kernel
    from mambaseg.kernels.rms_scores.triton_kernels import rms_scores_bwd_kernel, rms_scores_fwd_kernel
    from mambaseg.kernels.softmax_sums.triton_kernels import softmax_sums_bwd_kernel, softmax_sums_fwd_kernel
    from mambaseg.kernels.triton_shares import share_sums_kernel

    kernels = (causal_conv1d_fwd_kernel, causal_conv1d_bwd_kernel, norm_gate_fwd_kernel, norm_gate_bwd_kernel)
    kernels += (depthwise_conv2d_kernel, depthwise_conv2d_weights_kernel)
    kernels += (bilinear_doubling_fwd_kernel, bilinear_doubling_bwd_kernel)
    kernels += (softmax_sums_fwd_kernel, softmax_sums_bwd_kernel, largest_class_kernel)
    kernels += (share_sums_kernel, rms_scores_fwd_kernel, rms_scores_bwd_kernel)

    def run(length):
        inputs = convolution_inputs(2, 64, length, 4, dtype=torch.float32, device="cuda")
        gradients(causal_conv1d(**inputs, activation="silu"), inputs)
        gate_inputs = norm_gate_inputs(2, length, 4, 64, dtype=torch.float32, device="cuda")
        gradients(merge_norm_gate(**gate_inputs), gate_inputs)
        map_inputs = map_convolution_inputs(2, length, 2 * length, 64, dtype=torch.float32, device="cuda")
        gradients(depthwise_conv2d(**map_inputs, activation="silu"), map_inputs)
        small_inputs = doubling_inputs(2, length, 2 * length, 16, 16, dtype=torch.float32, device="cuda")
        gradients(bilinear_doubling(**small_inputs), small_inputs)
        scores_inputs = score_inputs(2, length, 2 * length, 4, 96, 4, dtype=torch.float32, device="cuda")
        gradients(rms_scores(**scores_inputs), scores_inputs)
        # Whether images are a multiple of 16 pixels, so that four are loaded at once, is compiled in.
        logits, target = loss_inputs((2, 4, length, 16), torch.float32, "cuda")
        largest_class(logits)
        stacked = stacked_softmax_sums([(logits, [target, target]), (logits[:1], [target[:1], target[:1]])])
        torch.autograd.grad(softmax_sums(logits, target)[3] + stacked.sum(), logits)
        return [sum(len(cache[0]) for cache in kernel.device_caches.values()) for kernel in kernels]

    compiled = run(100)
    assert all(run(length) == compiled for length in (2, 16, 17, 49, 256, 1000))


def test_compiles_with_inductor():
    inputs = norm_gate_inputs(2, 49, 4, 96, dtype=torch.float32, device="cuda")
    sequence = convolution_inputs(2, 96, 49, 4, dtype=torch.float32, device="cuda")

    def block(tensors, sequence):
        return merge_norm_gate(**tensors) + causal_conv1d(**sequence, activation="silu").transpose(1, 2)

    out, expected = torch.compile(block, fullgraph=True)(inputs, sequence), block(inputs, sequence)
    assert_close("out", out, expected, 1e-5)
    truth = gradients(expected, inputs | sequence)
    for name, grad in gradients(out, inputs | sequence).items():
        assert_close(f"d{name}", grad, truth[name], 1e-4)


def test_opcheck():
    from mambaseg.kernels.bilinear_doubling.op import bilinear_doubling_forward
    from mambaseg.kernels.causal_conv1d.op import causal_conv1d_forward, causal_conv1d_step
    from mambaseg.kernels.depthwise_conv2d.op import depthwise_conv2d_forward
    from mambaseg.kernels.norm_gate.op import norm_gate_forward
    from mambaseg.kernels.rms_scores.op import rms_scores_forward
    from mambaseg.kernels.selective_state_update.op import selective_state_step
    from mambaseg.kernels.softmax_sums.op import losses_of_sums_forward, softmax_sums_forward

    x, weight, bias, states = convolution_inputs(
        2, 5, 9, 4, dtype=torch.float32, device="cuda", initial=True, channels_last=False
    ).values()
    x = x.detach().transpose(1, 2).contiguous().requires_grad_()
    torch.library.opcheck(causal_conv1d_forward, (x, weight, bias, states, True))
    step = (torch.randn(2, 5), torch.randn(2, 5, 4), torch.randn(5, 4), torch.randn(5))
    torch.library.opcheck(causal_conv1d_step, (*(tensor.cuda() for tensor in step), True))
    maps = map_convolution_inputs(2, 3, 4, 5, dtype=torch.float32, device="cuda").values()
    torch.library.opcheck(depthwise_conv2d_forward, (*maps, True))
    doubling = doubling_inputs(2, 3, 4, 5, 6, dtype=torch.float32, device="cuda").values()
    torch.library.opcheck(bilinear_doubling_forward, tuple(doubling))
    gate = norm_gate_inputs(2, 3, 4, 5, dtype=torch.float32, device="cuda").values()
    torch.library.opcheck(norm_gate_forward, (*gate, 1e-5, True, torch.float32))
    scores = score_inputs(2, 3, 4, 2, 5, 3, dtype=torch.float32, device="cuda").values()
    torch.library.opcheck(rms_scores_forward, (*scores, 1e-5))
    update = update_inputs(2, 6, 3, groups=2, dtype=torch.float32, device="cuda").values()
    torch.library.opcheck(selective_state_step, tuple(update))
    logits, target = loss_inputs((2, 4, 35), torch.float32, "cuda")
    torch.library.opcheck(softmax_sums_forward, ([logits], [target], [1], 255))
    torch.library.opcheck(losses_of_sums_forward, (*sums_inputs(4, torch.float32, "cuda"), 1e-5))


def test_float64_is_refused_with_the_fix():
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        causal_conv1d(**convolution_inputs(1, 4, 5, 2, device="cuda"))
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        merge_norm_gate(**norm_gate_inputs(1, 4, 5, 2, device="cuda"))
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        softmax_sums(*loss_inputs((1, 4, 5), device="cuda"))
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        losses_of_sums(*sums_inputs(4, device="cuda"), 1e-5)
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        bilinear_doubling(**doubling_inputs(1, 2, 2, 3, device="cuda"))
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        rms_scores(**score_inputs(1, 2, 2, 2, 3, 2, device="cuda"))
