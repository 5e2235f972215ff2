"""Training networks that are too large for one GPU: every process keeps a part of weights, gradients and moments.

``--trainer.strategy=fsdp2`` turns it on for any method. PyTorch's ``fully_shard`` gathers the weights of one block
after the other while it computes; what is computed is what DDP computes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from mambaseg.errors import InputError
from mambaseg.networks import SegmentationNetwork
from mambaseg.networks.layers.block import Block
from mambaseg.one_message import share_buffers

NAME = "fsdp2"
SMALLEST_UNIT = 1_000_000
SMALLEST_SHARE = 1 / 32
"""Of a network: gathering smaller blocks one by one frees little memory, and each costs the host a millisecond."""


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, for modules that know nothing of it.

    Checkpoints are single files of whole tensors, as DDP's are: either kind resumes from the other's, and ``predict``
    reads both. Buffers (batch-norm statistics) are the first process's, as with DDP.

    Args:
        smallest_unit: Blocks with so many parameters are gathered and freed one by one; smaller ones together. When not
            given, a million, or the 32nd part of the network if that is more.
    """

    def __init__(self, smallest_unit: int | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.smallest_unit = smallest_unit
        self._marks: dict[str, dict[str, Any]] = {}

    def setup_environment(self) -> None:
        """Start the processes' group, and have the module sharded where Lightning asks modules to shard themselves."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()
        module, mesh = self._module, self.device_mesh["data_parallel"]
        if self._layer_sync is not None:  # trainer.sync_batchnorm, which the base class passes over
            self._layer_sync.apply(module)
        self._marks = {name: dict(parameter.__dict__) for name, parameter in module.named_parameters()}
        module.configure_model = partial(shard, module, mesh, self.smallest_unit)  # type: ignore[method-assign]

    def model_to_device(self) -> None:
        """Move the model, and put back what its parameters were marked with, such as that they do not decay."""
        super().model_to_device()
        for name, parameter in self._module.named_parameters():
            parameter.__dict__.update(self._marks[name])

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Share the buffers, then step; see the base class."""
        share_buffers(self._module)
        return super().training_step(*args, **kwargs)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and moments from either strategy's checkpoint, and return the rest; see the base class.

        The base class takes an optimizer's numbers of parameters for places in the module, which they are in its own
        files alone.
        """
        path = self.broadcast(checkpoint_path)
        rest: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only is not False)
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=self._module.strict_loading)
        set_model_state_dict(self._module, rest.pop("state_dict"), options=whole)
        for optimizer, saved in zip(self.optimizers, rest.get("optimizer_states", []), strict=False):
            set_optimizer_state_dict(self._module, optimizer, _by_name(saved, optimizer, self._module), options=whole)
        return rest

    def on_validation_start(self) -> None:
        """Gather whole networks: processes evaluate different numbers of cases, so none may wait for another."""
        self._gather()

    def on_validation_end(self) -> None:
        """Free what was gathered."""
        self._free()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    @property
    def _module(self) -> L.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def _gather(self) -> None:
        share_buffers(self._module)
        for part in self._module.modules():
            if isinstance(part, FSDPModule):
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()

    def _free(self) -> None:
        for part in self._module.modules():
            if isinstance(part, FSDPModule):
                part.set_reshard_after_forward(_is_freed_in_between(part), recurse=False)
                part.reshard()


def offer_sharding() -> None:
    """Let ``trainer.strategy`` take the strategy's name."""
    if NAME not in StrategyRegistry:
        StrategyRegistry.register(NAME, ShardedStrategy, description="Fully sharded data parallel, for any method")


def shard(module: L.LightningModule, mesh: DeviceMesh, smallest_unit: int | None = None) -> None:
    """Divide a method's networks, and what else it trains, over the processes of a mesh.

    Args:
        module: The method.
        mesh: The processes.
        smallest_unit: See ``ShardedStrategy``.

    Raises:
        InputError: The method trains parameters of its own that no submodule holds.
    """
    if any(isinstance(part, FSDPModule) for part in module.modules()):
        return
    stray = [name for name, _ in module.named_parameters(recurse=False)]
    if stray:
        raise InputError(
            f"trainer.strategy is {NAME}, but {type(module).__name__} holds {stray[0]} itself. "
            "Keep parameters in submodules, which are called, or use the strategy ddp."
        )
    networks = [part for part in module.modules() if isinstance(part, SegmentationNetwork)]
    for network in networks:
        for block in _blocks(network, smallest_unit or _smallest_unit(network)):
            _shard(block, mesh)
        _shard(network, mesh)
        _Entrance(network)
    within = {id(part) for network in networks for part in network.modules()}
    for part in module.modules():
        if id(part) not in within and any(True for _ in part.parameters(recurse=False)):
            _shard(part, mesh)


def _by_name(saved: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """Return an optimizer's saved state with the parameters' names for their numbers.

    A parameter is known by its place in the groups, which every optimizer's file tells.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    named = {
        number: names[parameter]
        for theirs, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
        for number, parameter in zip(theirs["params"], own["params"], strict=True)
    }
    groups = [group | {"params": [named[number] for number in group["params"]]} for group in saved["param_groups"]]
    return {"state": {named[number]: state for number, state in saved["state"].items()}, "param_groups": groups}


class _Entrance:
    """Lets a sharded network be entered by ``forward_with_features`` too, with its weights gathered once on the way.

    ``forward`` calls ``forward_with_features`` itself; were that an entrance of its own, the weights would be freed
    before ``forward`` ends.
    """

    def __init__(self, network: SegmentationNetwork) -> None:
        self.inside = False
        self.plain_forward, self.plain_features = network.forward, network.forward_with_features
        network.forward_with_features = self.own_features  # type: ignore[method-assign]
        register_fsdp_forward_method(network, "forward_with_features")
        self.gathering_features = network.forward_with_features
        network.forward = self.forward  # type: ignore[method-assign]
        network.forward_with_features = self.forward_with_features  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        with self._entered():
            return self.plain_forward(x)

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.inside:
            return self.plain_features(x)
        with self._entered():
            return self.gathering_features(x)

    def own_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, decoded = self.plain_features(x)
        return _own(logits), _own(decoded)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


def _shard(part: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a module's parameters over the processes, and gather them where its ``forward`` begins."""
    part.register_forward_hook(lambda _module, _inputs, outputs: _own(outputs))  # before that of FSDP2
    fully_shard(part, mesh=mesh, reshard_after_forward=_is_freed_in_between(part))


def _is_freed_in_between(part: nn.Module | FSDPModule) -> bool:
    """Tell whether a unit's weights are freed after its forward pass, and gathered again for its backward pass.

    Blocks' are, and those of networks that are not trained: no backward pass would free them. What a trained network
    has outside its blocks is little, in many parameters, and the backward pass begins there.
    """
    return isinstance(part, Block) or not any(p.requires_grad for p in cast(nn.Module, part).parameters())


def _own(outputs: Any) -> Any:
    """Return a unit's outputs, tensors or lists of them, with views copied.

    FSDP2 hangs the gathering for the backward pass on them, and torch drops what hangs on a view once it is written to.
    """
    if isinstance(outputs, list | tuple):
        return type(outputs)(map(_own, outputs))
    is_view = isinstance(outputs, Tensor) and outputs.requires_grad and outputs._is_view()
    return outputs.clone() if is_view else outputs


def _smallest_unit(network: nn.Module) -> int:
    return max(SMALLEST_UNIT, math.ceil(SMALLEST_SHARE * sum(p.numel() for p in network.parameters())))


def _blocks(network: nn.Module, smallest: int) -> list[Block]:
    """Return the network's large blocks, inner ones first: FSDP2 divides what is not divided yet."""
    blocks = [part for part in network.modules() if isinstance(part, Block)]
    return [block for block in reversed(blocks) if sum(p.numel() for p in block.parameters()) >= smallest]
