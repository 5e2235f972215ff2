"""The U-Net with further decoders that see disturbed features."""

from collections.abc import Sequence

from torch import Tensor, nn

from mambaseg.networks.layers.perturbations import perturbation
from mambaseg.networks.register import register_network
from mambaseg.networks.unet import Decoder, UNet


@register_network("unet_cct")
class UNetCCT(UNet):
    """U-Net with one encoder and several decoders, for cross-consistency training (https://arxiv.org/abs/2003.09005).

    The auxiliary decoders learn from disturbed copies of all five encoder maps; in evaluation mode nothing is
    disturbed. 3,713,664 parameters with three of them, for 1 channel and 4 classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        channels: Widths of the five levels.
        dropout: Dropout rate in each encoder level.
        perturbations: What each auxiliary decoder's features go through, see ``perturbation``. The default is that of
            the semi-supervised benchmark; that of the scribble benchmark is ``("channel_dropout",)``.
        deep_supervision: Return the logits of all decoders, the main one first, all of full size. Without, the
            auxiliary decoders are not built, and the network is ``unet``.

    Raises:
        InputError: ``channels`` or ``dropout`` does not hold five values, or a perturbation is unknown.
    """

    auxiliary_keys = r"auxiliary_decoders\."

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        perturbations: Sequence[str] = ("noise", "dropout", "feature_drop"),
        deep_supervision: bool = True,
    ) -> None:
        super().__init__(in_channels, num_classes, channels, dropout)
        self.deep_supervision = deep_supervision
        names = perturbations if deep_supervision else ()
        self.perturbations = nn.ModuleList(perturbation(name, "unet_cct") for name in names)
        self.auxiliary_decoders = nn.ModuleList(Decoder(channels, num_classes) for _ in names)

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the full-size map (B, channels[0], H, W) of every decoder, the main one first."""
        maps = [self.decoder(pyramid)[0]]
        for disturb, decoder in zip(self.perturbations, self.auxiliary_decoders, strict=True):
            maps.append(decoder([disturb(level) for level in pyramid])[0])
        return maps

    def decode(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return the main decoder's full-size map (B, channels[0], H, W)."""
        decoded: Tensor = self.decoder(pyramid)[0]
        return decoded

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, H, W) of the auxiliary decoders' maps."""
        heads = [decoder.get_submodule("out_conv") for decoder in self.auxiliary_decoders]
        return [head(level) for head, level in zip(heads, levels, strict=True)]
