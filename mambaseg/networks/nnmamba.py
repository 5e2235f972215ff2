"""nnMamba, 3-D and 2-D: residual networks with Mamba, to segment, to find landmarks and to classify."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import ClassificationNetwork, SegmentationNetwork
from mambaseg.networks.layers.conv_norm_act import double_conv
from mambaseg.networks.layers.dims import CONV, EXAMPLE_SIZES
from mambaseg.networks.layers.linear_doubling import linear_doubling
from mambaseg.networks.layers.mamba_layer import MambaLayer
from mambaseg.networks.layers.nnmamba_layer import Added, NNMambaLayer
from mambaseg.networks.layers.nnmamba_unet import GatedDecoder, ResidualEncoder
from mambaseg.networks.option_checks import check_counts, check_dims
from mambaseg.networks.register import register_network

STAGES = 3


class ResidualUNet(SegmentationNetwork):
    """The U-shape that nnMamba's networks share; it segments at full size what was encoded from half.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        dims: Spatial dimensions.
        widths: Channels of the encoder's maps.
        encoder: From the image to maps of strides 2 to 16.
        gated: Whether skips pass a gate.
        linear_head: End in a convolution; as released, norm and ReLU follow it.
        deep_supervision: Return logits of the decoder's maps too, each at its own size.
    """

    stride = 2 ** (STAGES + 1)
    decoder_stride = 1
    auxiliary_keys = r"auxiliary_heads\."

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dims: int,
        widths: Sequence[int],
        encoder: ResidualEncoder,
        gated: bool,
        linear_head: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.decoder_channels = widths[0]
        self.example_size = EXAMPLE_SIZES[dims]
        self.deep_supervision = deep_supervision
        self.encoder = encoder
        self.decoder = GatedDecoder(dims, widths, gated)
        self.head = double_conv(dims, widths[0], num_classes, linear=linear_head)
        supervised = widths[:-1] if deep_supervision else ()
        self.auxiliary_heads = nn.ModuleList(CONV[dims](width, num_classes, 1) for width in supervised)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of stem and stages, strides 2 to 16, of ``x`` (B, C, *S), padded."""
        pyramid: list[Tensor] = self.encoder(x)
        return pyramid

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoder's last map at full size, then those of strides 2, 4 and 8."""
        levels: list[Tensor] = self.decoder(pyramid)
        return [linear_doubling(levels[0]), *levels]

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, *S) of the decoder map (B, base_channels, *S)."""
        logits: Tensor = self.head(decoded)
        return logits

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, *S_i) of the maps of strides 2, 4 and 8."""
        return [head(level) for head, level in zip(self.auxiliary_heads, levels, strict=True)]


