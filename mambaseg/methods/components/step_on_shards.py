"""Optimizers of parameters that are divided over processes (FSDP2), stepped on this process's own parts of them."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def are_sharded(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer's parameters are divided; all are, or none."""
    return isinstance(optimizer.param_groups[0]["params"][0], DTensor)


@torch.no_grad()
def step_on_shards(optimizer: torch.optim.Optimizer) -> None:
    """Step an optimizer that treats each element by itself, as SGD and AdamW do, on ordinary tensors.

    On the divided tensors each operation on each parameter takes its way through Python, and not every fused kernel
    takes them. Between steps the optimizer has the divided ones again, moments included: checkpoints gather them.

    Args:
        optimizer: One of divided parameters, see ``are_sharded``.
    """
    groups, state = optimizer.param_groups, optimizer.state
    shards: dict[DTensor, Tensor] = {whole: whole.to_local() for group in groups for whole in group["params"]}
    for whole, shard in shards.items():
        shard.grad = None if whole.grad is None else _shard(whole.grad)
    optimizer.param_groups = [group | {"params": [shards[whole] for whole in group["params"]]} for group in groups]
    optimizer.state = defaultdict(dict)
    for whole, shard in shards.items():
        optimizer.state[shard] = {key: _shard(value) for key, value in state.get(whole, {}).items()}
    try:
        optimizer.step()
        for whole, shard in shards.items():
            for key, value in optimizer.state[shard].items():
                if _shard(state[whole].get(key)) is not value:
                    state[whole][key] = _divided_like(whole, value) if value.shape == shard.shape else value
    finally:
        optimizer.param_groups, optimizer.state = groups, state
        for shard in shards.values():
            shard.grad = None


def _shard(value: Any) -> Any:
    """Return this process's part of a divided tensor, and anything else as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def _divided_like(whole: DTensor, shard: Tensor) -> DTensor:
    """Return a tensor divided as ``whole`` is, of which this process has ``shard``."""
    return DTensor.from_local(
        shard, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
