"""Host side of the Triton kernels: layouts, plans, launches, and the sums over shares."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError
from mambaseg.kernels.selective_scan.triton_backward import selective_scan_bwd_kernel
from mambaseg.kernels.selective_scan.triton_forward import segment_ends_kernel, selective_scan_fwd_kernel

WARP = 32
WANTED_PROGRAMS = 1500
"""Programs of one warp that hide each other's latency: some eleven on each multiprocessor of an H100 or H200."""


@dataclass(frozen=True)
class Plan:
    """How one launch divides the work.

    Attributes:
        split: Lanes that share a channel's states.
        steps: Steps whose loads are issued together, and whose states a backward pass keeps in registers.
        segments: Parts of time that run at once.
        keep_decays: Whether a backward pass keeps the decays of its steps in registers too.
        registers: Registers a lane may use; fewer let more programs share a multiprocessor. None: as many as help.
    """

    split: int
    steps: int
    segments: int
    keep_decays: bool = True
    registers: int | None = None


def choose_plan(rows: int, length: int, channels: int, d_state: int, chunk: int, backward: bool) -> Plan:
    """Choose from the sizes; only ``segments`` depends on the length, and it compiles nothing.

    Args:
        rows: batch * groups.
        length: Steps.
        channels: Channels of a group.
        d_state: States of a channel.
        chunk: Steps between saved states; a segment is a whole number of them.
        backward: Whether the backward pass asks.
    """
    states = triton.next_power_of_2(d_state)
    split = min(2, states)
    steps = max(1, (64 if backward else 128) // states)
    steps = min(steps, 4 if backward else 8, chunk)
    programs = rows * _ceil_div(channels, WARP)
    segments = 1
    while programs * segments * 2 <= WANTED_PROGRAMS and length >= 64 * segments * 2:
        segments *= 2
    return Plan(split, steps, segments)


@dataclass(frozen=True)
class _Scan:
    """What the launches of one scan share: the sizes, the plan and the compile-time choices."""

    plan: Plan
    batch: int
    length: int
    groups: int
    channels: int
    d_state: int
    map_height: int
    chunk: int
    softplus: bool
    wide: bool

    @property
    def segment_steps(self) -> int:
        return _ceil_div(_ceil_div(self.length, self.plan.segments), self.chunk) * self.chunk

    @property
    def segments(self) -> int:
        return _ceil_div(self.length, self.segment_steps)

    @property
    def blocks(self) -> int:
        return _ceil_div(self.channels, WARP)

    @property
    def programs(self) -> int:
        return self.batch * self.groups * self.segments * self.blocks

    def sizes(self) -> tuple[int, ...]:
        """Return the arguments that follow the strides of every kernel."""
        map_width = self.length // self.map_height if self.map_height else 0
        return (
            self.length,
            self.groups,
            self.channels,
            self.segments,
            self.segment_steps,
            self.map_height,
            map_width,
        )

    def constants(self) -> dict[str, Any]:
        """Return the compile-time arguments that every kernel takes."""
        return {
            "N": self.d_state,
            "BLOCK_N": triton.next_power_of_2(self.d_state),
            "SPLIT": self.plan.split,
            "STEPS": self.plan.steps,
            "MAP": self.map_height > 0,
            "SOFTPLUS": self.softplus,
            "WIDE": self.wide,
            "num_warps": 1,
            "maxnreg": self.plan.registers,
        }

    def segment_ends(
        self, x: Tensor, delta: Tensor, A: Tensor, matrix: Tensor, bias: Tensor | None, adjoint: bool
    ) -> tuple[Tensor, Tensor]:
        """Run the pass over segments that start from nothing; two unused tensors when there is one segment."""
        if self.segments == 1:
            return x, x
        ends = torch.empty(
            self.batch, self.segments, self.groups, self.d_state, self.channels, dtype=torch.float32, device=x.device
        )
        dt_sums = torch.empty(
            self.batch, self.segments, self.groups, self.channels, dtype=torch.float32, device=x.device
        )
        segment_ends_kernel[(self.programs,)](
            x,
            delta,
            A,
            matrix,
            x if bias is None else bias,
            ends,
            dt_sums,
            *_strides(x, delta),
            *self.sizes(),
            HAS_BIAS=bias is not None,
            ADJOINT=adjoint,
            **self.constants(),
        )
        return ends, dt_sums


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
    chunks = _ceil_div(length, chunk) if save_states else 0
    out = torch.empty(batch, length, groups, channels, dtype=u.dtype, device=u.device)
    last_state = torch.empty(batch, groups, channels, d_state, dtype=torch.float32, device=u.device)
    states = torch.empty(batch, chunks, groups, d_state, channels, dtype=torch.float32, device=u.device)
    u, delta = _inner_contiguous(u), _inner_contiguous(delta)
    A, B, C = A.contiguous(), B.contiguous(), C.contiguous()
    bias = None if delta_bias is None else delta_bias.contiguous()
    plan = choose_plan(batch * groups, length, channels, d_state, chunk, backward=False)
    scan = _Scan(
        plan, batch, length, groups, channels, d_state, map_height, chunk, delta_softplus, _is_wide(out, u, delta)
    )
    with _on_device(u.device):
        ends, dt_sums = scan.segment_ends(u, delta, A, B, bias, adjoint=False)
        selective_scan_fwd_kernel[(scan.programs,)](
            u,
            delta,
            A,
            B,
            C,
            u if D is None else D.contiguous(),
            u if bias is None else bias,
            ends,
            dt_sums,
            out,
            last_state,
            states,
            *_strides(u, delta),
            *scan.sizes(),
            HAS_D=D is not None,
            HAS_BIAS=bias is not None,
            SAVE_STATES=save_states,
            CHUNK=chunk,
            **scan.constants(),
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
    A, B, C = A.contiguous(), B.contiguous(), C.contiguous()
    bias = None if delta_bias is None else delta_bias.contiguous()
    plan = choose_plan(batch * groups, length, channels, d_state, chunk, backward=True)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=u.device)

    grad_u = empty(*u.shape, dtype=u.dtype)
    grad_delta = empty(*delta.shape, dtype=delta.dtype)
    scan = _Scan(
        plan,
        batch,
        length,
        groups,
        channels,
        d_state,
        map_height,
        chunk,
        delta_softplus,
        _is_wide(grad_u, grad_out, u, delta),
    )
    grad_A = empty(batch, scan.segments, groups, d_state, channels)
    grad_matrices = empty(scan.blocks, batch, length, groups, 2, d_state)
    grad_D, grad_bias = (empty(batch, scan.segments, groups, channels) for _ in range(2))
    scratch = empty(scan.programs if chunk > plan.steps else 0, chunk // plan.steps, WARP * scan.constants()["BLOCK_N"])
    with _on_device(u.device):
        ends, dt_sums = scan.segment_ends(grad_out, delta, A, C, bias, adjoint=True)
        selective_scan_bwd_kernel[(scan.programs,)](
            grad_out,
            u if grad_last_state is None else grad_last_state.float().contiguous(),
            u,
            delta,
            A,
            B,
            C,
            u if D is None else D.contiguous(),
            u if bias is None else bias,
            states,
            ends,
            dt_sums,
            scratch,
            grad_u,
            grad_delta,
            grad_A,
            grad_matrices,
            grad_D,
            grad_bias,
            *_strides(grad_out, u, delta),
            batch,
            *scan.sizes(),
            HAS_D=D is not None,
            HAS_BIAS=bias is not None,
            HAS_GRAD_LAST=grad_last_state is not None,
            KEEP_DECAYS=plan.keep_decays,
            CHUNK=chunk,
            **scan.constants(),
        )
    grad_B, grad_C = (grad_matrices[..., matrix, :].sum(0) for matrix in range(2))
    return (
        grad_u,
        grad_delta,
        grad_A.sum((0, 1)).transpose(-1, -2).to(A.dtype).contiguous(),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        grad_D.sum((0, 1)),
        grad_bias.sum((0, 1)),
    )


def _ceil_div(total: int, part: int) -> int:
    return -(-total // part)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Return the strides over batch, time and groups."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _is_wide(*tensors: Tensor) -> bool:
    """Tell whether a row of the batch spans more elements than 32 bits count."""
    return any(tensor.shape[1] * abs(tensor.stride(1)) >= 2**31 for tensor in tensors)


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