@register_network("nnmamba_seg")
class NNMambaSeg(ResidualUNet):
    """nnMamba for segmentation (https://arxiv.org/abs/2402.03526): Mamba beside the convolutions of residual blocks.

    In every stage, the blocks after the first add what a Mamba layer makes of their input. 15,956,238 parameters in 3-D
    for 1 channel and 14 classes. The nnU-Net trainers that were released with it train another form, 15,876,318 for 16
    classes: ``siamese=False, mamba_layer="plain", deep_supervision=True``.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        dims: Spatial dimensions, 2 or 3; published in 3-D.
        base_channels: Channels of the stem; each stage doubles them.
        blocks: Residual blocks of a stage.
        d_state: States of the scans.
        siamese: Average Mamba over a sequence and its flips over places, channels and both.
        share_mamba: One Mamba layer for all blocks of a stage, as released.
        mamba_layer: ``residual``: Mamba's input is added and a second 1x1 convolution follows; ``plain``: neither.
        linear_head: End in a convolution. As released, norm and ReLU follow it, so that logits are never negative.
        deep_supervision: Return logits of the decoder's maps too, each at its own size.

    Raises:
        InputError: A value is impossible; the message names the option.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dims: Literal[2, 3] = 3,
        base_channels: int = 32,
        blocks: int = 3,
        d_state: int = 16,
        siamese: bool = True,
        share_mamba: bool = True,
        mamba_layer: Literal["residual", "plain"] = "residual",
        linear_head: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        _check_options("nnmamba_seg", dims, base_channels=base_channels, blocks=blocks, d_state=d_state)
        if mamba_layer not in ("residual", "plain"):
            raise InputError(f"Network 'nnmamba_seg': mamba_layer is {mamba_layer!r}; it must be residual or plain.")
        widths = _widths(base_channels)
        of_stage = min(1, blocks - 1) if share_mamba else blocks - 1
        plain = mamba_layer == "plain"
        layers = [[NNMambaLayer(dims, width, d_state, siamese, plain) for _ in range(of_stage)] for width in widths[1:]]
        encoder = ResidualEncoder(dims, in_channels, widths, blocks, mamba_layers=layers)
        super().__init__(
            in_channels,
            num_classes,
            dims,
            widths,
            encoder,
            gated=True,
            linear_head=linear_head,
            deep_supervision=deep_supervision,
        )


@register_network("nnmamba_landmark")
class NNMambaLandmark(ResidualUNet):
    """nnMamba for landmarks (https://arxiv.org/abs/2402.03526): a residual U-Net with one Mamba layer on its stem.

    The first skip is taken behind the Mamba layer, which is our reading.
    One map a landmark, of any image size: a heat map when it is trained as one, logits when it is trained to segment.
    15,205,952 parameters in 3-D for 1 channel and 16 landmarks.

    Args:
        in_channels: Channels of the image.
        num_classes: Landmarks.
        dims: Spatial dimensions, 2 or 3; published in 3-D.
        base_channels: Channels of the stem; each stage doubles them.
        blocks: Residual blocks of a stage.
        d_state: States of the scan.
        linear_head: End in a convolution. As released, norm and ReLU follow it, so that no value is negative.
        deep_supervision: Return maps of the decoder's coarser ones too, each at its own size.

    Raises:
        InputError: A value is impossible; the message names the option.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dims: Literal[2, 3] = 3,
        base_channels: int = 32,
        blocks: int = 3,
        d_state: int = 16,
        linear_head: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        _check_options("nnmamba_landmark", dims, base_channels=base_channels, blocks=blocks, d_state=d_state)
        widths = _widths(base_channels)
        stem_layer = MambaLayer(base_channels, d_state)
        encoder = ResidualEncoder(dims, in_channels, widths, blocks, stem_layer)
        super().__init__(
            in_channels,
            num_classes,
            dims,
            widths,
            encoder,
            gated=False,
            linear_head=linear_head,
            deep_supervision=deep_supervision,
        )


@register_network("nnmamba_cls", task="classify")
class NNMambaCls(ClassificationNetwork):
    """nnMamba for whole images (https://arxiv.org/abs/2402.03526): a residual network with one Mamba layer on its stem.

    The means of the three stages' maps go to a small perceptron. 12,876,321 parameters in 3-D for 1 channel and the
    single logit of the published task, disease or not. Images are not padded: the convolutions take any size.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        dims: Spatial dimensions, 2 or 3; published in 3-D.
        base_channels: Channels of the stem; each stage doubles them.
        blocks: Residual blocks of a stage.
        d_state: States of the scan.
        dropout: Rate before the last layer.

    Raises:
        InputError: A value is impossible; the message names the option.
    """

    stride = 1

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dims: Literal[2, 3] = 3,
        base_channels: int = 32,
        blocks: int = 3,
        d_state: int = 8,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check_options("nnmamba_cls", dims, base_channels=base_channels, blocks=blocks, d_state=d_state)
        if not 0 <= dropout <= 1:
            raise InputError(f"Network 'nnmamba_cls': dropout is {dropout}; it must be from 0 to 1.")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.example_size = EXAMPLE_SIZES[dims]
        widths = _widths(base_channels)
        stem_layer = Added(NNMambaLayer(dims, base_channels, d_state))
        self.encoder = ResidualEncoder(dims, in_channels, widths, blocks, stem_layer)
        self.classifier = nn.Sequential(
            OrderedDict(
                hidden=nn.Linear(sum(widths[1:]), base_channels),
                activation=nn.ReLU(),
                dropout=nn.Dropout(dropout),
                out=nn.Linear(base_channels, num_classes),
            )
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of stem and stages, strides 2 to 16, sizes rounded up, of ``x`` (B, C, *S)."""
        pyramid: list[Tensor] = self.encoder(x)
        return pyramid

    def classify(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pyramid of ``features``."""
        means = [level.flatten(2).mean(2) for level in pyramid[1:]]
        logits: Tensor = self.classifier(torch.cat(means, dim=1))
        return logits


def _check_options(name: str, dims: int, **counts: int) -> None:
    check_dims(f"Network {name!r}", dims)
    check_counts(f"Network {name!r}", **counts)


def _widths(base_channels: int) -> list[int]:
    """Return the channels of the stem and of each stage."""
    return [base_channels * 2**stage for stage in range(STAGES + 1)]
