"""The U-shape over patches that Swin-UNet and Mamba-UNet share; they differ in their blocks alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.patches import PatchEmbed, PatchExpand, PatchMerging
from mambaseg.networks.layers.stage import Stage

PATCH = 4

BlockBuilder = Callable[[int, int, float], nn.Module]
"""Makes a block from its level (0 is the finest), its place in the stage, and its rate of stochastic depth."""


class PatchUNet(SegmentationNetwork):
    """Patch embedding, an encoder that merges patches, a mirrored decoder that expands them, concatenated skips.

    The skips are the inputs of the encoder stages, as in the released code of both; state-dict names are theirs too.

    Args:
        name: The network's registered name, for messages.
        block: Makes the blocks.
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        depths: Blocks in each encoder stage; the decoder mirrors them, without the deepest.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
        grey_stem: For ``in_channels=1``: ``repeat`` feeds the image to a 3-channel stem three times, so that weights
            trained on colour images fit; ``single`` has a 1-channel stem, the same function at a third of the stem's
            cost once the 3-channel weights are summed, which loading such weights does.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.

    Raises:
        InputError: ``depths`` does not hold two or more positive values, or ``grey_stem`` is unknown.
    """

    decoder_stride = PATCH

    def __init__(
        self,
        name: str,
        block: BlockBuilder,
        in_channels: int,
        num_classes: int,
        embed_dim: int,
        depths: Sequence[int],
        drop_path_rate: float,
        grey_stem: str,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        _check_options(name, depths, grey_stem)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = PATCH * 2 ** (len(depths) - 1)
        self.decoder_channels = embed_dim
        self.repeats_grey = in_channels == 1 and grey_stem == "repeat"
        dims = [embed_dim * 2**i for i in range(len(depths))]
        rates = _split(torch.linspace(0, drop_path_rate, sum(depths)).tolist(), depths)

        def stage(level: int, downsample: nn.Module | None = None, upsample: nn.Module | None = None) -> Stage:
            blocks = [block(level, place, rate) for place, rate in enumerate(rates[level])]
            return Stage(blocks, downsample, upsample, checkpointing)

        self.patch_embed = PatchEmbed(3 if self.repeats_grey else in_channels, embed_dim, PATCH)
        self.layers = nn.ModuleList(
            stage(level, downsample=PatchMerging(dim) if dim != dims[-1] else None) for level, dim in enumerate(dims)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.layers_up = nn.ModuleList([PatchExpand(dims[-1], 2, dims[-2])])
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        for level in reversed(range(len(dims) - 1)):
            dim = dims[level]
            self.layers_up.append(stage(level, upsample=PatchExpand(dim, 2, dim // 2) if level else None))
            self.concat_back_dim.append(nn.Linear(2 * dim, dim))
        self.norm_up = nn.LayerNorm(embed_dim)
        self.up = PatchExpand(embed_dim, PATCH, embed_dim)
        self.output = nn.Conv2d(embed_dim, num_classes, 1, bias=False)
        self.apply(_init_linear)
        self.register_load_state_dict_pre_hook(_fold_colour_stem)  # type: ignore[no-untyped-call]

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the stage inputs and the bottleneck, channels-first, of ``x`` (B, C, H, W), H and W multiples of 32.

        Strides 4, 8, 16, 32 and 32 for four stages.
        """
        x = self.patch_embed(x.expand(-1, 3, -1, -1) if self.repeats_grey else x)
        pyramid = []
        for layer in self.layers:
            pyramid.append(x)
            x = layer(x)
        return [level.permute(0, 3, 1, 2) for level in [*pyramid, self.norm(x)]]

    def decode(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return the decoder map (B, embed_dim, H/4, W/4)."""
        *skips, bottleneck = (level.permute(0, 2, 3, 1) for level in pyramid)
        x = self.layers_up[0](bottleneck)
        for layer, reduce, skip in zip(self.layers_up[1:], self.concat_back_dim[1:], skips[-2::-1], strict=True):
            x = layer(reduce(torch.cat([x, skip], dim=-1)))
        decoded: Tensor = self.norm_up(x).permute(0, 3, 1, 2)
        return decoded

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the decoder map (B, embed_dim, H/4, W/4)."""
        expanded = self.up(decoded.permute(0, 2, 3, 1))
        logits: Tensor = self.output(expanded.permute(0, 3, 1, 2))
        return logits


def _check_options(name: str, depths: Sequence[int], grey_stem: str) -> None:
    if len(depths) < 2 or min(depths) < 1:
        raise InputError(f"Network {name!r}: depths is {list(depths)}; it needs two or more positive values.")
    if grey_stem not in ("repeat", "single"):
        raise InputError(f"Network {name!r}: grey_stem is {grey_stem!r}; it must be 'repeat' or 'single'.")


def _split(values: Sequence[float], lengths: Sequence[int]) -> list[list[float]]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [list(values[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _fold_colour_stem(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Sum a 3-channel stem over its inputs when a 1-channel network loads it: equal on grey images."""
    key = f"{prefix}patch_embed.proj.weight"
    own = module.get_parameter("patch_embed.proj.weight")
    if key in state and state[key].shape[1] == 3 and own.shape[1] == 1:
        state[key] = state[key].sum(dim=1, keepdim=True)
