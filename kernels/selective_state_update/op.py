"""The decoding step as a torch operator that overwrites the state, so that it compiles and runs on every device."""

import importlib

from torch import Tensor
from torch.library import custom_op

from mambaseg.kernels import backend
from mambaseg.kernels.selective_state_update.reference import selective_state_update_reference


@custom_op("mambaseg::selective_state_step", mutates_args=("state",), device_types=("cpu", "cuda"))
def selective_state_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """Run ``selective_state_update`` for B, C (batch, G, N) by the implementation that serves the device."""
    arguments = (state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    if backend.select(x.device) == "triton":
        launch = importlib.import_module("mambaseg.kernels.selective_state_update.triton_launch")
        out: Tensor = launch.update(*arguments)
        return out
    return selective_state_update_reference(*arguments)


@selective_state_step.register_fake
def _shapes(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    return x.new_empty(x.shape)
