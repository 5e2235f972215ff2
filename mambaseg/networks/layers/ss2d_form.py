"""The forms of VMamba's scan layer, by their published names."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambaseg.errors import InputError

CORES = ("v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v2", "v3")
"""Cores that compute the four-direction scan; published code gives them different kernels and precisions."""

_PATTERN = re.compile(
    r"(?P<core>[a-z0-9]+?)"
    r"(?P<out_norm>_on[a-z0-9]+)?(?P<nozact>_nozact)?(?P<noz>_noz)?(?P<oact>_oact)?(?P<no32>_no32)?"
)


@dataclass(frozen=True)
class SS2DForm:
    """What a scan layer does around its scan.

    Attributes:
        gated: Whether a gate multiplies the result; without one the input projection is half as wide.
        gate_activation: Whether the gate passes SiLU.
        out_activation: Whether the normalised result passes GELU before the gate.
        out_norm: What follows the scan, a key of ``OUT_NORMS``.
    """

    gated: bool = True
    gate_activation: bool = True
    out_activation: bool = False
    out_norm: str = ""


class ChannelsLastConv(nn.Module):
    """A 3x3 depthwise convolution without bias on maps (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(channels, channels, 3, groups=channels, bias=False).weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of ``x`` (B, H, W, C)."""
        channels = self.weight.shape[0]
        out = nn.functional.conv2d(x.permute(0, 3, 1, 2), self.weight, padding=1, groups=channels)
        return out.permute(0, 2, 3, 1)


class SpatialSoftmax(nn.Module):
    """A softmax over the pixels of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of ``x`` (B, H, W, C), summing to 1 over H and W."""
        return x.flatten(1, 2).softmax(dim=1).view_as(x)


OUT_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "": nn.LayerNorm,
    "none": lambda channels: nn.Identity(),
    "sigmoid": lambda channels: nn.Sigmoid(),
    "softmax": lambda channels: SpatialSoftmax(),
    "dwconv3": ChannelsLastConv,
    "cnorm": lambda channels: nn.Sequential(nn.LayerNorm(channels), ChannelsLastConv(channels)),
}
"""What follows the scan, by tag: from the channels to a module on maps (B, H, W, C)."""


def parse_form(forward_type: str) -> SS2DForm:
    """Return what a published ``forward_type`` means: ``core[_on*][_nozact][_noz][_oact][_no32]``.

    All cores of ``CORES`` are one function; ours has the half inputs and fp32 states of v05, so the core and ``_no32``
    change nothing. A misspelt type fails here rather than in the first forward pass.

    Raises:
        InputError: The core, a tag or their order is not known.
    """
    match = _PATTERN.fullmatch(forward_type)
    tag = (match["out_norm"] or "").removeprefix("_on") if match else ""
    if match is None or match["core"] not in CORES or tag not in OUT_NORMS:
        tags = ", ".join(f"_on{name}" for name in OUT_NORMS if name)
        raise InputError(
            f"forward_type is {forward_type!r}; write core[_on*][_nozact][_noz][_oact][_no32] in this order, the core "
            f"one of {', '.join(CORES)} and _on* one of {tags}. Mamba-2 and single directions are not built."
        )
    return SS2DForm(
        gated=match["noz"] is None,
        gate_activation=match["nozact"] is None,
        out_activation=match["oact"] is not None,
        out_norm=tag,
    )


def initial_scan_parameters(init: str, bias: Tensor, weight: Tensor, decay: Tensor) -> None:
    """Overwrite freshly drawn scan parameters by VMamba's other ways to start.

    Args:
        init: ``v0`` leaves them; ``v1`` draws decay logarithms from N(0, 1), the rest from 0.1 N(0, 1); ``v2`` zeroes
            the logarithms and draws the rest from 0.1 U(0, 1).
        bias: The step sizes' bias, (4, E).
        weight: The step sizes' projection, (4, E, R).
        decay: ``A_logs``, (4E, N).

    Raises:
        InputError: ``init`` is another word.
    """
    if init not in ("v0", "v1", "v2"):
        raise InputError(f"ssm_init is {init!r}; it must be 'v0', 'v1' or 'v2'.")
    if init == "v0":
        return
    draw = torch.randn_like if init == "v1" else torch.rand_like
    with torch.no_grad():
        decay.copy_(torch.randn_like(decay) if init == "v1" else torch.zeros_like(decay))
        for parameter in (weight, bias):
            parameter.copy_(0.1 * draw(parameter))
