"""UVM-Net: a U-Net whose every level mixes places and channels by Mamba scans on a grid of fixed size."""

from collections.abc import Sequence
from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.conv_norm import ConvBeforeNorm, convolve_and_normalise
from mambaseg.networks.layers.memory import channels_last
from mambaseg.networks.layers.recompute import run
from mambaseg.networks.layers.uvm_block import SoftmaxDim, Tokens, UvmBlock, UvmForm
from mambaseg.networks.option_checks import check_counts
from mambaseg.networks.register import register_network
from mambaseg.networks.unet import double_and_join

COLOURS = 3


@register_network("uvm_net")
class UvmNet(SegmentationNetwork):
    """UVM-Net (https://arxiv.org/abs/2402.04139): a U-Net with a bidirectional state space model at every level.

    1,003,940,200 parameters for 3 channels and 3 classes, 4 GB, of which the scans from channel to channel have
    947,773,440: their tokens are whole grids. The paper speaks of some 19 million. 56,166,760 with
    ``spatial_ssm=False``; a smaller ``grid`` is the other way to a network that trains.

    The released task is dehazing: from a colour image to one, which ``add_image`` is for. Here the outputs are the
    logits of the classes. All layers and widths are those of the released code. So is the function, with
    ``tokens="memory"``, ``softmax_dim="batch"`` and ``add_image=True``, for colour images whose sizes are multiples of
    16; at others it pads the maps of the decoder, not the image. Our defaults differ because a released token mixes
    places of one channel, and attention that sums to 1 over the batch is 1 for a single image, and makes the result of
    an image depend on the others. Ours are also: other depths and widths, deep supervision, and the names of weights.

    Args:
        in_channels: Channels of the image. A grey one is repeated into three: norms over one channel leave nothing.
        num_classes: Classes of the logits.
        channels: Widths of the levels.
        grid: Cells, along each axis, of the grid that the scans walk; the weights fit one grid only.
        spatial_ssm: Scan from channel to channel too. Then the parameters grow with grid⁴.
        softmax_dim: What the attention sums to 1 over: ``channels``, ``tokens``, or ``batch`` as released.
        tokens: What the scans walk: ``places``, each with its channels; ``memory`` as released: the grid's values,
            channel after channel, cut into tokens of as many values as there are channels.
        d_state: States of the scans.
        add_image: Add the image to the logits, as released; for as many classes as channels.
        checkpointing: Trade time for memory: recompute the activations around the scans in the backward pass.
        deep_supervision: Return logits of all levels of the decoder, each at its own size.

    Raises:
        InputError: An option has an impossible value; the message says which.
    """

    decoder_stride = 1
    auxiliary_keys = r"heads\.(?!0\.)"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        grid: int = 64,
        spatial_ssm: bool = True,
        softmax_dim: SoftmaxDim = "channels",
        tokens: Tokens = "places",
        d_state: int = 16,
        add_image: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        _check_options(channels, grid, d_state, softmax_dim, tokens)
        if add_image and in_channels != num_classes:
            raise InputError(
                f"Network 'uvm_net': add_image needs as many classes as channels, not {num_classes} and {in_channels}."
            )
        form = UvmForm(grid, tokens, spatial_ssm, softmax_dim, d_state)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = 2 ** (len(channels) - 1)
        self.decoder_channels = channels[0]
        self.add_image = add_image
        self.checkpointing = checkpointing
        self.deep_supervision = deep_supervision
        inputs = [COLOURS if in_channels == 1 else in_channels, *channels[:-1]]
        self.encoder = nn.ModuleList(
            UvmLevel(width, out, out, form) for width, out in zip(inputs, channels, strict=True)
        )
        outputs = [channels[0], *channels[:-2]]
        joined = [skip + below for skip, below in zip(channels[:-1], [*outputs[1:], channels[-1]], strict=True)]
        self.decoder = nn.ModuleList(
            UvmLevel(width, width // 2, out, form) for width, out in zip(joined, outputs, strict=True)
        )
        heads = outputs if deep_supervision else outputs[:1]
        self.heads = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in heads)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the map of every level, strides 1, 2, 4 ..., of ``x`` (B, C, H, W), padded."""
        recompute = self.checkpointing and self.training
        maps = [channels_last(x.expand(-1, COLOURS, -1, -1) if self.in_channels == 1 else x)]
        for depth, level in enumerate(self.encoder):
            maps.append(level(F.max_pool2d(maps[-1], 2) if depth else maps[-1], recompute))
        return maps[1:]

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoder maps of strides 1, 2, 4 ... up to half that of the deepest level."""
        recompute = self.checkpointing and self.training
        *skips, x = pyramid
        levels: list[Tensor] = []
        for level, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = level(double_and_join(x, skip), recompute)
            levels.insert(0, x)
        return levels

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the decoder map (B, channels[0], H, W), before the image is added."""
        logits: Tensor = self.heads[0](decoded)
        return logits

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, H_i, W_i) of the deeper maps, each at its own size."""
        return [head(level) for head, level in zip(list(self.heads)[1:], levels, strict=True)]

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return full-size logits and the decoder features that they were made from; see ``SegmentationNetwork``."""
        logits, decoded = super().forward_with_features(x)
        return self._add_image(logits, x), decoded

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, K, H, W), with deep supervision a list of logits, for images ``x`` (B, C, H, W)."""
        logits = super().forward(x)
        return [self._add_image(logits[0], x), *logits[1:]] if isinstance(logits, list) else logits

    def _add_image(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits + x if self.add_image else logits


class UvmLevel(nn.Module):
    """A UVM block, then two 3x3 convolutions with batch norm and ReLU.

    Args:
        in_channels: Channels of the input.
        mid_channels: Channels between the convolutions.
        out_channels: Channels of the output.
        form: What all blocks have in common.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, form: UvmForm) -> None:
        super().__init__()
        self.mixer = UvmBlock(in_channels, form)
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for width, out in ((in_channels, mid_channels), (mid_channels, out_channels)):
            self.convolutions.append(ConvBeforeNorm(width, out, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(out))
        self.activation = nn.LeakyReLU(0.0, inplace=True)  # ReLU, as norms that run together with it take it

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Return (B, out_channels, H, W).

        Args:
            x: (B, in_channels, H, W).
            recompute: Recompute the UVM block in the backward pass; not the rest, whose norms count what passes.
        """
        x = run(self.mixer, recompute, x)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolve_and_normalise(x, convolution, norm, self.activation)
        return x


def _check_options(channels: Sequence[int], grid: int, d_state: int, softmax_dim: str, tokens: str) -> None:
    if len(channels) < 2 or min(channels) < 2:
        raise InputError(f"Network 'uvm_net': channels is {list(channels)}; it needs two or more widths of at least 2.")
    if grid < 2:
        raise InputError(f"Network 'uvm_net': grid is {grid}; it must be at least 2.")
    check_counts("Network 'uvm_net'", d_state=d_state)
    for field, value, known in (("softmax_dim", softmax_dim, SoftmaxDim), ("tokens", tokens, Tokens)):
        if value not in get_args(known):
            raise InputError(
                f"Network 'uvm_net': {field} is {value!r}; it must be one of {', '.join(map(repr, get_args(known)))}."
            )
