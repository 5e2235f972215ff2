"""The decoding step: equal to the selective scan step by step, and a torch operator that overwrites its state."""

import pytest
import torch

from mambaseg.kernels import selective_scan
from mambaseg.kernels.selective_state_update import selective_state_update, selective_state_update_reference
from mambaseg.kernels.selective_state_update.op import selective_state_step
from tests.kernels.block_cases import update_inputs
from tests.kernels.scan_cases import assert_close, in_float64, scan_inputs


@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("options", [{}, {"gate": True}, {"skip": False, "bias": False}])
def test_steps_equal_the_scan(groups, softplus, options):
    inputs = scan_inputs(2, 6, 15, 4, groups, requires_grad=False, **options)
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() + 6
    expected, last = selective_scan(**inputs, delta_softplus=softplus, return_last_state=True)
    state = torch.zeros(2, 6, 4, dtype=torch.float64)
    for t in range(15):
        x, dt, B, C = (inputs[name][..., t] for name in ("u", "delta", "B", "C"))
        z = None if inputs["z"] is None else inputs["z"][..., t]
        out = selective_state_update(
            state, x, dt, inputs["A"], B, C, inputs["D"], z, inputs["delta_bias"], dt_softplus=softplus
        )
        assert_close(f"step {t}", out, expected[..., t], 1e-12)
    assert_close("last state", state, last, 1e-12)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_half_inputs_keep_their_type_and_the_state_its_own(state_dtype):
    inputs = update_inputs(3, 10, 4, 2, dtype=torch.bfloat16)
    inputs["state"] = inputs["state"].to(state_dtype)
    truth_inputs = in_float64(inputs)
    truth_inputs["state"].requires_grad_(False)
    out = selective_state_update(**inputs)
    truth = selective_state_update_reference(**truth_inputs).detach()
    assert out.dtype == torch.bfloat16
    assert inputs["state"].dtype == state_dtype
    assert_close("out", out, truth, 4e-3)
    assert_close("state", inputs["state"], truth_inputs["state"], 4e-3)


def test_strided_state_is_written_in_place():
    inputs = update_inputs(2, 6, 3)
    cache = torch.full((2, 3, 6, 2), float("nan"), dtype=torch.float64)
    cache[..., 0] = inputs["state"].transpose(1, 2)
    view = cache[..., 0].transpose(1, 2)
    out = selective_state_update(**inputs | {"state": view})
    assert torch.equal(out, selective_state_update(**inputs))
    assert torch.equal(view, inputs["state"])
    assert cache[..., 1].isnan().all()


def test_forced_reference_is_the_definition(monkeypatch):
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    inputs, twin = update_inputs(2, 6, 3), update_inputs(2, 6, 3)
    assert torch.equal(selective_state_update(**inputs), selective_state_update_reference(**twin))
    assert torch.equal(inputs["state"], twin["state"])


def test_takes_no_gradient():
    inputs = update_inputs(2, 6, 3)
    inputs["x"].requires_grad_()
    assert not selective_state_update(**inputs).requires_grad


@pytest.mark.parametrize(
    ("name", "shape"), [("x", (2, 7)), ("dt", (3, 6)), ("A", (6, 2)), ("B", (2, 4)), ("C", (2, 2, 3)), ("z", (2, 3))]
)
def test_wrong_shapes_are_named(name, shape):
    with pytest.raises(ValueError, match=f"{name if name != 'B' else '[BC]'} has shape"):
        selective_state_update(**update_inputs(2, 6, 3) | {name: torch.zeros(shape)})


def test_groups_must_divide_channels():
    with pytest.raises(ValueError, match="4 groups must divide dim 6"):
        selective_state_update(**update_inputs(2, 6, 3, groups=4))


@pytest.mark.parametrize("options", [True, False])
def test_opcheck(options):
    inputs = update_inputs(2, 6, 3, groups=2, dtype=torch.float32, options=options)
    torch.library.opcheck(selective_state_step, tuple(inputs.values()))


def test_compiles_without_graph_breaks():
    inputs, twin = update_inputs(2, 6, 3), update_inputs(2, 6, 3)
    out = torch.compile(selective_state_update, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(out, selective_state_update(**twin))
    torch.testing.assert_close(inputs["state"], twin["state"])


class _Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(2, 6, 3, dtype=torch.float64))

    def forward(self, x, dt, A, B, C):
        return selective_state_update(self.state, x, dt, A, B, C, dt_softplus=True)


def test_exports_and_still_writes_the_state():
    inputs = update_inputs(2, 6, 3)
    arguments = tuple(inputs[name] for name in ("x", "dt", "A", "B", "C"))
    step, exported = _Step(), _Step()
    program = torch.export.export(exported, arguments).module()
    for _ in range(2):
        torch.testing.assert_close(program(*arguments), step(*arguments))
    torch.testing.assert_close(program.state, step.state)
    assert step.state.any()
