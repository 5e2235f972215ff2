"""The contract of every 2-D and 3-D segmentation network."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

NO_DECAY_MARK = "_no_weight_decay"


class SegmentationNetwork(nn.Module, ABC):
    """A network from images to logits of the same size, for any input size.

    A subclass gives the encoder (``features``), the decoder (``decode``) and the head (``classify``); this class pads
    the input to a multiple of ``stride`` and crops the logits back. The seam between decoder and head is public because
    pixel-level contrast works on decoder features.

    Attributes:
        in_channels: Channels of the input image.
        num_classes: Classes of the logits, background included.
        stride: The input is padded to multiples of this many pixels.
        decoder_channels: Channels of the map that ``decode`` returns.
        decoder_stride: Pixels of the input a side of one cell of that map.
    """

    in_channels: int
    num_classes: int
    stride: int
    decoder_channels: int
    decoder_stride: int

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's pyramid, finest map first, each (B, C_i, *S_i); ``x`` is (B, C, *S), padded."""

    @abstractmethod
    def decode(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return the decoder's last feature map, (B, decoder_channels, *S'), from the pyramid of ``features``."""

    @abstractmethod
    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, *S) at the padded size from the map of ``decode``."""

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the decoder features that they were made from.

        Args:
            x: (B, C, *S) image of any size.

        Returns:
            Logits (B, K, *S), and the decoder map (B, decoder_channels, *S') that covers the padded image.

        Raises:
            ValueError: The input has another number of channels than the network was built for.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} was built for {self.in_channels} input channels and got {x.shape[1]} "
                f"(input of shape {tuple(x.shape)})"
            )
        size = x.shape[2:]
        decoded = self.decode(self.features(pad_to_multiple(x, self.stride)))
        logits = self.classify(decoded)
        for axis, length in enumerate(size, start=2):
            logits = logits.narrow(axis, 0, length)
        return logits, decoded

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, *S) for images ``x`` (B, C, *S)."""
        return self.forward_with_features(x)[0]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row, column (and slice) of ``x`` (B, C, *S) until every size is a multiple of ``multiple``."""
    missing = [-n % multiple for n in x.shape[2:]]
    if not any(missing):
        return x
    widths = [width for n in reversed(missing) for width in (0, n)]
    return F.pad(x, widths, mode="replicate")


def mark_no_decay(*parameters: nn.Parameter) -> None:
    """Mark parameters that no optimizer may decay (A_logs, Ds, the bias of delta)."""
    for parameter in parameters:
        setattr(parameter, NO_DECAY_MARK, True)


def no_decay_names(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters that ``mark_no_decay`` marked."""
    return (name for name, parameter in module.named_parameters() if getattr(parameter, NO_DECAY_MARK, False))
