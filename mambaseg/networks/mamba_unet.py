"""Mamba-UNet: a U-shape of visual state-space blocks."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.patches import PatchEmbed, PatchExpand, PatchMerging
from mambaseg.networks.layers.vss_block import VSSStage
from mambaseg.networks.register import register_network

PATCH = 4


@register_network("mamba_unet")
class MambaUNet(SegmentationNetwork):
    """Mamba-UNet (https://arxiv.org/abs/2402.05079): VMamba encoder, mirrored decoder, concatenated skips.

    The skips are the inputs of the encoder stages, as in the released code; 19,121,664 parameters for 4 classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        depths: Blocks in each encoder stage; the decoder mirrors them, without the deepest.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
        grey_stem: For ``in_channels=1``: ``repeat`` feeds the image to a 3-channel stem three times, so that weights
            trained on colour images fit; ``single`` has a 1-channel stem, the same function at a third of the stem's
            cost once the 3-channel weights are summed, which loading such weights does.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.

    Raises:
        InputError: ``depths`` does not hold four positive values, or ``grey_stem`` is unknown.
    """

    decoder_stride = PATCH

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        drop_path_rate: float = 0.2,
        grey_stem: Literal["repeat", "single"] = "repeat",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_options(depths, grey_stem)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = PATCH * 2 ** (len(depths) - 1)
        self.decoder_channels = embed_dim
        self.repeats_grey = in_channels == 1 and grey_stem == "repeat"
        dims = [embed_dim * 2**i for i in range(len(depths))]
        rates = _split(torch.linspace(0, drop_path_rate, sum(depths)).tolist(), depths)
        stage = partial(VSSStage, d_state=d_state, ssm_ratio=ssm_ratio, checkpointing=checkpointing)

        self.patch_embed = PatchEmbed(3 if self.repeats_grey else in_channels, embed_dim, PATCH)
        self.layers = nn.ModuleList(
            stage(dim, rate, downsample=PatchMerging(dim) if dim != dims[-1] else None)
            for dim, rate in zip(dims, rates, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.layers_up = nn.ModuleList([PatchExpand(dims[-1], 2, dims[-2])])
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        for dim, rate in zip(dims[-2::-1], rates[-2::-1], strict=True):
            upsample = PatchExpand(dim, 2, dim // 2) if dim != dims[0] else None
            self.layers_up.append(stage(dim, rate, upsample=upsample))
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


def _check_options(depths: Sequence[int], grey_stem: str) -> None:
    if len(depths) < 2 or min(depths) < 1:
        raise InputError(f"Network 'mamba_unet': depths is {list(depths)}; it needs two or more positive values.")
    if grey_stem not in ("repeat", "single"):
        raise InputError(f"Network 'mamba_unet': grey_stem is {grey_stem!r}; it must be 'repeat' or 'single'.")


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
