"""The selective scan in plain torch, fast: bulk operations over a chunk of time, and ``recur_`` along it.

States are laid out (time, batch, group, state, channel), so the innermost axis is long, and only a chunk of them exists
at any moment. The backward pass walks the chunks in reverse and recomputes each from its saved first state; README.md
derives it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.selective_scan.inputs import ScanInputs, project_down
from mambaseg.kernels.selective_scan.recurrence import recur_

STEP_ELEMENTS = 1 << 15
"""States handled by one step: larger batches are cut, so that a chunk stays in the processor's cache."""


def forward(inputs: ScanInputs, chunk: int, save_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan.

    Args:
        inputs: The arguments of ``grouped_scan``.
        chunk: Steps of a chunk.
        save_states: Whether to keep the chunks' first states.

    Returns:
        out (batch, L, G, D) of ``u``'s type, last state (batch, G, D, N), and the states before each chunk
        (batch, chunks, G, D, N), with no chunks when they are not to be kept.
    """
    scan = _Sequences.prepare(inputs)
    length, batch, groups, channels = scan.u.shape
    chunks = -(-length // chunk) if save_states else 0
    states = scan.u.new_empty(batch, chunks, groups, channels, inputs.d_state)
    last_state = scan.u.new_empty(batch, groups, inputs.d_state, channels)
    y = torch.empty_like(scan.u)
    for rows in _batch_slices(scan):
        state = torch.zeros_like(last_state[rows])
        for index, steps in enumerate(_chunks(length, chunk)):
            if save_states:
                states[rows, index] = state.transpose(-1, -2)
            _, h = scan.recompute(steps, rows, state)
            torch.matmul(scan.C[steps, rows].unsqueeze(-2), h[1:], out=y[steps, rows].unsqueeze(-2))
            state = h[-1].clone()
        last_state[rows] = state
    if inputs.D is not None:
        y.addcmul_(inputs.D.to(y.dtype), scan.u)
    return scan.to_positions(y).to(inputs.u.dtype), last_state.transpose(-1, -2).contiguous(), states


def backward(
    grad_out: Tensor, grad_last_state: Tensor | None, inputs: ScanInputs, states: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """Differentiate ``forward``.

    Args:
        grad_out: Gradient of out, (batch, L, G, D).
        grad_last_state: Gradient of the last state, (batch, G, D, N), or None when that was not used.
        inputs: The arguments of ``grouped_scan``.
        states: What ``forward`` kept.
        chunk: Steps of a chunk.

    Returns:
        Gradients of u, delta, A, B, C in their shapes and types, then of D and delta_bias, (G, D), and of dt_weight, in
        the state's type; zeros where D or delta_bias is None, an empty tensor where dt_weight is.
    """
    scan = _Sequences.prepare(inputs)
    grad_y = scan.in_order(grad_out)
    grads = _Gradients.zeros(scan)
    steps_of_chunks = list(_chunks(scan.u.shape[0], chunk))
    for rows in _batch_slices(scan):
        carry = torch.zeros_like(states[rows, 0].transpose(-1, -2), memory_format=torch.contiguous_format)
        if grad_last_state is not None:
            carry += grad_last_state[rows].transpose(-1, -2)
        for index in reversed(range(len(steps_of_chunks))):
            first_state = states[rows, index].transpose(-1, -2)
            carry = grads.accumulate(scan, grad_y, steps_of_chunks[index], rows, first_state, carry)
    grad_dt = grads.dt.addcmul_(grads.x, scan.u)
    grad_u = grads.x.mul_(scan.dt)
    if inputs.D is not None:
        grad_u.addcmul_(grad_y, inputs.D.to(grad_y.dtype))
    grad_D = torch.linalg.vecdot(grad_y, scan.u, dim=0).sum(0)
    grad_delta = grad_dt.mul_(scan.raw_dt.sigmoid()) if inputs.delta_softplus else grad_dt
    grad_bias = grad_delta.sum((0, 1))
    grad_delta, grad_weight = project_down(scan.to_positions(grad_delta), inputs)
    return (
        scan.to_positions(grad_u).to(inputs.u.dtype),
        grad_delta.to(inputs.delta.dtype),
        grads.A.transpose(-1, -2).to(inputs.A.dtype).contiguous(),
        scan.to_positions(grads.B).to(inputs.B.dtype),
        scan.to_positions(grads.C).to(inputs.C.dtype),
        grad_D,
        grad_bias,
        grad_weight,
    )


@dataclass(frozen=True)
class _Sequences:
    """The inputs in the order the recurrence reads them, in the state's type.

    Attributes:
        u: (L, batch, G, D).
        dt: Step sizes, after bias and softplus, (L, batch, G, D).
        raw_dt: Step sizes after the bias, before softplus, (L, batch, G, D).
        x: ``dt * u``, what the state receives, (L, batch, G, D).
        A: (G, N, D).
        B: (L, batch, G, N).
        C: (L, batch, G, N).
        order: (G, L) positions, or None when every group walks forward.
    """

    u: Tensor
    dt: Tensor
    raw_dt: Tensor
    x: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    order: Tensor | None

    @classmethod
    def prepare(cls, inputs: ScanInputs) -> "_Sequences":
        u, dtype = inputs.u, inputs.state_dtype
        order = inputs.reading_order()
        ordered = [_in_order(tensor, order, dtype) for tensor in (u, inputs.step_sizes(), inputs.B, inputs.C)]
        sequence, raw_dt = ordered[:2]
        if inputs.delta_bias is not None:
            raw_dt = raw_dt + inputs.delta_bias.to(dtype)
        dt = F.softplus(raw_dt) if inputs.delta_softplus else raw_dt
        A_by_state = inputs.A.to(dtype).transpose(-1, -2).contiguous()
        return cls(sequence, dt, raw_dt, dt * sequence, A_by_state, ordered[2], ordered[3], order)

    def in_order(self, tensor: Tensor) -> Tensor:
        """Bring (batch, L, G, *) to (L, batch, G, *) in reading order."""
        return _in_order(tensor, self.order, self.u.dtype)

    def to_positions(self, tensor: Tensor) -> Tensor:
        """Undo ``in_order``."""
        if self.order is None:
            return tensor.transpose(0, 1).contiguous()
        out = torch.empty_like(tensor.transpose(0, 1), memory_format=torch.contiguous_format)
        for group, positions in enumerate(self.order):
            out[:, positions, group] = tensor[:, :, group].transpose(0, 1)
        return out

    def recompute(self, steps: slice, rows: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decays (T, b, G, N, D) and the states (T + 1, b, G, N, D), the given one first, of a chunk."""
        decay = (self.dt[steps, rows].unsqueeze(-2) * self.A).exp_()
        h = decay.new_empty(decay.shape[0] + 1, *decay.shape[1:])
        h[0] = state
        torch.mul(self.x[steps, rows].unsqueeze(-2), self.B[steps, rows].unsqueeze(-1), out=h[1:])
        recur_(h[1:], decay, state)
        return decay, h


@dataclass(frozen=True)
class _Gradients:
    """Gradients in reading order, shaped like the fields of ``_Sequences``; ``dt`` holds the part through the decay."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    @classmethod
    def zeros(cls, scan: _Sequences) -> "_Gradients":
        return cls(*(torch.zeros_like(tensor) for tensor in (scan.x, scan.dt, scan.A, scan.B, scan.C)))

    def accumulate(
        self, scan: _Sequences, grad_y: Tensor, steps: slice, rows: slice, first_state: Tensor, carry: Tensor
    ) -> Tensor:
        """Add one chunk's share, given the gradient later chunks pass to its last state; return that for its first."""
        decay, h = scan.recompute(steps, rows, first_state)
        grad_h = grad_y[steps, rows].unsqueeze(-2) * scan.C[steps, rows].unsqueeze(-1)
        grad_h[-1].add_(carry)
        recur_(grad_h[:-1], decay[1:], grad_h[-1], reverse=True)
        carry = grad_h[0] * decay[0]
        product = torch.empty_like(h[1:])
        self.C[steps, rows] = torch.mul(h[1:], grad_y[steps, rows].unsqueeze(-2), out=product).sum(-1)
        self.B[steps, rows] = torch.mul(grad_h, scan.x[steps, rows].unsqueeze(-2), out=product).sum(-1)
        torch.matmul(scan.B[steps, rows].unsqueeze(-2), grad_h, out=self.x[steps, rows].unsqueeze(-2))
        grad_exponent = grad_h.mul_(decay).mul_(h[:-1])
        self.A.add_(torch.mul(grad_exponent, scan.dt[steps, rows].unsqueeze(-2), out=product).sum((0, 1)))
        self.dt[steps, rows] = grad_exponent.mul_(scan.A).sum(-2)
        return carry


def _in_order(tensor: Tensor, order: Tensor | None, dtype: torch.dtype) -> Tensor:
    if order is None:
        return tensor.transpose(0, 1).to(dtype).contiguous()
    groups = [tensor[:, positions, group] for group, positions in enumerate(order)]
    return torch.stack(groups, dim=2).transpose(0, 1).to(dtype).contiguous()


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    for start in range(0, length, chunk):
        yield slice(start, min(start + chunk, length))


def _batch_slices(scan: _Sequences) -> Iterator[slice]:
    batch = scan.u.shape[1]
    rows = max(1, STEP_ELEMENTS // scan.A.numel())
    for start in range(0, batch, rows):
        yield slice(start, min(start + rows, batch))
