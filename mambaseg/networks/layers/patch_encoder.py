"""The encoder over patches that Swin-UNet, Mamba-UNet and VM-UNet share."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.colour_stem import fold_colour
from mambaseg.networks.layers.drop_path import drop_path_rates
from mambaseg.networks.layers.patches import PatchEmbed, PatchMerging
from mambaseg.networks.layers.stage import Stage

PATCH = 4

BlockBuilder = Callable[[int, int, float], Block]
"""Makes a block from its level (0 is the finest), its place in the stage, and its rate of stochastic depth."""


class PatchEncoder(SegmentationNetwork):
    """Patch embedding and stages of blocks that merge patches; a subclass adds its decoder.

    State-dict names are those of the released networks.

    Args:
        name: The network's registered name, for messages.
        block: Makes the blocks.
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        depths: Blocks in each encoder stage.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
        grey_stem: For ``in_channels=1``: ``repeat`` feeds the image to a 3-channel stem three times, so that weights
            trained on colour images fit; ``single`` has a 1-channel stem, the same function at a third of the stem's
            cost once the 3-channel weights are summed, which loading such weights does.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.

    Raises:
        InputError: ``depths`` does not hold two or more positive values, or ``grey_stem`` is unknown.
    """

    decoder_stride = PATCH
    auxiliary_keys = r"auxiliary_outputs\."
    auxiliary_outputs: nn.ModuleList

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
        check_depths(name, "depths", depths)
        if grey_stem not in ("repeat", "single"):
            raise InputError(f"Network {name!r}: grey_stem is {grey_stem!r}; it must be 'repeat' or 'single'.")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = PATCH * 2 ** (len(depths) - 1)
        self.decoder_channels = embed_dim
        self.repeats_grey = in_channels == 1 and grey_stem == "repeat"
        self.dims = [embed_dim * 2**level for level in range(len(depths))]
        self.patch_embed = PatchEmbed(3 if self.repeats_grey else in_channels, embed_dim, PATCH)
        self.layers = nn.ModuleList()
        for level, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            downsample = PatchMerging(self.dims[level]) if level < len(depths) - 1 else None
            self.layers.append(build_stage(block, level, rates, downsample, checkpointing=checkpointing))
        self.register_load_state_dict_pre_hook(_fold_colour_stem)  # type: ignore[no-untyped-call]

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the stage inputs and the last stage's output, channels-first, of ``x`` (B, C, H, W), padded.

        Strides 4, 8, 16, 32 and 32 for four stages.
        """
        x = self.patch_embed(x.expand(-1, 3, -1, -1) if self.repeats_grey else x)
        pyramid = []
        for layer in self.layers:
            pyramid.append(x)
            x = layer(x)
        return [level.permute(0, 3, 1, 2) for level in [*pyramid, x]]

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, H/8, W/8), (B, K, H/16, W/16) ... of the deeper decoder stages.

        A subclass that is built with deep supervision makes the heads, ``auxiliary_outputs``.
        """
        return [head(level) for head, level in zip(self.auxiliary_outputs, levels, strict=True)]


def build_stage(
    block: BlockBuilder,
    level: int,
    rates: Sequence[float],
    downsample: nn.Module | None = None,
    upsample: nn.Module | None = None,
    *,
    checkpointing: bool,
) -> Stage:
    """Return a stage with one block for each of ``rates``, its rates of stochastic depth.

    Args:
        block: Makes the blocks.
        level: Level of the stage, 0 is the finest.
        rates: One a block.
        downsample: See ``Stage``; so the others.
        upsample: As above.
        checkpointing: As above.
    """
    return Stage([block(level, place, r) for place, r in enumerate(rates)], downsample, upsample, checkpointing)


def check_depths(name: str, field: str, depths: Sequence[int]) -> None:
    """Refuse depths that make no pyramid.

    Raises:
        InputError: There are fewer than two stages, or one is empty.
    """
    if len(depths) < 2 or min(depths) < 1:
        raise InputError(f"Network {name!r}: {field} is {list(depths)}; it needs two or more positive values.")


def _fold_colour_stem(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Fold a 3-channel stem when a 1-channel network loads it."""
    key = f"{prefix}patch_embed.proj.weight"
    if key in state:
        state[key] = fold_colour(state[key], module.get_parameter("patch_embed.proj.weight").shape[1])
