"""U-Mamba, 2-D and 3-D: nnU-Net's residual U-Net with Mamba at the bottleneck or in the encoder."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.conv_init import init_conv
from mambaseg.networks.layers.dims import EXAMPLE_SIZES
from mambaseg.networks.layers.mamba_layer import MambaLayer
from mambaseg.networks.layers.umamba_unet import UMambaDecoder, UMambaEncoder, UMambaPlan
from mambaseg.networks.option_checks import check_counts, check_dims
from mambaseg.networks.register import register_network

MAX_CHANNELS = {2: 512, 3: 320}

PerAxis = int | Sequence[int]
"""One number for all axes, or one for each."""


class UMamba(SegmentationNetwork):
    """U-Mamba (https://arxiv.org/abs/2401.04722): nnU-Net's residual U-Net with Mamba layers after encoder stages.

    The options are those of an nnU-Net plan. With deep supervision, 2-D, six stages, 1 channel and 4 classes:
    28,760,276 parameters with Mamba at the bottleneck, and 27,561,556 in the encoder with ``channel_tokens`` for
    patches of 256 x 224.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        dims: Spatial dimensions, 2 or 3.
        base_channels: Channels of the first stage; each stage doubles them.
        max_channels: Channels of no stage exceed this; None: 512 in 2-D, 320 in 3-D.
        strides: Stride of each stage, one number or one for each axis; the first is 1.
        kernels: Kernel of each stage, likewise; None: 3.
        blocks: Residual blocks in the first half of the encoder's stages and of the decoder's; the others have one.
        mamba_stages: Stages with a Mamba layer, from 0; ``bottleneck``: the last, by the weights' names of U-Mamba_Bot;
            None as released in U-Mamba_Enc: all in 3-D, in 2-D every other one up to the last.
        d_state: States of the scan.
        residual: Add the map itself to what Mamba makes of it. The released code does not.
        channel_tokens: In stages with no more places than channels, scan from channel to channel, as U-Mamba_Enc was
            released. It ties the weights to one patch size.
        patch_size: Size of all images, along each axis; needed with ``channel_tokens``.
        full_size_skip: Join the last decoder stage with the full-size map; None as released: in 3-D, not in 2-D.
        checkpointing: Trade time for memory: recompute stage activations in the backward pass.
        deep_supervision: Return logits of all decoder stages, each at its own size.

    Raises:
        InputError: The options make no plan; the message says which.
    """

    decoder_stride = 1
    minimum_cells = 2  # instance norm is undefined on a single cell

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dims: Literal[2, 3] = 2,
        base_channels: int = 32,
        max_channels: int | None = None,
        strides: Sequence[PerAxis] = (1, 2, 2, 2, 2, 2),
        kernels: Sequence[PerAxis] | None = None,
        blocks: int = 2,
        mamba_stages: Sequence[int] | Literal["bottleneck"] | None = None,
        d_state: int = 16,
        residual: bool = True,
        channel_tokens: bool = False,
        patch_size: Sequence[int] | None = None,
        full_size_skip: bool | None = None,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        plan = make_plan(dims, base_channels, max_channels, strides, kernels, blocks)
        chosen = _mamba_stages(plan, mamba_stages)
        places = _places(plan, patch_size) if channel_tokens else [math.inf] * plan.stages
        layers: list[nn.Module] = []
        for stage, (width, count) in enumerate(zip(plan.widths, places, strict=True)):
            by_channel = count <= width
            layer = MambaLayer(int(count) if by_channel else width, d_state, residual, by_channel)
            layers.append(layer if stage in chosen else nn.Identity())
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = plan.total_stride(plan.stages - 1)
        self.patch_size = tuple(patch_size) if channel_tokens and patch_size is not None else None
        self.example_size = self.patch_size or EXAMPLE_SIZES[plan.dims]
        self.decoder_channels = plan.widths[0]
        self.deep_supervision = deep_supervision
        self.auxiliary_keys = rf"decoder\.seg_layers\.(?!{plan.stages - 2}\.)"
        bottleneck = mamba_stages == "bottleneck"
        joins = plan.dims == 3 if full_size_skip is None else full_size_skip
        self.encoder = UMambaEncoder(plan, in_channels, [] if bottleneck else layers, checkpointing)
        self.mamba_layer = layers[-1] if bottleneck else None
        self.decoder = UMambaDecoder(plan, num_classes, joins, deep_supervision, checkpointing)
        self.apply(init_conv)
        self.register_load_state_dict_pre_hook(_drop_repeated_keys)  # type: ignore[no-untyped-call]

    def input_constraint(self) -> str:
        """Return in a few words which image sizes the network takes."""
        if self.patch_size is None:
            return super().input_constraint()
        return f"what pads to {' x '.join(map(str, self.patch_size))} in multiples of {self.stride}"

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the map of every encoder stage, finest (stride 1) first, of ``x`` (B, C, *S), padded.

        Raises:
            ValueError: The network has channel tokens, and ``x`` has not the size of its patches.
        """
        if self.patch_size is not None and tuple(x.shape[2:]) != self.patch_size:
            raise ValueError(
                f"UMamba has channel tokens for patches of {self.patch_size} and got {tuple(x.shape[2:])} (padded): "
                "give it patches of that size, or build it with channel_tokens=False."
            )
        *skips, deepest = self.encoder(x)
        return [*skips, deepest if self.mamba_layer is None else self.mamba_layer(deepest)]

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the map of every decoder stage, full size first."""
        levels: list[Tensor] = self.decoder(pyramid)
        return levels

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, *S) of the decoder map (B, base_channels, *S)."""
        logits: Tensor = self.decoder.seg_layers[-1](decoded)
        return logits

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, *S_i) of the deeper stages, each at its own size."""
        heads = list(self.decoder.seg_layers)[-2::-1]
        return [head(level) for head, level in zip(heads, levels, strict=True)]


def make_plan(
    dims: int,
    base_channels: int,
    max_channels: int | None,
    strides: Sequence[PerAxis],
    kernels: Sequence[PerAxis] | None,
    blocks: int,
) -> UMambaPlan:
    """Check the options that a plan is made of, and make it; see ``UMamba``.

    Raises:
        InputError: A value is impossible; the message names the option and the value.
    """
    check_dims("U-Mamba", dims)
    check_counts("U-Mamba", base_channels=base_channels, blocks=blocks)
    by_axis = _by_axis("strides", strides, dims)
    if len(by_axis) < 2 or set(by_axis[0]) != {1}:
        raise InputError(f"U-Mamba: strides is {list(strides)}; it needs two or more stages, the first with 1.")
    sizes = _by_axis("kernels", (3,) * len(by_axis) if kernels is None else kernels, dims)
    if len(sizes) != len(by_axis) or any(size % 2 == 0 for stage in sizes for size in stage):
        raise InputError(
            f"U-Mamba: kernels is {kernels}; it needs one odd size (or one an axis) for each of the "
            f"{len(by_axis)} strides."
        )
    most = MAX_CHANNELS[dims] if max_channels is None else max_channels
    widths = tuple(min(base_channels * 2**stage, most) for stage in range(len(by_axis)))
    return UMambaPlan(widths, by_axis, sizes, blocks)


def _by_axis(field: str, values: Sequence[PerAxis], dims: int) -> tuple[tuple[int, ...], ...]:
    by_axis = tuple((value,) * dims if isinstance(value, int) else tuple(value) for value in values)
    if any(len(axes) != dims or min(axes) < 1 for axes in by_axis):
        raise InputError(f"U-Mamba: {field} is {list(values)}; each entry is a positive number or {dims} of them.")
    return by_axis


def _mamba_stages(plan: UMambaPlan, chosen: Sequence[int] | str | None) -> set[int]:
    if chosen == "bottleneck":
        return {plan.stages - 1}
    if chosen is None:
        step = 1 if plan.dims == 3 else 2
        return set(range(plan.stages - 1, -1, -step))
    if isinstance(chosen, str) or not chosen or not set(chosen) <= set(range(plan.stages)):
        raise InputError(
            f"U-Mamba: mamba_stages is {chosen!r}; name one or more of the stages 0 to {plan.stages - 1}, or "
            "'bottleneck'."
        )
    return set(chosen)


def _places(plan: UMambaPlan, patch_size: Sequence[int] | None) -> list[int]:
    """Return the number of places in each stage's map of a patch."""
    if patch_size is None or len(patch_size) != plan.dims:
        raise InputError(
            f"U-Mamba: channel_tokens needs patch_size with {plan.dims} values, not {patch_size}: the "
            "weights depend on it."
        )
    total = plan.total_stride(plan.stages - 1)
    if any(size % stride for size, stride in zip(patch_size, total, strict=True)):
        raise InputError(f"U-Mamba: patch_size is {list(patch_size)}; it must be a multiple of {list(total)}.")
    return [
        math.prod(size // stride for size, stride in zip(patch_size, plan.total_stride(stage), strict=True))
        for stage in range(plan.stages)
    ]


def _drop_repeated_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Ignore what published files hold twice: the encoder inside the decoder, and layers inside ``all_modules``."""
    for key in [key for key in state if key.startswith(f"{prefix}decoder.encoder.") or ".all_modules." in key]:
        del state[key]


def _register(name: str, summary: str, **published: Any) -> None:
    """Register a published form of U-Mamba; its options stay options, with the published values as defaults."""
    builder = partial(UMamba, **published)
    builder.__doc__ = f"{summary} (https://arxiv.org/abs/2401.04722)."
    register_network(name)(builder)


_register("umamba_bot", "U-Mamba_Bot, one Mamba layer on the deepest map", mamba_stages="bottleneck")
_register("umamba_enc", "U-Mamba_Enc, Mamba layers after encoder stages")
