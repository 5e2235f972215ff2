"""Host side of the Triton kernels: layouts, tile sizes, launches, and the sums over shares."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError
from mambaseg.kernels.selective_scan.triton_kernels import selective_scan_bwd_kernel, selective_scan_fwd_kernel

WANTED_PROGRAMS = 1500
"""Programs of one warp that hide each other's latency: some eleven on each multiprocessor of an H100 or H200."""

STATES_PER_LANE = 8
"""States a lane keeps in registers; twice as many make the backward pass spill (compiled for sm_90)."""


@dataclass(frozen=True)
class Tile:
    """What one program of one warp works on.

    Attributes:
        channels: Channels a program owns.
        steps: Steps whose loads are issued together, and whose states a backward pass keeps in registers.
    """

    channels: int
    steps: int


def choose_tile(rows: int, channels: int, d_state: int, backward: bool) -> Tile:
    """Choose from sizes other than the length, so that a new length compiles nothing.

    Args:
        rows: batch * groups.
        channels: Channels of a group.
        d_state: States of a channel.
        backward: Whether the backward pass asks: its registers hold more per step, and a narrow tile costs it more
            shares of the gradients of B and C.
    """
    padded_states = triton.next_power_of_2(d_state)
    block = max(8, min(32, STATES_PER_LANE * 32 // padded_states))
    if not backward and rows * triton.cdiv(channels, block) < WANTED_PROGRAMS:
        block = 8
    states_per_lane = max(1, padded_states * block // 32)
    steps = min(4, 32 // states_per_lane) if backward else min(8, 64 // states_per_lane)
    return Tile(block, max(1, steps))


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    map_height: int,
    chunk: int,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; arguments and results of ``chunked.forward``."""
    _refuse_float64(u, delta, A, B, C)
    batch, length, groups, channels = u.shape
    d_state = A.shape[-1]
    chunks = triton.cdiv(length, chunk) if save_states else 0
    out = torch.empty(batch, length, groups, channels, dtype=u.dtype, device=u.device)
    last_state = torch.empty(batch, groups, channels, d_state, dtype=torch.float32, device=u.device)
    states = torch.empty(batch, chunks, groups, d_state, channels, dtype=torch.float32, device=u.device)
    u, delta = _inner_contiguous(u), _inner_contiguous(delta)
    tile = choose_tile(batch * groups, channels, d_state, backward=False)
    grid = (batch * groups * triton.cdiv(channels, tile.channels),)
    with _on_device(u.device):
        selective_scan_fwd_kernel[grid](
            u,
            delta,
            A.contiguous(),
            B.contiguous(),
            C.contiguous(),
            u if D is None else D.contiguous(),
            u if delta_bias is None else delta_bias.contiguous(),
            out,
            last_state,
            states,
            *(stride for tensor in (u, delta) for stride in tensor.stride()[:3]),
            length,
            groups,
            channels,
            d_state,
            map_height,
            length // map_height if map_height else 0,
            MAP=map_height > 0,
            HAS_D=D is not None,
            HAS_BIAS=delta_bias is not None,
            SOFTPLUS=delta_softplus,
            SAVE_STATES=save_states,
            CHUNK=chunk,
            STEPS=tile.steps,
            BLOCK_D=tile.channels,
            BLOCK_N=triton.next_power_of_2(d_state),
            num_warps=1,
        )
    return out, last_state, states


def backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
    map_height: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate ``forward``; arguments and results of ``chunked.backward``."""
    batch, length, groups, channels = u.shape
    d_state = A.shape[-1]
    grad_out, u, delta = (_inner_contiguous(tensor) for tensor in (grad_out, u, delta))
    tile = choose_tile(batch * groups, channels, d_state, backward=True)
    blocks = triton.cdiv(channels, tile.channels)
    programs = batch * groups * blocks
    block_n = triton.next_power_of_2(d_state)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=u.device)

    scratch = empty(programs, chunk // tile.steps, block_n, tile.channels)
    grad_u = empty(*u.shape, dtype=u.dtype)
    grad_delta = empty(*delta.shape, dtype=delta.dtype)
    grad_A = empty(batch, groups, d_state, channels)
    grad_B, grad_C = (empty(blocks, batch, length, groups, d_state) for _ in range(2))
    grad_D, grad_bias = (empty(batch, groups, channels) for _ in range(2))
    with _on_device(u.device):
        selective_scan_bwd_kernel[(programs,)](
            grad_out,
            u if grad_last_state is None else grad_last_state.float().contiguous(),
            u,
            delta,
            A.contiguous(),
            B.contiguous(),
            C.contiguous(),
            u if D is None else D.contiguous(),
            u if delta_bias is None else delta_bias.contiguous(),
            states,
            scratch,
            grad_u,
            grad_delta,
            grad_A,
            grad_B,
            grad_C,
            grad_D,
            grad_bias,
            *(stride for tensor in (grad_out, u, delta) for stride in tensor.stride()[:3]),
            batch,
            length,
            groups,
            channels,
            d_state,
            map_height,
            length // map_height if map_height else 0,
            MAP=map_height > 0,
            HAS_D=D is not None,
            HAS_BIAS=delta_bias is not None,
            HAS_GRAD_LAST=grad_last_state is not None,
            SOFTPLUS=delta_softplus,
            CHUNK=chunk,
            STEPS=tile.steps,
            BLOCK_D=tile.channels,
            BLOCK_N=block_n,
            num_warps=1,
        )
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0).transpose(-1, -2).to(A.dtype).contiguous(),
        grad_B.sum(0).to(B.dtype),
        grad_C.sum(0).to(C.dtype),
        grad_D.sum(0),
        grad_bias.sum(0),
    )


def _inner_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself when its last axis has stride 1, else a copy: the kernels read whole rows."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _refuse_float64(*tensors: Tensor) -> None:
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        raise ScanBackendError(
            "the Triton scan accumulates in float32 and takes no float64: cast the inputs, move them to the CPU, "
            "or set MAMBASEG_SCAN_BACKEND=cpu"
        )


@contextlib.contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """Make a tensor's GPU current: Triton launches on the current one, whichever tensors it is given."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield
