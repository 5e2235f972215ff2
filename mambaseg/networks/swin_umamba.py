"""Swin-UMamba: a VMamba encoder under a convolutional decoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.conv_init import init_conv
from mambaseg.networks.layers.linear_init import init_linear
from mambaseg.networks.layers.unetr_block import UnetrBlock, UnetrHead, UnetrUpBlock
from mambaseg.networks.layers.vmamba_encoder import VMambaEncoder
from mambaseg.networks.register import register_network

STAGES = 4


@register_network("swin_umamba")
class SwinUMamba(SegmentationNetwork):
    """Swin-UMamba (https://arxiv.org/abs/2402.03302): skips pass residual convolutions, the finest from the image.

    59,882,128 parameters with deep supervision, for 1 channel and 4 classes. State-dict names are the published ones.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels of the first Mamba stage; each stage doubles them, and the decoder ends with half of them.
        depths: Blocks in each of the four encoder stages.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.
        deep_supervision: Return logits at strides 1, 2, 4 and 8.

    Raises:
        InputError: ``depths`` does not hold four positive values, or ``embed_dim`` is odd.
    """

    stride = 32
    decoder_stride = 1
    auxiliary_keys = r"out_layers\.[1-3]\."

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 9, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        drop_path_rate: float = 0.2,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_stages("swin_umamba", depths)
        if embed_dim % 2:
            raise InputError(
                f"Network 'swin_umamba': embed_dim is {embed_dim}; the stem has half of it, so make it even."
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.deep_supervision = deep_supervision
        widths = [embed_dim // 2 * 2**level for level in range(STAGES + 1)]
        self.decoder_channels = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3), nn.InstanceNorm2d(widths[0], affine=True)
        )
        self.vssm_encoder = VMambaEncoder(
            widths[0], embed_dim, 2, depths, d_state, ssm_ratio, drop_path_rate, checkpointing
        )
        self.encoder1 = UnetrBlock(2, in_channels, widths[0])
        self.encoder2 = UnetrBlock(2, widths[0], widths[1])
        self.encoder3 = UnetrBlock(2, widths[1], widths[2])
        self.encoder4 = UnetrBlock(2, widths[2], widths[3])
        self.encoder5 = UnetrBlock(2, widths[3], widths[4])
        self.decoder6 = UnetrUpBlock(2, widths[4], widths[4])
        self.decoder5 = UnetrUpBlock(2, widths[4], widths[3])
        self.decoder4 = UnetrUpBlock(2, widths[3], widths[2])
        self.decoder3 = UnetrUpBlock(2, widths[2], widths[1])
        self.decoder2 = UnetrUpBlock(2, widths[1], widths[0])
        self.decoder1 = UnetrBlock(2, widths[0], widths[0])
        heads = widths[:4] if deep_supervision else widths[:1]
        self.out_layers = nn.ModuleList(UnetrHead(2, width, num_classes) for width in heads)
        self.apply(init_linear)
        self.apply(init_conv)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the image, the stem and the four stages, strides 1, 2, 4 ... 32, of ``x`` (B, C, H, W), padded."""
        stem = self.stem(x)
        return [x, stem, *self.vssm_encoder(stem)]

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoder maps of strides 1, 2, 4 and 8."""
        *skips, x = pyramid
        lift = (self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder5)
        up = (self.decoder2, self.decoder3, self.decoder4, self.decoder5, self.decoder6)
        levels: list[Tensor] = []
        for up_block, skip_block, skip in zip(up[::-1], lift[::-1], skips[::-1], strict=True):
            x = up_block(x, skip_block(skip))
            levels.insert(0, x)
        return [self.decoder1(x), *levels[1:4]]

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the decoder map (B, embed_dim / 2, H, W)."""
        logits: Tensor = self.out_layers[0](decoded)
        return logits

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits at strides 2, 4 and 8."""
        return [head(level) for head, level in zip(list(self.out_layers)[1:], levels, strict=True)]


def check_stages(name: str, depths: Sequence[int]) -> None:
    """Refuse depths that do not fit the four stages.

    Raises:
        InputError: There are not four, or one is not positive.
    """
    if len(depths) != STAGES or min(depths) < 1:
        raise InputError(f"Network {name!r}: depths is {list(depths)}; it needs four positive values, one a stage.")
