"""The causal convolution as windows of the sequence times the taps: slow, readable, differentiable by autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve window by window; arguments and results of ``causal_conv1d``."""
    dtype = state_dtype(x, weight, bias, initial_states)
    width = weight.shape[-1]
    windows = with_history(x.to(dtype), initial_states, width).unfold(-1, width, 1)
    out = (windows * weight.to(dtype).unsqueeze(1)).sum(-1)
    if bias is not None:
        out = out + bias.to(dtype).unsqueeze(-1)
    out = (F.silu(out) if activation else out).to(x.dtype)
    return (out, last_inputs(x, initial_states, width)) if return_final_states else out


def causal_conv1d_update_reference(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Take one step; arguments and results of ``causal_conv1d_update``."""
    dtype = state_dtype(x, conv_state, weight, bias)
    width = weight.shape[-1]
    inputs = torch.cat([conv_state.to(dtype), x.to(dtype).unsqueeze(-1)], dim=-1)
    out = (inputs[..., inputs.shape[-1] - width :] * weight.to(dtype)).sum(-1)
    if bias is not None:
        out = out + bias.to(dtype)
    conv_state.copy_(inputs[..., 1:])
    return (F.silu(out) if activation else out).to(x.dtype)


def with_history(x: Tensor, initial_states: Tensor | None, width: int) -> Tensor:
    """Put the ``width - 1`` inputs before the first step in front, (B, D, width - 1 + L); zeros where none are given.

    Args:
        x: (B, D, L).
        initial_states: (B, D, width - 1), newest last.
        width: Taps W.
    """
    if initial_states is None:
        return F.pad(x, (width - 1, 0))
    return torch.cat([initial_states.to(x.dtype), x], dim=-1)


def last_inputs(x: Tensor, initial_states: Tensor | None, width: int) -> Tensor:
    """Return what the next call needs as ``initial_states``, (B, D, width - 1); arguments of ``with_history``."""
    length = x.shape[-1]
    if length < width - 1:
        x = with_history(x, initial_states, width)
        length = x.shape[-1]
    return x[..., length - (width - 1) :].clone()
