"""VMamba: image classifiers of visual state-space blocks, and the backbones that others start from."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import ClassificationNetwork
from mambaseg.networks.layers.channel_order import ChannelsFirst, ChannelsLast
from mambaseg.networks.layers.drop_path import drop_path_rates
from mambaseg.networks.layers.layer_norm import LayerNorm
from mambaseg.networks.layers.linear_init import init_linear
from mambaseg.networks.layers.patches import PatchMerging
from mambaseg.networks.layers.stage import Stage
from mambaseg.networks.layers.vmamba_block import VMambaBlock
from mambaseg.networks.register import register_network

PATCH = 4


class VMamba(ClassificationNetwork):
    """VMamba (https://arxiv.org/abs/2401.10166): four stages of scan blocks, LayerNorm, mean over pixels, classifier.

    Maps are channels-last throughout, so the published choice between ``ln`` and ``ln2d`` is one function here; the
    state-dict names are those of the later releases. At sizes that are no multiples of 32 the last pixels are repeated,
    where the published code pads maps with zeros.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels of the first stage; each stage doubles them.
        depths: Blocks in each stage.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        mlp_ratio: Hidden width of the blocks' MLPs over their channels; 0 for no MLPs.
        stem: ``patch`` embeds patches of 4 x 4; ``conv`` takes two convolutions of stride 2.
        downsample: ``merge`` merges patches; ``conv`` takes a convolution of stride 2.
        d_conv: Side of the depthwise convolution before the scan; below 2 there is none.
        conv_bias: Whether it has a bias.
        forward_type: Form of the scan layer by its published name, see ``parse_form``.
        ssm_init: How the scan starts, see ``initial_scan_parameters``.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.

    Raises:
        InputError: ``depths`` holds a value below 1, or a word is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 9, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 0.0,
        stem: Literal["patch", "conv"] = "patch",
        downsample: Literal["merge", "conv"] = "merge",
        d_conv: int = 3,
        conv_bias: bool = True,
        forward_type: str = "v0",
        ssm_init: str = "v0",
        drop_path_rate: float = 0.2,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_options(depths, stem, downsample)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = PATCH * 2 ** (len(depths) - 1)
        dims = [embed_dim * 2**level for level in range(len(depths))]
        scan: dict[str, Any] = {"d_state": d_state, "ssm_ratio": ssm_ratio, "d_conv": d_conv, "conv_bias": conv_bias}
        scan |= {"forward_type": forward_type, "ssm_init": ssm_init}
        self.patch_embed = patch_stem(in_channels, embed_dim) if stem == "patch" else conv_stem(in_channels, embed_dim)
        self.layers = nn.ModuleList()
        for dim, rates in zip(dims, drop_path_rates(drop_path_rate, depths), strict=True):
            merge = PatchMerging(dim) if downsample == "merge" else conv_downsample(dim)
            blocks = [VMambaBlock(dim, rate, mlp_ratio, **scan) for rate in rates]
            self.layers.append(Stage(blocks, merge if dim != dims[-1] else None, checkpointing=checkpointing))
        head = {"norm": nn.LayerNorm(dims[-1]), "pool": PixelMean(), "head": nn.Linear(dims[-1], num_classes)}
        self.classifier = nn.Sequential(OrderedDict(head))
        self.apply(init_linear)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the output of each stage's blocks, (B, C_i, H/4, W/4) and so on, of ``x`` (B, C, H, W), padded."""
        x = self.patch_embed(x)
        pyramid = []
        for layer in cast(list[Stage], list(self.layers)):
            pyramid.append(layer.transform(x))
            x = layer.resample(pyramid[-1])
        return [level.permute(0, 3, 1, 2) for level in pyramid]

    def classify(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pyramid of ``features``."""
        logits: Tensor = self.classifier(pyramid[-1].permute(0, 2, 3, 1))
        return logits


class PixelMean(nn.Module):
    """The mean over all pixels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C) of ``x`` (B, H, W, C)."""
        return x.mean(dim=(1, 2))


def patch_stem(in_channels: int, dim: int) -> nn.Sequential:
    """Return the first release's stem, from (B, C, H, W) to (B, H/4, W/4, dim): patches, LayerNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, dim, PATCH, stride=PATCH), ChannelsLast(), LayerNorm(dim, into_product=False)
    )


def conv_stem(in_channels: int, dim: int) -> nn.Sequential:
    """Return the later stem, from (B, C, H, W) to (B, H/4, W/4, dim): twice a convolution of stride 2 and LayerNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1),
        ChannelsLast(),
        LayerNorm(dim // 2),
        ChannelsFirst(),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        ChannelsLast(),
        LayerNorm(dim, into_product=False),
    )


def conv_downsample(dim: int) -> nn.Sequential:
    """Return a layer from (B, H, W, dim) to (B, H/2, W/2, 2 dim): a convolution of stride 2, LayerNorm."""
    conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
    return nn.Sequential(ChannelsFirst(), conv, ChannelsLast(), LayerNorm(2 * dim, into_product=False))


def _check_options(depths: Sequence[int], stem: str, downsample: str) -> None:
    if not depths or min(depths) < 1:
        raise InputError(f"Network 'vmamba': depths is {list(depths)}; it needs positive values, one a stage.")
    for field, value, words in (("stem", stem, ("patch", "conv")), ("downsample", downsample, ("merge", "conv"))):
        if value not in words:
            raise InputError(f"Network 'vmamba': {field} is {value!r}; it must be one of {', '.join(words)}.")


def _register(name: str, summary: str, **published: Any) -> None:
    """Register a published size of VMamba; its options stay options, with the published values as defaults."""
    builder = partial(VMamba, **published)
    builder.__doc__ = f"{summary} (https://arxiv.org/abs/2401.10166)."
    register_network(name, task="classify")(builder)


_LATER: dict[str, Any] = {
    "d_state": 1,
    "mlp_ratio": 4.0,
    "stem": "conv",
    "downsample": "conv",
    "conv_bias": False,
    "forward_type": "v05_noz",
}
"""What the later releases, s2l5 ... s1l20, have in common."""

_register("vmamba_tiny", "VMamba-T, first release", drop_path_rate=0.2)
_register("vmamba_small", "VMamba-S, first release", depths=(2, 2, 27, 2), drop_path_rate=0.3)
_register("vmamba_base", "VMamba-B, first release", embed_dim=128, depths=(2, 2, 27, 2), drop_path_rate=0.6)
for _name, _dim, _ratio, _depth, _rate in (
    ("tiny", 96, 2.0, 5, 0.2),
    ("small", 96, 2.0, 15, 0.3),
    ("base", 128, 2.0, 15, 0.6),
    ("tiny", 96, 1.0, 8, 0.2),
    ("small", 96, 1.0, 20, 0.3),
    ("base", 128, 1.0, 20, 0.5),
):
    _register(
        f"vmamba_{_name}_s{_ratio:.0f}l{_depth}",
        f"VMamba-{_name[0].upper()} of ratio {_ratio:.0f} with {_depth} blocks in the third stage, later release",
        embed_dim=_dim,
        depths=(2, 2, _depth, 2),
        ssm_ratio=_ratio,
        drop_path_rate=_rate,
        **_LATER,
    )
