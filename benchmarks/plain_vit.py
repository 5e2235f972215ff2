"""A plain ViT, all of whose patches look at each other, beside the networks of ``mambaseg bench step``.

    python benchmarks/plain_vit.py --config EXP --set model.init_args.students.student.network=plain_vit

``scaling.py`` runs it so.
"""

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.cli import main
from mambaseg.networks import SegmentationNetwork
from mambaseg.networks.register import register_network


@register_network("plain_vit")
class PlainViT(SegmentationNetwork):
    """ViT-S/8 (https://arxiv.org/abs/2010.11929) with sines for positions, and a linear head enlarged bilinearly.

    It is here to be timed: what global attention costs as images grow.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        patch: Pixels a side of a patch.
        dim: Channels of a token.
        depth: Layers.
        heads: Heads of each.
    """

    def __init__(
        self, in_channels: int, num_classes: int, patch: int = 8, dim: int = 384, depth: int = 12, heads: int = 6
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        self.stride = self.decoder_stride = patch
        self.decoder_channels = dim
        self.embed = nn.Conv2d(in_channels, dim, patch, patch)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Conv2d(dim, num_classes, 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the tokens of ``x`` (B, C, H, W) as a map (B, dim, H/patch, W/patch)."""
        tokens: Tensor = self.embed(x)
        height, width = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2)
        tokens = self.layers(tokens + positions(height, width, tokens))
        return [tokens.transpose(1, 2).reshape(len(x), -1, height, width)]

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the tokens: there is no decoder."""
        return list(pyramid)

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the map of tokens."""
        return F.interpolate(self.head(decoded), scale_factor=self.decoder_stride, mode="bilinear")


def positions(height: int, width: int, tokens: Tensor) -> Tensor:
    """Return sines and cosines of row and column, (H W, dim), for ``tokens`` (B, H W, dim), dim a multiple of 4."""
    quarter = tokens.shape[-1] // 4
    frequencies = 1e4 ** -(torch.arange(quarter, device=tokens.device) / quarter)
    rows, columns = (torch.arange(n, device=tokens.device)[:, None] * frequencies for n in (height, width))
    by_row = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, width, -1)
    by_column = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, -1, -1)
    return torch.cat([by_row, by_column], -1).flatten(0, 1).to(tokens.dtype)


if __name__ == "__main__":
    sys.exit(main(["bench", "step", *sys.argv[1:]]))
