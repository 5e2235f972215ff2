"""The directional scan's operators on a GPU: run with ``pytest -m gpu tests/kernels -n 0``."""

import pytest
import torch

from mambaseg.kernels.directional_scan import directional_scan
from mambaseg.kernels.directional_scan.op import directional_scan_backward, directional_scan_forward
from tests.kernels.scan_cases import assert_close, compare_directional_scans, directional_inputs, gradients

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("no_tf32")]

STAGES = [(56, 192, 6), (28, 384, 12), (14, 768, 24), (7, 1536, 48)]
"""Side of the map, channels, rank."""
AROUND_A_SCAN = 14
"""Kernels that a backward pass may launch beside the scan's own: sums, products in parts, packing."""


def _compare(inputs, dtype, **way):
    """Compare with the plain path in float64 on the CPU, itself tested against the composition."""
    # Half projections round in another order than the truth's.
    tolerances = (1e-5, 1e-4) if dtype == torch.float32 else (2e-2, 5e-2)
    compare_directional_scans(inputs, *tolerances, truth_of=directional_scan, **way)


@pytest.mark.parametrize(("side", "channels", "rank"), STAGES)
@pytest.mark.parametrize("d_state", [16, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mamba_unet_stages(side, channels, rank, d_state, dtype):
    inputs = directional_inputs(2, side * side, channels, 4, d_state, rank, dtype=dtype, device="cuda")
    _compare(inputs, dtype, map_height=side)


@pytest.mark.parametrize("rank", [1, 3, 5, 9, 16, 17, 40])
@pytest.mark.parametrize("d_state", [2, 5, 16, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_odd_sizes_in_any_order(rank, d_state, dtype):
    inputs = directional_inputs(3, 77, 35, 3, d_state, rank, dtype=dtype, device="cuda")
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(77, generator=generator) for _ in range(3)]).to("cuda", torch.int32)
    _compare(inputs, dtype, order=order)


@pytest.mark.parametrize("rank", [6, 12, 24])
def test_autocast(rank):
    inputs = directional_inputs(2, 100, 48, 4, 16, rank, dtype=torch.float32, device="cuda")
    expected = directional_scan(**inputs, map_height=10)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = directional_scan(**inputs, map_height=10)
    assert out.dtype == torch.float32
    assert_close("out", out, expected, 2e-2)
    truth = gradients(expected, inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, truth[name], 5e-2)


@pytest.mark.parametrize(("side", "channels", "rank"), STAGES)
def test_same_call_twice_is_bit_equal(side, channels, rank):
    inputs = directional_inputs(2, side * side, channels, 4, 16, rank, dtype=torch.bfloat16, device="cuda")
    runs = []
    for _ in range(2):
        out = directional_scan(**inputs, map_height=side)
        runs.append([out, *gradients(out, inputs).values()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("rank", [6, 12, 24])
def test_opcheck(rank):
    inputs = directional_inputs(2, 6, 16, 4, 4, rank, dtype=torch.float32, device="cuda")
    torch.library.opcheck(directional_scan_forward, (*inputs.values(), None, 2, torch.float32, True))
    plain = {name: tensor.detach() for name, tensor in inputs.items()}
    out, *saved = directional_scan_forward(*plain.values(), None, 2, torch.float32, True)
    kept = (*saved, plain["dt_projs_bias"], plain["Ds"], None, 2, rank)
    torch.library.opcheck(directional_scan_backward, (torch.randn_like(out), plain["pixels"], *kept))


@pytest.mark.parametrize(("side", "channels", "rank"), STAGES[:3])
def test_passes_launch_few_kernels_and_wait_for_none(side, channels, rank):
    inputs = directional_inputs(16, side * side, channels, 4, 16, rank, dtype=torch.bfloat16, device="cuda")

    def run():
        out = directional_scan(**inputs, map_height=side)
        return torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out))

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    names = [event.name for event in sorted(events, key=lambda event: event.time_range.start)]
    backward = names[names.index("selective_scan_fwd_kernel") + 1 :]
    scan = [name for name in backward if name in ("selective_scan_bwd_kernel", "segment_ends_kernel")]
    # One more fills the gradient that the test starts from.
    assert len(backward) - len(scan) - 1 <= AROUND_A_SCAN, backward
