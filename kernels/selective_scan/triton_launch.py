"""Host side of the Triton kernels: layouts, plans, launches."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.backend import interpreting
from mambaseg.kernels.launch import WARP, inner_contiguous, launch, on_device, refuse_float64
from mambaseg.kernels.selective_scan.inputs import ScanInputs, project_down
from mambaseg.kernels.selective_scan.triton_backward import selective_scan_bwd_kernel
from mambaseg.kernels.selective_scan.triton_forward import segment_ends_kernel, selective_scan_fwd_kernel
from mambaseg.kernels.selective_scan.triton_shares import Shares

TILE_STATES = 8
"""States of one lane: enough to keep the arithmetic units busy between exchanges, few enough to stay in registers."""
FEW_PROGRAMS, ENOUGH_PROGRAMS = 350, 1500
"""Programs of one warp below which time is cut into segments, and to how many: before, the pass that joins segments
costs more than it gains. Measured with 132 multiprocessors (README.md)."""
FULL_RATE_REGISTERS = 168
"""Registers a lane may use where they suffice: three warps a scheduler instead of two."""
ROOMY_RANK = 8
"""Ranks up to this fit in a lane's registers beside what a backward pass holds, or beside whole channels of a lane."""
FEW_STATES = 8
"""Below, a lane has channels of its own, whose weights it holds alone."""


@dataclass(frozen=True)
class Plan:
    """How one launch divides the work.

    Attributes:
        split: Lanes that share a channel's states, a power of two up to 32.
        channels: Channels of a lane, a power of two.
        steps: Steps of a block, whose loads are issued together, and whose states a backward pass keeps in registers.
        segments: Parts of time that run at once.
        registers: Registers a lane may use; fewer let more programs share a multiprocessor. None: as many as help.
    """

    split: int
    channels: int
    steps: int
    segments: int
    registers: int | None = None


