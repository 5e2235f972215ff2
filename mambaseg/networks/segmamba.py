"""SegMamba: an encoder of tri-oriented Mamba stages under UNETR's decoder, for volumes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.conv_init import init_conv
from mambaseg.networks.layers.dims import CONV, EXAMPLE_SIZES, INSTANCE_NORM
from mambaseg.networks.layers.gated_conv import GatedSpatialConv, Join
from mambaseg.networks.layers.recompute import run
from mambaseg.networks.layers.tri_oriented_mamba import TriOrientedLayer
from mambaseg.networks.layers.unetr_block import UnetrBlock, UnetrHead, UnetrUpBlock
from mambaseg.networks.option_checks import check_counts, check_dims
from mambaseg.networks.register import register_network


@register_network("segmamba")
class SegMamba(SegmentationNetwork):
    """SegMamba (https://arxiv.org/abs/2401.13560): Mamba stages that walk a volume forwards, backwards, across slices.

    67,416,196 parameters for 4 channels and 4 classes, 67,363,213 for 1 and 13. With the defaults all layers and widths
    are those of the released code, and so is the function, for a depth of 128, up to rounding: there the maps of the
    stages have 64, 32, 16 and 8 slices. The released code cuts every volume into these numbers of parts, so that at
    other depths its third order follows no axis, and fails where they do not divide it. Ours are: slices that are
    those of the map, any size, fewer or more stages, 2-D (a slice is a row), deep supervision, the names of the
    weights, and how convolutions start. Left out is what the paper has and the release has not: a perceptron behind the
    Mamba layers.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        dims: Spatial dimensions, 2 or 3.
        base_channels: Channels of the first Mamba stage and of the decoder's last map; each stage doubles them.
        depths: Mamba layers in each stage of the encoder.
        d_state: States of the scan.
        gsc: How the gated convolution before a stage's Mamba layers joins its branches: ``sum`` as released,
            ``product`` as in the paper.
        fue: Weight the stages' maps by their certainty, an idea of the paper whose formula here is unconfirmed; the
            released code does not.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.
        deep_supervision: Return logits at stride 1 and at those of all stages but the deepest.

    Raises:
        InputError: An option has an impossible value; the message says which.
    """

    decoder_stride = 1
    minimum_cells = 2  # instance norm is undefined on a single cell
    auxiliary_keys = r"heads\.(?!0\.)"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dims: Literal[2, 3] = 3,
        base_channels: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        d_state: int = 16,
        gsc: Join = "sum",
        fue: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        _check_options(dims, base_channels, depths, d_state, gsc)
        stages = len(depths)
        widths = [base_channels * 2**level for level in range(stages + 1)]
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = 2**stages
        self.example_size = EXAMPLE_SIZES[dims]
        self.decoder_channels = base_channels
        self.fue = fue
        self.checkpointing = checkpointing
        self.deep_supervision = deep_supervision
        inputs = (in_channels, *widths)
        self.encoder = nn.ModuleList(
            SegMambaStage(dims, inputs[stage], widths[stage], depth, d_state, gsc, is_first=stage == 0)
            for stage, depth in enumerate(depths)
        )
        self.skips = nn.ModuleList(UnetrBlock(dims, inputs[level], widths[level]) for level in range(stages + 1))
        self.ups = nn.ModuleList(UnetrUpBlock(dims, widths[level + 1], widths[level]) for level in range(stages))
        self.last = UnetrBlock(dims, base_channels, base_channels)
        heads = widths[:stages] if deep_supervision else widths[:1]
        self.heads = nn.ModuleList(UnetrHead(dims, width, num_classes) for width in heads)
        self.apply(init_conv)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the image and the map of each stage, strides 1, 2, 4 ..., of ``x`` (B, C, *S), padded."""
        recompute = self.checkpointing and self.training
        pyramid, trunk = [x], x
        for stage in self.encoder:
            assert isinstance(stage, SegMambaStage)
            trunk = stage(trunk, recompute)
            tap = run(stage.tap, recompute, trunk)
            pyramid.append(weight_by_certainty(tap) if self.fue else tap)
        return pyramid

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoder maps of strides 1, 2, 4 ... up to half that of the deepest stage."""
        recompute = self.checkpointing and self.training
        *skips, x = [run(block, recompute, level) for block, level in zip(self.skips, pyramid, strict=True)]
        levels: list[Tensor] = []
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            x = run(up, recompute, x, skip)
            levels.insert(0, x)
        return [run(self.last, recompute, x), *levels[1:]]

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, *S) of the decoder map (B, base_channels, *S)."""
        logits: Tensor = self.heads[0](decoded)
        return logits

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, *S_i) of the deeper maps, each at its own size."""
        return [head(level) for head, level in zip(list(self.heads)[1:], levels, strict=True)]


class SegMambaStage(nn.Module):
    """Halve the size, convolve with a gate, then Mamba layers; beside them ``tap``, which the decoder reads.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        channels: Channels of the stage.
        depth: Mamba layers.
        d_state: States of the scan.
        gsc: How the gated convolution joins its branches.
        is_first: Whether the input is an image: then a wide convolution halves it, without a norm before.
    """

    def __init__(
        self, dims: int, in_channels: int, channels: int, depth: int, d_state: int, gsc: Join, is_first: bool
    ) -> None:
        super().__init__()
        kernel, padding = (7, 3) if is_first else (2, 0)
        conv, norm = CONV[dims], INSTANCE_NORM[dims]
        halve = OrderedDict(conv=conv(in_channels, channels, kernel, stride=2, padding=padding))
        self.down = nn.Sequential(halve if is_first else OrderedDict(norm=norm(in_channels), **halve))
        self.gsc = GatedSpatialConv(dims, channels, gsc)
        self.layers = nn.ModuleList(TriOrientedLayer(channels, d_state) for _ in range(depth))
        widen, narrow = conv(channels, 2 * channels, 1), conv(2 * channels, channels, 1)
        self.tap = nn.Sequential(OrderedDict(norm=norm(channels), widen=widen, act=nn.GELU(), narrow=narrow))

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Return what the next stage reads, (B, channels, *S / 2).

        Args:
            x: (B, in_channels, *S), even along each axis.
            recompute: Recompute block activations in the backward pass instead of keeping them.
        """
        x = self.down(x)
        for block in (self.gsc, *self.layers):
            x = run(block, recompute, x)
        return x


def weight_by_certainty(x: Tensor) -> Tensor:
    """Return ``x`` (1 + 1 - u), (B, C, *S) of ``x`` (B, C, *S): SegMamba's feature-level uncertainty estimation.

    With s the sigmoid of the mean over channels at a place, its uncertainty is u = -s log s.
    """
    mean = x.mean(1, keepdim=True, dtype=state_dtype(x))
    uncertainty = -torch.sigmoid(mean) * F.logsigmoid(mean)
    return x * (2 - uncertainty).to(x.dtype)


def _check_options(dims: int, base_channels: int, depths: Sequence[int], d_state: int, gsc: str) -> None:
    check_dims("Network 'segmamba'", dims)
    check_counts("Network 'segmamba'", base_channels=base_channels, d_state=d_state)
    if not depths or min(depths) < 1:
        raise InputError(f"Network 'segmamba': depths is {list(depths)}; it needs positive values, one a stage.")
    if gsc not in get_args(Join):
        raise InputError(f"Network 'segmamba': gsc is {gsc!r}; it must be 'sum' or 'product'.")
