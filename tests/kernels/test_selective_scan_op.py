"""The torch operators: gradients checked numerically, and compiled, exported, autocast and traced like any other."""

import pytest
import torch

from mambaseg.kernels import selective_scan
from mambaseg.kernels.selective_scan.op import selective_scan_backward, selective_scan_forward
from tests.kernels.scan_cases import assert_close, gradients, scan_inputs


def _grouped(requires_grad=True, dtype=torch.float64, rank=0):
    """Return the tensors of the operator: no order, and a weight of the step sizes where there is a rank."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    tensors = [draw(2, 6, 4, 3), draw(2, 6, 4, 3), -draw(4, 3, 2).abs(), draw(2, 6, 4, 2), draw(2, 6, 4, 2)]
    tensors += [draw(4, 3), draw(4, 3) - 1]
    if rank:
        tensors[1] = draw(2, 6, 4, rank)
    tensors = [tensor.requires_grad_(requires_grad) for tensor in tensors]
    return [*tensors, draw(4, 3, rank).requires_grad_(requires_grad) if rank else None, None]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("map_height", [0, 2])
def test_gradcheck(map_height, rank):
    def scan(*tensors):
        return selective_scan_forward(*tensors, True, map_height, True)[:2]

    assert torch.autograd.gradcheck(scan, _grouped(rank=rank))


@pytest.mark.parametrize("map_height", [0, 3])
@pytest.mark.parametrize("with_options", [True, False])
def test_opcheck_forward(map_height, with_options):
    tensors = _grouped(dtype=torch.float32)
    if not with_options:
        tensors[5:] = [None] * 4
    torch.library.opcheck(selective_scan_forward, (*tensors, with_options, map_height, True))


@pytest.mark.parametrize("rank", [0, 3])
def test_opcheck_backward(rank):
    tensors = _grouped(requires_grad=False, rank=rank)
    out, last, states = selective_scan_forward(*tensors, True, 0, True)
    torch.library.opcheck(
        selective_scan_backward, (torch.randn_like(out), torch.randn_like(last), *tensors, states, True, 0)
    )


def test_fake_shapes_equal_real_ones():
    tensors = _grouped(requires_grad=False, dtype=torch.bfloat16)
    real = selective_scan_forward(*tensors, True, 0, True)
    with torch._subclasses.FakeTensorMode() as mode:
        tensors = [tensor if tensor is None else mode.from_tensor(tensor) for tensor in tensors]
        fake = selective_scan_forward(*tensors, True, 0, True)
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_meta_tensors_give_shapes():
    inputs = scan_inputs(2, 6, 50, 4, 2, device="meta")
    assert selective_scan(**inputs, delta_softplus=True).shape == inputs["u"].shape


def test_compiles_without_graph_breaks():
    inputs = scan_inputs(2, 6, 50, 4, 2, gate=True)

    def scan(**arguments):
        return selective_scan(**arguments, delta_softplus=True)

    out = torch.compile(scan, fullgraph=True, backend="aot_eager")(**inputs)
    expected = scan(**inputs)
    assert_close("out", out, expected, 1e-12)
    truth = gradients(expected, inputs)
    for name, grad in gradients(out, inputs).items():
        assert_close(f"d{name}", grad, truth[name], 1e-10)


class _Scan(torch.nn.Module):
    def forward(self, u, delta, A, B, C, D):
        return selective_scan(u, delta, A, B, C, D, delta_softplus=True)


def test_exports_as_one_node():
    inputs = scan_inputs(2, 6, 50, 4, 2, bias=False, requires_grad=False)
    arguments = tuple(inputs[name] for name in ("u", "delta", "A", "B", "C", "D"))
    program = torch.export.export(_Scan(), arguments)
    scans = [node for node in program.graph.nodes if "selective_scan" in str(node.target)]
    assert len(scans) == 1
    torch.testing.assert_close(program.module()(*arguments), _Scan()(*arguments))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_keeps_float32_inputs_and_state(half):
    inputs = scan_inputs(2, 6, 50, 4, 2, dtype=torch.float32)
    expected = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    with torch.autocast("cpu", dtype=half):
        out, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    assert out.dtype == last.dtype == torch.float32
    assert torch.equal(out, expected[0])
    assert torch.equal(last, expected[1])


def test_autocast_takes_mixed_types():
    inputs = scan_inputs(2, 6, 50, 4, 2, dtype=torch.float32)
    mixed = inputs | {name: inputs[name].bfloat16() for name in ("delta", "B", "C")}
    rounded = inputs | {name: inputs[name].bfloat16().float() for name in ("delta", "B", "C")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, last = selective_scan(**mixed, delta_softplus=True, return_last_state=True)
    truth, truth_last = selective_scan(**rounded, delta_softplus=True, return_last_state=True)
    assert last.dtype == torch.float32
    assert torch.equal(last, truth_last)
    assert torch.equal(out, truth)


def test_inference_keeps_no_states():
    tensors = _grouped(requires_grad=False)
    assert selective_scan_forward(*tensors, True, 0, False)[2].numel() == 0


def test_differentiating_without_states_is_refused():
    out, _, _ = selective_scan_forward(*_grouped(), True, 0, False)
    with pytest.raises(RuntimeError, match="save_states=False"):
        out.sum().backward()
