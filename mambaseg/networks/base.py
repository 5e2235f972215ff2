"""The contracts of the networks: those that segment, in 2-D and 3-D, and those that classify."""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.weights.report import LoadReport

NO_DECAY_MARK = "_no_weight_decay"
WIDE_WEIGHTS_MARK = "_weights_stay_float32"
"""Of a layer with whose weights a network computes before it multiplies by them, or that it runs several times."""


class Network(nn.Module, ABC):
    """What all networks have in common: an encoder with a pyramid of maps, and images of any size.

    Attributes:
        in_channels: Channels of the input image.
        num_classes: Classes of the logits.
        stride: The input is padded to multiples of this many pixels; one number, or one for each axis.
        minimum_cells: An input of fewer strides along every axis is padded to this many along each.
        example_size: Size of the image that its cost is listed for.
        weights_report: What became of the weights that it was created with, None for fresh ones.
    """

    in_channels: int
    num_classes: int
    stride: int | tuple[int, ...]
    minimum_cells: int = 1
    example_size: tuple[int, ...] = (224, 224)
    weights_report: LoadReport | None = None

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's pyramid, finest map first, each (B, C_i, *S_i); ``x`` is (B, C, *S), padded."""

    @property
    def spatial_axes(self) -> int:
        """2 for a network of images, 3 for one of volumes."""
        return len(self.example_size if isinstance(self.stride, int) else self.stride)

    def pad(self, x: Tensor) -> Tensor:
        """Return the images ``x`` (B, C, *S) padded to a size that ``features`` takes.

        Raises:
            InputError: They have another number of axes than the network was built for.
            ValueError: They have another number of channels.
        """
        if x.dim() != self.spatial_axes + 2:
            raise InputError(
                f"{type(self).__name__} was built for {self.spatial_axes} spatial axes and got an input of shape "
                f"{tuple(x.shape)}; networks for both have an option dims"
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} was built for {self.in_channels} input channels and got {x.shape[1]} "
                f"(input of shape {tuple(x.shape)})"
            )
        if self.training and self.spatial_axes == 3 and x.device.type == "cpu":
            _warn_of_half(x)
        return pad_to_multiple(x, self.stride, self.minimum_cells)

    def input_constraint(self) -> str:
        """Return in a few words which image sizes the network takes."""
        axes = (self.stride,) if isinstance(self.stride, int) else self.stride
        cells = axes[:1] if len(set(axes)) == 1 else axes
        steps, least = (" × ".join(str(cell * times) for cell in cells) for times in (1, self.minimum_cells))
        return f"any size, steps of {steps}" + (f" from {least}" if self.minimum_cells > 1 else "")


