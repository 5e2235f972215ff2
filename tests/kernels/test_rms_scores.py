"""Scores over the lengths of vectors: values and every gradient against the definition, and as torch operators."""

import pytest
import torch
from torch.nn import functional as F

from mambaseg.kernels.rms_scores import rms_scores, rms_scores_reference
from mambaseg.kernels.rms_scores.op import rms_scores_backward, rms_scores_forward
from mambaseg.kernels.rms_scores.reference import as_map, as_patches
from tests.kernels.block_cases import score_inputs
from tests.kernels.scan_cases import assert_close, gradients, in_float64

SIZES = [(1, 1, 1, 1, 1, 1), (2, 3, 5, 2, 6, 3), (2, 2, 3, 4, 24, 4), (1, 3, 2, 3, 33, 2)]


def _compare(inputs, tolerance):
    truth_inputs = in_float64(inputs)
    out, truth = rms_scores(**inputs), rms_scores_reference(**truth_inputs)
    assert out.dtype == inputs["scores"].dtype
    assert out.is_contiguous()
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], tolerance)


def test_definition_is_a_classifier_behind_layer_norm():
    vectors = score_inputs(2, 3, 5, 2, 6, 4)["vectors"].detach()
    centred = vectors - vectors.mean(-1, keepdim=True)
    weight, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    logits = rms_scores_reference(centred, F.linear(centred, weight), bias, 1e-3)
    expected = F.linear(F.layer_norm(vectors, (6,), eps=1e-3), weight, bias)
    for row in range(6):
        for column in range(10):
            pixel = expected[:, row // 2, column // 2, row % 2 * 2 + column % 2]
            torch.testing.assert_close(logits[:, :, row, column], pixel)


def test_maps_and_patches_are_each_others_inverse():
    values = torch.randn(2, 3, 5, 9, 4)
    assert torch.equal(as_patches(as_map(values), 3), values)


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes(sizes):
    _compare(score_inputs(*sizes), 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_types(dtype, tolerance):
    _compare(score_inputs(2, 3, 5, 4, 24, 4, dtype), tolerance)


def test_any_strides():
    inputs = score_inputs(2, 3, 5, 2, 6, 3)
    for name in ("vectors", "scores"):
        inputs[name] = inputs[name].detach().transpose(0, 4).contiguous().transpose(0, 4).requires_grad_()
    _compare(inputs, 1e-12)


def test_vectors_of_nothing_have_finite_gradients():
    inputs = score_inputs(1, 2, 2, 2, 4, 3, dtype=torch.float32)
    inputs["vectors"] = torch.zeros_like(inputs["vectors"]).requires_grad_()
    grads = gradients(rms_scores(**inputs), inputs)
    assert not grads["vectors"].any()
    assert grads["scores"].isfinite().all()


def test_forced_reference_is_the_definition(monkeypatch):
    inputs = score_inputs(2, 3, 5, 2, 6, 3)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(rms_scores(**inputs), rms_scores_reference(**inputs))


def test_same_call_twice_is_bit_equal():
    inputs = score_inputs(2, 7, 9, 4, 24, 4, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = rms_scores(**inputs)
        runs.append([out, *gradients(out, inputs).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vectors", (2, 3, 5, 3, 6)), ("vectors", (2, 3, 6)), ("scores", (2, 3, 5, 4, 2)), ("shift", (3, 1))],
)
def test_wrong_shapes_are_named(name, shape):
    inputs = score_inputs(2, 3, 5, 2, 6, 3, requires_grad=False) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"vectors \(B, H, W" if name == "vectors" else f"{name} has shape"):
        rms_scores(**inputs)


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_gradcheck(sizes):
    assert torch.autograd.gradcheck(rms_scores, tuple(score_inputs(*sizes).values()))


def test_opcheck():
    inputs = score_inputs(2, 3, 4, 2, 5, 3, dtype=torch.float32)
    torch.library.opcheck(rms_scores_forward, (*inputs.values(), 1e-5))
    vectors, scores, _ = (value.detach() for value in inputs.values())
    torch.library.opcheck(rms_scores_backward, (torch.randn(2, 3, 6, 8), vectors, scores, torch.rand(2, 6, 8)))


def test_meta_tensors_give_shapes():
    inputs = score_inputs(2, 3, 5, 4, 6, 3, device="meta")
    assert rms_scores(**inputs).shape == (2, 3, 12, 20)


def test_compiles_without_graph_breaks():
    inputs = score_inputs(2, 3, 5, 2, 6, 3)
    out = torch.compile(rms_scores, fullgraph=True, backend="aot_eager")(**inputs)
    expected = rms_scores(**inputs)
    assert_close("out", out, expected, 1e-12)
    truth = gradients(expected, inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, truth[name], 1e-10)


class _Scores(torch.nn.Module):
    def forward(self, vectors, scores, shift):
        return rms_scores(vectors, scores, shift)


def test_exports_as_one_node():
    arguments = tuple(score_inputs(2, 3, 5, 2, 6, 3, requires_grad=False).values())
    program = torch.export.export(_Scores(), arguments)
    assert sum("rms_scores" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(*arguments), _Scores()(*arguments))


def test_autocast_keeps_float32():
    inputs = score_inputs(2, 3, 5, 2, 6, 3, dtype=torch.float32)
    expected = rms_scores(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rms_scores(**inputs), expected)


@pytest.mark.parametrize("channels", [1, 8, 24, 33, 96, 100, 768, 5000, 8192])
@pytest.mark.parametrize("classes", [1, 4, 14, 256])
def test_tiles_hold_whole_pixels(channels, classes):
    launch = pytest.importorskip("mambaseg.kernels.rms_scores.triton_launch")
    tile = launch.choose_tile(channels, classes)
    assert classes <= tile.classes < 2 * classes
    assert tile.pixels >= 1
    assert tile.pixels * tile.chunk <= launch.CHUNK_VALUES
    chunks = -(-channels // tile.chunk)
    assert chunks <= 4
    assert chunks * tile.chunk < 1.5 * channels or tile.chunk == launch.FEWEST_OF_CHUNK


@pytest.mark.parametrize(("channels", "classes"), [(8193, 2), (4, 257)])
def test_too_much_for_a_program_is_refused_with_the_fix(channels, classes):
    launch = pytest.importorskip("mambaseg.kernels.rms_scores.triton_launch")
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        launch.choose_tile(channels, classes)
