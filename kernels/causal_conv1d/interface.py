"""The public causal convolution: signature and shapes of causal_conv1d's ``causal_conv1d_fn`` and its update."""

from typing import Literal, overload

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.causal_conv1d.op import causal_conv1d_forward, causal_conv1d_step
from mambaseg.kernels.causal_conv1d.reference import (
    causal_conv1d_reference,
    causal_conv1d_update_reference,
    last_inputs,
)

Activation = Literal["silu", "swish"]


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: Literal[False] = False,
    activation: Activation | None = None,
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    *,
    return_final_states: Literal[True],
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: Activation | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve every channel over time with a few taps, looking back only (Mamba, https://arxiv.org/abs/2312.00752).

    out_t = act(bias + sum_w weight[w] x_{t - (W - 1) + w}): the last tap multiplies the current step. Sums are float32
    whatever the input type. Channels-last memory (stride 1 over D) is read without a copy.

    Args:
        x: Input, (B, D, L), any strides.
        weight: Taps, (D, W).
        bias: (D,).
        initial_states: The inputs before the first step, newest last, (B, D, W - 1); zeros when not given.
        return_final_states: Return what a next call takes as ``initial_states``; its gradient counts.
        activation: ``"silu"`` (or its other name ``"swish"``) after the bias.

    Returns:
        out (B, D, L) of ``x``'s type, a view of channels-last memory; and, if asked for, the final states
        (B, D, W - 1) of ``x``'s type.

    Raises:
        ValueError: Shapes do not fit, or the activation is unknown.
        ScanBackendError: The implementation asked for cannot run here.
    """
    silu = _is_silu(activation)
    _check_shapes(x, weight, bias, initial_states)
    if backend.forced_backend() == "reference":
        return causal_conv1d_reference(x, weight, bias, initial_states, return_final_states, activation)
    out = causal_conv1d_forward(x.transpose(1, 2), weight, bias, initial_states, silu).transpose(1, 2)
    return (out, last_inputs(x, initial_states, weight.shape[-1])) if return_final_states else out


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """Take one decoding step of ``causal_conv1d``, without gradients.

    Args:
        x: Input of the step, (B, D).
        conv_state: The last S inputs, newest last, (B, D, S) with S >= W - 1; shifted in place to end with ``x``.
        weight: Taps, (D, W).
        bias: (D,).
        activation: ``"silu"`` (or its other name ``"swish"``) after the bias.

    Returns:
        (B, D) of ``x``'s type.

    Raises:
        ValueError: Shapes do not fit, or the activation is unknown.
        ScanBackendError: The implementation asked for cannot run here.
    """
    silu = _is_silu(activation)
    if x.dim() != 2 or weight.dim() != 2 or conv_state.dim() != 3:
        raise ValueError(
            f"causal_conv1d_update takes x (B, D), conv_state (B, D, S) and weight (D, W), not shapes "
            f"{tuple(x.shape)}, {tuple(conv_state.shape)} and {tuple(weight.shape)}"
        )
    batch, dim = x.shape
    width, state = weight.shape[1], conv_state.shape[2]
    _check("causal_conv1d_update", "weight", weight, (dim, width))
    _check("causal_conv1d_update", "bias", bias, (dim,))
    _check("causal_conv1d_update", "conv_state", conv_state, (batch, dim, max(state, width - 1)))
    if backend.forced_backend() == "reference":
        return causal_conv1d_update_reference(x, conv_state, weight, bias, activation)
    out: Tensor = causal_conv1d_step(x, conv_state, weight, bias, silu)
    return out


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"causal_conv1d: activation {activation!r} is not None, 'silu' or 'swish'")
    return activation is not None


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None) -> None:
    if x.dim() != 3 or weight.dim() != 2:
        raise ValueError(
            f"causal_conv1d takes x (B, D, L) and weight (D, W), not shapes {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    batch, dim, length = x.shape
    width = weight.shape[1]
    _check("causal_conv1d", "weight", weight, (dim, width))
    _check("causal_conv1d", "bias", bias, (dim,))
    _check("causal_conv1d", "initial_states", initial_states, (batch, dim, width - 1))
    if length == 0 or width == 0:
        raise ValueError(f"causal_conv1d: length {length} and width {width} must be positive")


def _check(operator: str, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{operator}: {name} has shape {tuple(tensor.shape)} where {shape} is needed")