class ClassificationNetwork(Network):
    """A network from images to one row of logits each, for any image size; its encoder serves as a backbone."""

    @abstractmethod
    def classify(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pyramid of ``features``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) for images ``x`` (B, C, *S)."""
        return self.classify(self.features(self.pad(x)))


class SegmentationNetwork(Network):
    """A network from images to logits of the same size, for any input size.

    A subclass gives the encoder (``features``), the decoder (``decode_levels``) and the head (``classify``); this class
    pads the input to a multiple of ``stride`` and crops the logits back. The seam between decoder and head is public
    because pixel-level contrast works on decoder features.

    A network that can be built with deep supervision gives ``classify_auxiliary`` too. Its
    auxiliary heads exist only when it is built so: then ``forward`` returns a list and every parameter has a part in
    it. ``forward_with_features`` never computes auxiliary logits. Weights trained with deep supervision load into a
    network without; the heads that it lacks are ignored.

    Attributes:
        decoder_channels: Channels of the map that ``decode`` returns.
        decoder_stride: Pixels of the input a side of one cell of that map.
        deep_supervision: Whether ``forward`` returns logits of several decoder maps.
        auxiliary_keys: Pattern of the state-dict keys that only deep supervision has.
    """

    decoder_channels: int
    decoder_stride: int
    deep_supervision: bool = False
    auxiliary_keys: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_drop_absent_heads)  # type: ignore[no-untyped-call]

    @abstractmethod
    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoder maps that are supervised, (B, C_i, *S_i) each, from the pyramid of ``features``.

        The first is the decoder's last map, (B, decoder_channels, *S').
        """

    def decode(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return the first map of ``decode_levels``; a network that can make it alone does."""
        return self.decode_levels(pyramid)[0]

    @abstractmethod
    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, *S) at the padded size from the map of ``decode``."""

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, *S_i) of the maps that ``decode_levels`` returns after the first."""
        return []

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return full-size logits and the decoder features that they were made from.

        Args:
            x: (B, C, *S) image of any size.

        Returns:
            Logits (B, K, *S), and the decoder map (B, decoder_channels, *S') that covers the padded image.

        Raises:
            ValueError: The input has another number of channels than the network was built for.
        """
        padded = self.pad(x)
        decoded = self.decode(self.features(padded))
        return crop_to_image(self.classify(decoded), x, padded), decoded

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S) for images ``x`` (B, C, *S).

        With deep supervision: a list of logits, full size first. Those of a map with cells of s pixels a side have
        ceil(S / s) cells along each axis; the last one may lie partly outside the image.
        """
        if not self.deep_supervision:
            return self.forward_with_features(x)[0]
        padded = self.pad(x)
        first, *others = self.decode_levels(self.features(padded))
        logits = [self.classify(first), *self.classify_auxiliary(others)]
        return [crop_to_image(level, x, padded) for level in logits]


def _warn_of_half(x: Tensor) -> None:
    """Say what torch 2.13 does wrong without a word; in float32 it is right."""
    if x.dtype == torch.bfloat16 or (torch.is_autocast_enabled("cpu") and x.dtype != torch.float64):
        warnings.warn(
            "on a CPU, torch's gradients of convolutions of volumes in bfloat16 are wrong where a map is two slices "
            "deep: train in float32 (trainer.precision: 32-true) or on a GPU",
            stacklevel=3,
        )


def pad_to_multiple(x: Tensor, multiple: int | Sequence[int], minimum_cells: int = 1) -> Tensor:
    """Repeat the last row, column (and slice) of ``x`` (B, C, *S) until every size is a multiple.

    Args:
        x: As above.
        multiple: Pixels; one number, or one for each axis.
        minimum_cells: Where every size would become fewer multiples, each becomes this many.
    """
    size = x.shape[2:]
    cells = [multiple] * len(size) if isinstance(multiple, int) else multiple
    if any(n > (minimum_cells - 1) * cell for n, cell in zip(size, cells, strict=True)):
        minimum_cells = 1
    missing = [max(minimum_cells * cell - n, -n % cell) for n, cell in zip(size, cells, strict=True)]
    if not any(missing):
        return x
    widths = [width for n in reversed(missing) for width in (0, n)]
    return F.pad(x, widths, mode="replicate")


def crop_to_image(level: Tensor, image: Tensor, padded: Tensor) -> Tensor:
    """Return what lies on the image of a map that covers the padded image.

    Args:
        level: (B, K, *S'), a divisor of the padded size along each axis.
        image: (B, C, *S).
        padded: ``image`` as padded.

    Returns:
        (B, K, *S'), with every cell that holds a pixel of the image.
    """
    for axis in range(2, image.ndim):
        cell = padded.shape[axis] // level.shape[axis]
        cells = -(-image.shape[axis] // cell)
        if cells < level.shape[axis]:  # the gradient of a whole narrowed axis would be filled and copied all the same
            level = level.narrow(axis, 0, cells)
    return level


def mark_wide_weights(layer: nn.Module) -> None:
    """Mark a layer whose weights, or the sum of whose gradients, are computed in float32: nobody casts them before."""
    setattr(layer, WIDE_WEIGHTS_MARK, True)


def mark_no_decay(*parameters: nn.Parameter) -> None:
    """Mark parameters that no optimizer may decay (A_logs, Ds, the bias of delta)."""
    for parameter in parameters:
        setattr(parameter, NO_DECAY_MARK, True)


def no_decay_names(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters that ``mark_no_decay`` marked."""
    return (name for name, parameter in module.named_parameters() if getattr(parameter, NO_DECAY_MARK, False))


def _drop_absent_heads(module: SegmentationNetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if module.deep_supervision or module.auxiliary_keys is None:
        return
    for key in [key for key in state if re.match(re.escape(prefix) + module.auxiliary_keys, key)]:
        del state[key]