def choose_plan(rows: int, length: int, channels: int, d_state: int, rank: int, chunk: int, backward: bool) -> Plan:
    """Choose from the sizes; only ``segments`` depends on the length, and it compiles nothing.

    Args:
        rows: batch * groups.
        length: Steps.
        channels: Channels of a group.
        d_state: States of a channel.
        rank: Coefficients that step sizes are made of inside the kernels, 0 where they are given.
        chunk: Steps between saved states; a segment is a whole number of them.
        backward: Whether the backward pass asks.
    """
    states = triton.next_power_of_2(d_state)

    def split_for(by_lane: int) -> int:
        lanes: int = min(WARP, max(1, by_lane * states // TILE_STATES))
        return lanes

    def padded(by_lane: int) -> int:
        width = WARP // split_for(by_lane) * by_lane
        return _ceil_div(channels, width) * width

    # Four channels a lane halve what a step costs beside its states, and eight steps a block hide what loading them
    # takes; a backward pass has no registers for either. Lanes without a channel would cost more than that.
    choices = (1, 2) if backward else (1, 2, 4)
    by_lane = max(choice for choice in choices if padded(choice) == min(map(padded, choices)))
    split = split_for(by_lane)
    steps = min(4 if backward else 8, chunk)
    programs = rows * padded(by_lane) // (WARP // split * by_lane)
    segments = 1
    if programs < FEW_PROGRAMS:
        while programs * segments < ENOUGH_PROGRAMS and length >= 64 * segments * 2:
            segments *= 2
    return Plan(split, by_lane, steps, segments, None if backward and rank else FULL_RATE_REGISTERS)


@dataclass(frozen=True)
class _Scan:
    """What the launches of one scan share: its inputs as the kernels read them, the plan and compile-time choices."""

    inputs: ScanInputs
    rank: int
    plan: Plan
    chunk: int
    wide: bool

    @classmethod
    def prepare(cls, inputs: ScanInputs, chunk: int, backward: bool, *outputs: Tensor) -> "_Scan":
        refuse_float64("selective_scan", inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C)
        batch, length, groups, channels = inputs.u.shape
        rank = inputs.rank
        plan = choose_plan(batch * groups, length, channels, inputs.d_state, rank, chunk, backward)
        inputs = replace(
            inputs,
            u=inner_contiguous(inputs.u),
            delta=inner_contiguous(inputs.delta),
            A=inputs.A.contiguous(),
            B=inner_contiguous(inputs.B),
            C=inner_contiguous(inputs.C),
            D=None if inputs.D is None else inputs.D.contiguous(),
            delta_bias=None if inputs.delta_bias is None else inputs.delta_bias.contiguous(),
            dt_weight=None if inputs.dt_weight is None else _pad_rank(inputs.dt_weight),
            order=None if inputs.order is None else inputs.order.to(torch.int32).contiguous(),
        )
        return cls(inputs, rank, plan, chunk, _is_wide(inputs.u, inputs.delta, inputs.B, inputs.C, *outputs))

    @property
    def batch(self) -> int:
        return self.inputs.u.shape[0]

    @property
    def length(self) -> int:
        return self.inputs.u.shape[1]

    @property
    def groups(self) -> int:
        return self.inputs.u.shape[2]

    @property
    def channels(self) -> int:
        return self.inputs.u.shape[3]

    @property
    def segment_steps(self) -> int:
        return _ceil_div(_ceil_div(self.length, self.plan.segments), self.chunk) * self.chunk

    @property
    def segments(self) -> int:
        return _ceil_div(self.length, self.segment_steps)

    @property
    def blocks(self) -> int:
        return _ceil_div(self.channels, WARP // self.plan.split * self.plan.channels)

    @property
    def programs(self) -> int:
        return self.batch * self.groups * self.segments * self.blocks

    @property
    def lane_states(self) -> int:
        """States that one lane holds."""
        states: int = triton.next_power_of_2(self.inputs.d_state) // self.plan.split
        return states * self.plan.channels

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=self.inputs.u.device)

    def optional(self, tensor: Tensor | None) -> Tensor:
        """Return a tensor, or where it is absent any other, whose address a kernel takes but does not read."""
        return self.inputs.u if tensor is None else tensor

    def sizes(self) -> tuple[int, ...]:
        """Return the arguments that follow the strides of every kernel."""
        map_height = self.inputs.map_height
        map_width = self.length // map_height if map_height else 0
        return (
            self.length, self.groups, self.channels, self.segments, self.segment_steps, map_height, map_width,
        )  # fmt: skip

    def constants(self) -> dict[str, Any]:
        """Return the compile-time arguments that every kernel takes."""
        return {
            "N": self.inputs.d_state,
            "BLOCK_N": triton.next_power_of_2(self.inputs.d_state),
            "RANK": self.rank,
            "BLOCK_R": self.inputs.rank,
            "SPLIT": self.plan.split,
            "CHANNELS": self.plan.channels,
            "STEPS": self.plan.steps,
            "ORDER": self.order(),
            "HAS_BIAS": self.inputs.delta_bias is not None,
            "SOFTPLUS": self.inputs.delta_softplus,
            "WIDE": self.wide,
            "num_warps": 1,
            "maxnreg": self.plan.registers,
        }

    def order(self) -> int:
        """Return how the kernels find positions, see ``find_path``."""
        if self.inputs.order is not None:
            return 2
        height = self.inputs.map_height
        if not height:
            return 0
        whole_blocks = height % self.plan.steps == 0 and self.length // height % self.plan.steps == 0
        return 3 if whole_blocks else 1

    def segment_ends(self, x: Tensor, matrix: Tensor, adjoint: bool) -> tuple[Tensor, Tensor]:
        """Run the pass over segments that start from nothing; two unused tensors when there is one segment."""
        if self.segments == 1:
            return self.inputs.A, self.inputs.A
        inputs = self.inputs
        ends = self.empty(self.batch, self.segments, self.groups, self.channels, inputs.d_state)
        dt_sums = self.empty(self.batch, self.segments, self.groups, self.channels)
        launch(segment_ends_kernel, self.programs // self.segments * (self.segments - 1))(
            x,
            inputs.delta,
            self.optional(inputs.dt_weight),
            inputs.A,
            matrix,
            self.optional(inputs.delta_bias),
            self.optional(inputs.order),
            ends,
            dt_sums,
            *_strides(x, inputs.delta, matrix),
            *self.sizes(),
            ADJOINT=adjoint,
            **self.constants(),
        )
        return ends, dt_sums


def forward(inputs: ScanInputs, chunk: int, save_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; arguments and results of ``chunked.forward``."""
    if inputs.rank > ROOMY_RANK and inputs.d_state < FEW_STATES:
        inputs = with_step_sizes(inputs)
    out = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    scan = _Scan.prepare(inputs, chunk, False, out)
    inputs = scan.inputs
    chunks = _ceil_div(scan.length, chunk) if save_states else 0
    last_state = scan.empty(scan.batch, scan.groups, scan.channels, inputs.d_state)
    states = scan.empty(scan.batch, chunks, scan.groups, scan.channels, inputs.d_state)
    with on_device(out.device):
        ends, dt_sums = scan.segment_ends(inputs.u, inputs.B, adjoint=False)
        launch(selective_scan_fwd_kernel, scan.programs)(
            inputs.u,
            inputs.delta,
            scan.optional(inputs.dt_weight),
            inputs.A,
            inputs.B,
            inputs.C,
            scan.optional(inputs.D),
            scan.optional(inputs.delta_bias),
            scan.optional(inputs.order),
            ends,
            dt_sums,
            out,
            last_state,
            states,
            *_strides(inputs.u, inputs.delta, inputs.B, inputs.C),
            *scan.sizes(),
            int(save_states),
            HAS_D=inputs.D is not None,
            CHUNK=chunk,
            **scan.constants(),
        )
    return out, last_state, states


def backward(
    grad_out: Tensor, grad_last_state: Tensor | None, inputs: ScanInputs, states: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """Differentiate ``forward``; arguments and results of ``chunked.backward``."""
    if inputs.rank > ROOMY_RANK:
        return _backward_through_step_sizes(grad_out, grad_last_state, inputs, states, chunk)
    shares = backward_shares(grad_out, grad_last_state, inputs, states, chunk)
    grad_B, grad_C = (_empty_contiguous(matrix) for matrix in (inputs.B, inputs.C))
    grad_coefficients = _empty_contiguous(inputs.delta) if inputs.rank else None
    shares.sum_rows(grad_B, grad_C, grad_coefficients)
    grad_A, *grads = shares.sum_parameters(inputs.A.dtype, inputs.rank)
    grad_delta = shares.delta if grad_coefficients is None else grad_coefficients
    return shares.u, grad_delta, grad_A, grad_B, grad_C, *grads


def backward_shares(
    grad_out: Tensor, grad_last_state: Tensor | None, inputs: ScanInputs, states: Tensor, chunk: int
) -> Shares:
    """Run the backward pass but its sums; arguments of ``chunked.backward``, with a rank up to ``ROOMY_RANK``."""
    grad_out = inner_contiguous(grad_out)
    grad_u = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    scan = _Scan.prepare(inputs, chunk, True, grad_out, grad_u)
    inputs, plan = scan.inputs, scan.plan
    d_state, rank = inputs.d_state, scan.rank
    grad_delta = grad_u if rank else scan.empty(*inputs.delta.shape, dtype=inputs.delta.dtype)
    grad_A = scan.empty(scan.batch, scan.segments, scan.groups, scan.channels, d_state)
    grad_rows = scan.empty(scan.blocks, scan.batch, scan.length, scan.groups, 2 * d_state + rank)
    grad_D, grad_bias = (scan.empty(scan.batch, scan.segments, scan.groups, scan.channels) for _ in range(2))
    grad_weight = scan.empty(scan.batch, scan.segments, scan.groups, scan.channels, inputs.rank)
    scratch = scan.empty(scan.programs if chunk > plan.steps else 0, chunk // plan.steps, scan.lane_states * WARP)
    with on_device(grad_u.device):
        ends, dt_sums = scan.segment_ends(grad_out, inputs.C, adjoint=True)
        launch(selective_scan_bwd_kernel, scan.programs)(
            grad_out,
            scan.optional(None if grad_last_state is None else grad_last_state.float().contiguous()),
            inputs.u,
            inputs.delta,
            scan.optional(inputs.dt_weight),
            inputs.A,
            inputs.B,
            inputs.C,
            scan.optional(inputs.D),
            scan.optional(inputs.delta_bias),
            scan.optional(inputs.order),
            states,
            ends,
            dt_sums,
            scratch,
            grad_u,
            grad_delta,
            grad_A,
            grad_rows,
            grad_D,
            grad_bias,
            grad_weight,
            *_strides(grad_out, inputs.u, inputs.delta, inputs.B, inputs.C),
            scan.batch,
            *scan.sizes(),
            HAS_D=inputs.D is not None,
            HAS_GRAD_LAST=grad_last_state is not None,
            PREFETCH=not interpreting(),
            CHUNK=chunk,
            **scan.constants(),
        )
    return Shares(grad_u, grad_delta, grad_rows, grad_A, grad_D, grad_bias, grad_weight, rank)


def with_step_sizes(inputs: ScanInputs) -> ScanInputs:
    """Return inputs whose step sizes are in memory, for as long as a pass takes."""
    return replace(inputs, delta=inputs.step_sizes(), dt_weight=None)


def _backward_through_step_sizes(
    grad_out: Tensor, grad_last_state: Tensor | None, inputs: ScanInputs, states: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """Differentiate with step sizes, and then their gradients, in memory."""
    grad_u, grad_delta, *others, _ = backward(grad_out, grad_last_state, with_step_sizes(inputs), states, chunk)
    grad_coefficients, grad_weight = project_down(grad_delta, inputs)
    return grad_u, grad_coefficients, *others, grad_weight.float()


def _pad_rank(weight: Tensor) -> Tensor:
    """Fill up (G, D, R) with zeros to a power of two, which the kernels unroll over."""
    missing = triton.next_power_of_2(weight.shape[-1]) - weight.shape[-1]
    return F.pad(weight, (0, missing)) if missing else weight.contiguous()


def _empty_contiguous(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _ceil_div(total: int, part: int) -> int:
    return -(-total // part)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Return the strides over batch, time and groups."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _is_wide(*tensors: Tensor) -> bool:
    """Tell whether a row of the batch spans more elements than 32 bits count."""
    return any(tensor.shape[1] * abs(tensor.stride(1)) >= 2**31 for tensor in tensors)
