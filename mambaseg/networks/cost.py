"""How large a network is and how much it computes, without weights and without computing.

The meta device knows shapes alone, but still takes half a second a network, so what ``mambaseg list networks`` shows is
kept in ``costs.json``: ``python -m mambaseg.networks.cost`` writes it, and a test computes it again.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambaseg.io.atomic import write_text
from mambaseg.networks import Network, create_network, list_networks
from mambaseg.networks.layers.ss2d import DIRECTIONS, SS2D
from mambaseg.networks.register import TASKS, Task

CONVENTION = (
    "One image of 224 × 224, of 3-D networks 128³, default options, for channels → classes. Images of any size, padded "
    "to the next step. MACs: what convolutions, linear layers, attention and the projections of scans multiply; norms, "
    "activations and additions count nothing. And scan: with 9 L D N + L D operations for L steps, D channels, N "
    "states, as published tables have it."
)
TABLE = Path(__file__).with_name("costs.json")
FLOPS_PER_MAC = 2
EXAMPLES: dict[Task, tuple[int, int]] = {"segment": (1, 4), "classify": (3, 1000)}
"""Channels and classes that networks are listed with, by task: ACDC's and ImageNet's."""


@dataclass(frozen=True)
class Cost:
    """What a forward pass of one sample takes.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        size: Height and width (and, before them, depth) of the image.
        parameters: Trainable values.
        macs: Multiply-accumulates outside the scans.
        scan: Operations inside the scans.
        takes: Which sizes the network takes, in words.
    """

    in_channels: int
    num_classes: int
    size: tuple[int, ...]
    parameters: int
    macs: int
    scan: int
    takes: str

    @property
    def total(self) -> int:
        """MACs and scan operations together."""
        return self.macs + self.scan


def listed_costs() -> dict[str, Cost]:
    """Return the cost of every registered network; those that the table lacks are computed."""
    saved = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    return {n: _from_row(saved[n]) if n in saved else listed_cost(n) for n in list_networks()}


def listed_cost(name: str) -> Cost:
    """Return the cost of a network with default options, channels and classes of ``EXAMPLES``."""
    network = build_on_meta(name, *EXAMPLES[TASKS[name]])
    return forward_cost(network, network.example_size)


def build_on_meta(name: str, in_channels: int, num_classes: int, **options: Any) -> Network:
    """Return a network with shapes and no memory; see ``create_network``."""
    with torch.device("meta"):
        return create_network(name, in_channels, num_classes, **options).eval()


@torch.no_grad()
def forward_cost(network: Network, size: tuple[int, ...]) -> Cost:
    """Return the cost of one image.

    Args:
        network: On the meta device; any other works too, and computes.
        size: Height and width (and, before them, depth) of the image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.empty(1, network.in_channels, *size, device=next(network.parameters()).device)
    with FlopCounterMode(display=False, custom_mapping=_CUSTOM) as counter:
        network(image)
    counts: Mapping[str, Mapping[Any, int]] = counter.get_flop_counts()
    scan = sum(counts["Global"].get(operator, 0) for operator in (_SCAN, _DIRECTIONAL_SCAN))
    flops = sum(counts["Global"].values()) - scan
    for name, module in network.named_modules():
        if isinstance(module, SS2D):
            # Its projections happen inside the operator.
            flops += _projections(module, counts[f"{type(network).__name__}.{name}"][_DIRECTIONAL_SCAN])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    takes = network.input_constraint()
    return Cost(network.in_channels, network.num_classes, size, parameters, flops // FLOPS_PER_MAC, scan, takes)


def _from_row(row: dict[str, Any]) -> Cost:
    return Cost(**{**row, "size": tuple(row["size"])})


def _scan_operations(u: tuple[int, ...], delta: Any, A: tuple[int, ...], *_: Any) -> int:
    batch, length, groups, channels = u
    return batch * length * groups * channels * (9 * A[-1] + 1)


def _directional_scan_operations(
    pixels: tuple[int, ...], _weight: Any, dt_weight: tuple[int, ...], _bias: Any, A_logs: tuple[int, ...], *_: Any
) -> int:
    batch, length, channels = pixels
    return _scan_operations((batch, length, dt_weight[0], channels), None, A_logs)


def _convolution_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any) -> int:
    return FLOPS_PER_MAC * x[0] * x[1] * x[2] * weight[-1]


def _depthwise_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any) -> int:
    return FLOPS_PER_MAC * math.prod(x) * weight[1] * weight[2]


def _projections(layer: SS2D, scan: int) -> int:
    """Return the FLOPs from the map to step sizes, B and C, given the operations of the layer's scan."""
    _, channels, rank = layer.dt_projs_weight.shape
    d_state = layer.A_logs.shape[1]
    pixels = scan // (DIRECTIONS * channels * (9 * d_state + 1))
    return FLOPS_PER_MAC * pixels * DIRECTIONS * channels * (2 * rank + 2 * d_state)


def _formula(count: Callable[..., int]) -> Callable[..., int]:
    """Return ``count`` over shapes as a formula over tensors, which is what the counter calls."""

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return count(*(tuple(arg.shape) if isinstance(arg, Tensor) else arg for arg in args))

    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


_SCAN = torch.ops.mambaseg.selective_scan_forward
_DIRECTIONAL_SCAN = torch.ops.mambaseg.directional_scan_forward
_CUSTOM: dict[Any, Callable[..., int]] = {
    _SCAN: _formula(_scan_operations),
    _DIRECTIONAL_SCAN: _formula(_directional_scan_operations),
    torch.ops.mambaseg.depthwise_conv2d_forward: _formula(_depthwise_flops),
    torch.ops.mambaseg.causal_conv1d_forward: _formula(_convolution_flops),
}

if __name__ == "__main__":
    write_text(TABLE, json.dumps({name: asdict(listed_cost(name)) for name in list_networks()}, indent=1) + "\n")
