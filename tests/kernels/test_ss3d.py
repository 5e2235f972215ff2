"""The scan of a volume against a slow composition of its definition."""

import pytest
import torch

from mambaseg.kernels import ss2d, ss3d
from mambaseg.kernels.ss3d import DIRECTION_SETS, scan_order, ss3d_reference
from tests.kernels.scan_cases import assert_close, gradients, in_float64, map_inputs, volume_inputs


@pytest.mark.parametrize("name", DIRECTION_SETS)
@pytest.mark.parametrize(("size", "d_state"), [((1, 1, 1), 2), ((2, 3, 4), 1), ((3, 2, 5), 4)])
def test_float64(name, size, d_state):
    directions = DIRECTION_SETS[name]
    inputs = volume_inputs(2, 3, size, d_state, len(directions))
    truth_inputs = in_float64(inputs)
    out = ss3d(**inputs, directions=name)
    truth = ss3d_reference(**truth_inputs, directions=directions)
    assert_close("y", out, truth, 1e-10)
    expected = gradients(truth, truth_inputs)
    for key, grad in gradients(out, inputs).items():
        assert_close(f"d{key}", grad, expected[key], 1e-10)


def test_orders_are_the_written_ones():
    orders = scan_order((2, 1, 3), ("dhw", "-dhw", "hwd", "whd"))
    assert orders.tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [0, 3, 1, 4, 2, 5]]


def test_inter_slice_order_visits_one_voxel_of_each_slice_after_another():
    """SegMamba's: index j * slices + s reads element j of slice s."""
    slices, pixels = 3, 8
    (order,) = scan_order((slices, 2, 4), ("hwd",))
    assert order.tolist() == [s * pixels + j for j in range(pixels) for s in range(slices)]


def test_a_flat_volume_gives_the_scan_of_a_map():
    inputs = map_inputs(1, 4, 3, 5, 2)
    volume = inputs | {"x": inputs["x"].unsqueeze(2)}
    out = ss3d(**volume, directions=("dhw", "dwh", "-dhw", "-dwh"))
    assert_close("y", out.squeeze(2), ss2d(**inputs), 1e-12)


def test_compiles_and_exports():
    inputs = volume_inputs(1, 4, (2, 3, 2), 2, 3)
    expected = ss3d(**inputs, directions="tri_oriented")
    compiled = torch.compile(ss3d, fullgraph=True, backend="aot_eager")(**inputs, directions="tri_oriented")
    assert_close("y", compiled, expected, 1e-12)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ("tri", "not a set of directions"),
        (("dhx", "dhw", "hwd"), "'dhx' is not a direction"),
        (("dhw",), "x_proj_weight has shape"),
    ],
)
def test_wrong_directions_are_named(directions, message):
    inputs = volume_inputs(1, 3, (2, 2, 2), 2, 3)
    with pytest.raises(ValueError, match=message):
        ss3d(**inputs, directions=directions)
