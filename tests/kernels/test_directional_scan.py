"""The directional scan's operators against the composition that autograd differentiates, and as torch takes them."""

import pytest
import torch

from mambaseg.kernels.directional_scan import directional_scan, directional_scan_reference
from mambaseg.kernels.directional_scan.op import directional_scan_backward, directional_scan_forward
from mambaseg.kernels.directional_scan.plain import pack_parameters
from mambaseg.kernels.directional_scan.projection import Layout
from tests.kernels.scan_cases import assert_close, compare_directional_scans, directional_inputs, gradients

RANKS = [2, 5, 12, 18]
"""Not stretched; stretched, part of which the scan reads; all of which it reads; and with step sizes made outside."""
WAYS = [{"map_height": 2}, {"order": torch.tensor([[3, 1, 0, 2, 4, 5], [5, 4, 3, 2, 1, 0]], dtype=torch.int32)}]
"""Six positions as a map, and in a table of orders."""


def _inputs(rank, d_state=2, way=WAYS[0], **options):
    return directional_inputs(2, 6, 3, 4 if "map_height" in way else 2, d_state, rank, **options)


def _operands(inputs):
    """Return the arguments of the forward operator."""
    return (*inputs.values(), None, 2, inputs["pixels"].dtype, True)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("d_state", [1, 4])
@pytest.mark.parametrize("way", WAYS)
def test_float64(rank, d_state, way):
    compare_directional_scans(_inputs(rank, d_state, way), 1e-10, 1e-10, **way)


@pytest.mark.parametrize("rank", RANKS)
def test_float32(rank):
    inputs = directional_inputs(2, 40, 20, 4, 16, rank, dtype=torch.float32)
    compare_directional_scans(inputs, 1e-5, 1e-4, map_height=5)


@pytest.mark.parametrize("rank", RANKS)
def test_bfloat16(rank):
    # Every projection rounds to 8 bits of mantissa and the rounded step sizes feed the scan.
    inputs = directional_inputs(2, 30, 8, 4, 4, rank, dtype=torch.bfloat16)
    compare_directional_scans(inputs, 2e-2, 5e-2, map_height=6)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("d_state", "way"), [(1, WAYS[0]), (2, WAYS[1]), (5, WAYS[1])])
def test_gradcheck(rank, d_state, way):
    inputs = directional_inputs(1, 6, 2, 4 if "map_height" in way else 2, d_state, rank)

    def scan(*tensors):
        return directional_scan(*tensors, **way)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@pytest.mark.parametrize("rank", RANKS)
def test_opcheck(rank):
    inputs = _inputs(rank, dtype=torch.float32)
    torch.library.opcheck(directional_scan_forward, _operands(inputs))
    plain = {name: tensor.detach() for name, tensor in inputs.items()}
    out, *saved = directional_scan_forward(*_operands(plain))
    kept = (*saved, plain["dt_projs_bias"], plain["Ds"], None, 2, rank)
    torch.library.opcheck(directional_scan_backward, (torch.randn_like(out), plain["pixels"], *kept))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("save", [True, False])
def test_fake_shapes_equal_real_ones(rank, save):
    operands = (*_operands(_inputs(rank, dtype=torch.bfloat16))[:-1], save)
    real = directional_scan_forward(*operands)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in operands]
        fake = directional_scan_forward(*fakes)
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@pytest.mark.parametrize("rank", RANKS)
def test_compiles_without_graph_breaks(rank):
    inputs = _inputs(rank)
    expected = directional_scan(**inputs, map_height=2)
    out = torch.compile(directional_scan, fullgraph=True, backend="aot_eager")(**inputs, map_height=2)
    assert_close("out", out, expected, 1e-12)
    truth = gradients(expected, inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, truth[name], 1e-10)


class _Scan(torch.nn.Module):
    def forward(self, *tensors):
        return directional_scan(*tensors, map_height=2)


def test_exports_as_one_node():
    arguments = tuple(tensor.detach() for tensor in _inputs(12).values())
    program = torch.export.export(_Scan(), arguments)
    scans = [node for node in program.graph.nodes if "scan" in str(node.target)]
    assert len(scans) == 1
    torch.testing.assert_close(program.module()(*arguments), _Scan()(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", RANKS)
def test_autocast_projects_in_half(rank, dtype):
    """As the composition does; gradients come in the types of what they are of."""
    inputs = directional_inputs(2, 30, 8, 4, 4, rank, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = directional_scan(**inputs, map_height=5)
        expected = directional_scan_reference(**inputs, map_height=5)
        grads = gradients(out, inputs)
    assert out.dtype == dtype
    assert_close("out", out, expected, 2e-2)
    for name, truth in gradients(expected, inputs).items():
        assert grads[name].dtype == inputs[name].dtype
        assert_close(f"d{name}", grads[name], truth, 5e-2)


def test_the_reference_can_be_asked_for(monkeypatch):
    inputs = _inputs(5)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    assert torch.equal(directional_scan(**inputs, map_height=2), directional_scan_reference(**inputs, map_height=2))


def test_inference_keeps_nothing():
    with torch.no_grad():
        _, *saved = directional_scan_forward(*_operands(_inputs(18))[:-1], False)
    assert all(tensor.numel() == 0 for tensor in saved)


def test_differentiating_what_was_not_kept_is_refused():
    out, *_ = directional_scan_forward(*_operands(_inputs(5))[:-1], False)
    with pytest.raises(RuntimeError, match="save=False"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("rank", "d_state", "columns", "scan_rank"),
    [(3, 1, 3 + 2, 3), (4, 16, 16 + 32, 4), (6, 16, 16 + 32, 8), (16, 2, 16 + 4, 16), (24, 17, 32 + 64, 32)],
)
def test_parts_start_at_whole_blocks(rank, d_state, columns, scan_rank):
    layout = Layout(4, rank, d_state)
    assert (layout.columns, layout.scan_rank) == (4 * columns, scan_rank)


def test_packing_a_weight_stretches_it_with_zeros():
    layout = Layout(2, 5, 4)
    x_proj_weight = torch.arange(1.0, 2 * 13 * 3 + 1).view(2, 13, 3)
    weight, dt_weight, _ = pack_parameters(x_proj_weight, torch.ones(2, 3, 5), torch.zeros(6, 4), layout, torch.float32)
    coefficients, B, C = layout.split(weight.t())
    assert torch.equal(coefficients[:, 1, :5], x_proj_weight[1, :5].t())
    assert torch.equal(B[:, 0, :4], x_proj_weight[0, 5:9].t())
    assert torch.equal(C[:, 1, :4], x_proj_weight[1, 9:].t())
    assert weight.count_nonzero() == x_proj_weight.numel()
    assert dt_weight.shape == (2, 3, 8)
    assert dt_weight.sum() == 2 * 3 * 5
