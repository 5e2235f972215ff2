"""Cases of the operators around the scan, beside their plain torch compositions, at the sizes of Mamba-UNet."""

import functools
import math
from collections.abc import Iterator

import torch
from case import DTYPES, OURS, Case, Draw, Operator, Provider
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels import (
    batch_norm_act,
    bilinear_doubling,
    causal_conv1d,
    causal_conv1d_update,
    depthwise_conv2d,
    merge_norm_gate,
    rms_scores,
    selective_state_update,
    softmax_sums,
)
from mambaseg.kernels.batch_norm_act import batch_norm_act_reference
from mambaseg.kernels.bilinear_doubling import bilinear_doubling_reference
from mambaseg.kernels.causal_conv1d import causal_conv1d_reference, causal_conv1d_update_reference
from mambaseg.kernels.depthwise_conv2d import depthwise_conv2d_reference
from mambaseg.kernels.norm_gate import layer_norm, layer_norm_reference, merge_norm_gate_reference
from mambaseg.kernels.rms_scores import rms_scores_reference
from mambaseg.kernels.selective_state_update import selective_state_update_reference
from mambaseg.kernels.softmax_sums import softmax_sums_reference

# (batch, steps, channels of one direction)
SIZES = {
    "full": [(24, 3136, 192), (24, 784, 384), (24, 196, 768), (24, 49, 1536), (4, 16384, 192)],
    "demo": [(2, 49, 32)],
}
# (batch, classes, height, width) of logits
LOGITS = {"full": [(16, 4, 224, 224), (24, 4, 256, 256)], "demo": [(2, 4, 32, 32)]}
# (batch, height, width, pixels of a patch, channels) of the vectors behind the last expansion
VECTORS = {"full": [(16, 56, 56, 16, 96), (24, 64, 64, 16, 96)], "demo": [(2, 8, 8, 16, 24)]}
# (batch, height, width, channels) of what U-Net's decoder doubles; the skip has as many channels
SMALL_MAPS = {
    "full": [(16, 112, 112, 16), (16, 56, 56, 32), (16, 28, 28, 64), (16, 14, 14, 128)],
    "demo": [(2, 7, 7, 16)],
}
# (batch, height, width, channels) of the maps that the U-Net normalises
NORMALISED = {
    "full": [(16, 224 >> level, 224 >> level, 16 << level) for level in range(5)],
    "demo": [(2, 8, 8, 16)],
}
CLASSES = 4
SLOPE = 0.01
SMALL = (2, 37)
TORCH = "torch"
TAPS = 4
SIDE = 3
"""Rows and columns of taps of the convolution of maps."""
D_STATE = 16


def cases(size: str, dtypes: list[str]) -> Iterator[Case]:
    """Yield the cases; ``size`` names a list of sizes."""
    for dtype in dtypes:
        for sizes in SIZES[size]:
            for layout in ("channels last", "time last"):
                yield convolution(layout, sizes, dtype)
            yield map_convolution(sizes, dtype)
            for directions in (4, 1):
                yield norm_gate(directions, sizes, dtype)
            yield merge_norm(sizes, dtype)
            yield norm(sizes, dtype)
        for maps in LOGITS[size]:
            for layout in ("contiguous", "channels last"):
                yield loss_sums(layout, maps, dtype)
        for vectors in VECTORS[size]:
            yield head(vectors, dtype)
        for small in SMALL_MAPS[size]:
            yield doubling(small, dtype)
        for pixels in NORMALISED[size]:
            yield batch_norm(pixels, dtype)
        for batch, channels in dict.fromkeys((batch, channels) for batch, _, channels in SIZES[size]):
            yield decoding_step("causal_conv1d_update", batch, channels, dtype)
            yield decoding_step("selective_state_update", batch, channels, dtype)


def convolution(layout: str, sizes: tuple[int, int, int], dtype: str) -> Case:
    """Return the convolution before a scan; its input is a half of a wider projection, or has time innermost."""

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        batch, steps, channels = sizes
        if layout == "channels last":
            x = torch.randn(batch, steps, 2 * channels, device=device).to(kind)[..., :channels].transpose(1, 2)
        else:
            x = torch.randn(batch, channels, steps, device=device).to(kind)
        return [x, torch.randn(channels, TAPS, device=device), torch.randn(channels, device=device)]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Pad on both sides, convolve each channel, cut, activate: what Mamba does without its kernel."""
        taps = weight.unsqueeze(1).to(x.dtype)
        padded = F.conv1d(x, taps, bias.to(x.dtype), padding=TAPS - 1, groups=x.shape[1])
        return F.silu(padded[..., : x.shape[-1]])

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d(x, weight, bias, activation="silu")

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = causal_conv1d_reference(x, weight, bias, activation="silu")
        assert isinstance(out, Tensor)  # a tuple when asked for final states
        return out

    return _around_a_scan(f"causal_conv1d {layout}", sizes, dtype, draw, ours, plain, reference)


def map_convolution(sizes: tuple[int, int, int], dtype: str) -> Case:
    """Return the convolution before a scan of square maps; its input is a half of a wider projection."""
    batch, steps, channels = sizes
    side = math.isqrt(steps)

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        *maps, channels = sizes
        x = torch.randn(*maps, 2 * channels, device=device).to(kind)[..., :channels]
        return [x, torch.randn(channels, SIDE, SIDE, device=device), torch.randn(channels, device=device)]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve with the channels moved to the front and back, which copies nothing by itself; activate."""
        maps, taps = x.permute(0, 3, 1, 2), weight.unsqueeze(1).to(x.dtype)
        out = F.conv2d(maps, taps, bias.to(x.dtype), padding=SIDE // 2, groups=x.shape[-1])
        return F.silu(out).permute(0, 2, 3, 1).contiguous()

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, activation="silu")

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d_reference(x, weight, bias, activation="silu")

    kernel, shape = "depthwise_conv2d", (batch, side, side, channels)
    providers = {TORCH: Provider(plain), OURS: Provider(ours, f"{kernel} {dtype} {channels}")}
    return Case(kernel, str(shape), dtype, shape, (2, 5, 7, channels), draw, providers, reference)


def norm_gate(directions: int, sizes: tuple[int, int, int], dtype: str) -> Case:
    """Return what follows a scan in so many directions; the gate is a half of a wider projection."""

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        batch, steps, channels = sizes
        gate = torch.randn(batch, steps, 2 * channels, device=device).to(kind)[..., channels:]
        return [_scans(sizes, directions, kind, device), gate, *_scale_and_shift(channels, device)]

    def plain(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normalised = F.layer_norm(y.sum(2).float(), weight.shape, weight, bias)
        return normalised.to(z.dtype) * F.silu(z)

    name = f"norm_gate {directions}"
    return _around_a_scan(name, sizes, dtype, draw, merge_norm_gate, plain, merge_norm_gate_reference)


def merge_norm(sizes: tuple[int, int, int], dtype: str) -> Case:
    """Return the same in four directions without a gate, as in VMamba's later blocks."""

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        return [_scans(sizes, 4, kind, device), *_scale_and_shift(sizes[2], device)]

    def plain(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(y.sum(2).float(), weight.shape, weight, bias).to(y.dtype)

    def ours(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return merge_norm_gate(y, None, weight, bias)

    def reference(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return merge_norm_gate_reference(y, None, weight, bias)

    return _around_a_scan("merge_norm 4", sizes, dtype, draw, ours, plain, reference)


def norm(sizes: tuple[int, int, int], dtype: str) -> Case:
    """Return the LayerNorm before a block: it reads the float32 residual stream and feeds a product of ``dtype``."""
    wanted = DTYPES[dtype]

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        return [torch.randn(*sizes, device=device), *_scale_and_shift(sizes[2], device)]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise in float32 and cast, as under autocast."""
        return F.layer_norm(x, weight.shape, weight, bias).to(wanted)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm(x, weight, bias, dtype=wanted)

    return _around_a_scan("layer_norm float32", sizes, dtype, draw, ours, plain, layer_norm_reference)


def loss_sums(layout: str, sizes: tuple[int, int, int, int], dtype: str) -> Case:
    """Return the sums that cross-entropy and Dice of a batch are made of; a tenth of its pixels is unknown."""
    memory = torch.channels_last if layout == "channels last" else torch.contiguous_format

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        return [torch.randn(*sizes, device=device).to(kind).contiguous(memory_format=memory)]

    @functools.cache
    def target(batch: int, classes: int, height: int, width: int, device: torch.device) -> Tensor:
        labels = torch.arange(batch * height * width, device=device).view(batch, height, width) // 7 % 10
        return torch.where(labels == 0, 255, labels % classes)

    def plain(logits: Tensor) -> Tensor:
        """Sum over maps of probabilities, masks and products, as the readable losses do."""
        labels = target(*logits.shape, logits.device)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        p, known = wide.softmax(1), (labels != 255).unsqueeze(1)
        hot = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        entropy = F.cross_entropy(wide, labels, ignore_index=255, reduction="sum")
        overlap, squares, counts = (terms.sum((0, 2, 3)) for terms in (p * hot, p.square() * known, hot))
        return torch.hstack((overlap, squares, counts, entropy))

    def ours(logits: Tensor) -> Tensor:
        return torch.hstack(softmax_sums(logits, target(*logits.shape, logits.device)))

    def reference(logits: Tensor) -> Tensor:
        return torch.hstack(softmax_sums_reference(logits, target(*logits.shape, logits.device)))

    kernel = f"softmax_sums {layout}"
    providers = {TORCH: Provider(plain), OURS: Provider(ours, f"{kernel} {dtype} {sizes[1]}")}
    return Case(kernel, str(sizes), dtype, sizes, (2, sizes[1], 9, 16), draw, providers, reference)


def head(sizes: tuple[int, int, int, int, int], dtype: str) -> Case:
    """Return what a decoder's head does with the vectors of its pixels and their scores."""

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        vectors = torch.randn(*sizes, device=device).to(kind)
        return [vectors, torch.randn(*sizes[:-1], CLASSES, device=device).to(kind), torch.randn(CLASSES, device=device)]

    shape, small = f"{sizes}, K={CLASSES}", (2, 3, 5, *sizes[3:])
    providers = {TORCH: Provider(rms_scores_reference), OURS: Provider(rms_scores, f"rms_scores {dtype} {sizes[-1]}")}
    return Case("rms_scores", shape, dtype, sizes, small, draw, providers, rms_scores_reference)


def doubling(sizes: tuple[int, int, int, int], dtype: str) -> Case:
    """Return what U-Net's up blocks do with a map and their skip."""

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        batch, height, width, channels = sizes
        skip = torch.randn(batch, 2 * height, 2 * width, channels, device=device).to(kind)
        return [torch.randn(*sizes, device=device).to(kind), skip]

    def plain(x: Tensor, skip: Tensor) -> Tensor:
        """Interpolate in float32, as under autocast, cast and join."""
        wide = x if x.dtype == torch.float64 else x.float()
        maps = F.interpolate(wide.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=True)
        return torch.cat((skip, maps.permute(0, 2, 3, 1).to(x.dtype)), -1)

    kernel, channels = "bilinear_doubling", sizes[-1]
    providers = {TORCH: Provider(plain), OURS: Provider(bilinear_doubling, f"{kernel} {dtype} {channels}")}
    shape, small = f"{sizes}, S={channels}", (2, 5, 7, channels)
    return Case(kernel, shape, dtype, sizes, small, draw, providers, bilinear_doubling_reference)


def batch_norm(sizes: tuple[int, int, int, int], dtype: str) -> Case:
    """Return the batch norm in training and the LeakyReLU behind a convolution."""

    def draw(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        return [torch.randn(*sizes, device=device).to(kind), *_scale_and_shift(sizes[-1], device)]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise and activate a map, as the two modules do."""
        normalised = F.batch_norm(x.permute(0, 3, 1, 2), None, None, weight, bias, training=True)
        return F.leaky_relu_(normalised, SLOPE).permute(0, 2, 3, 1)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm_act(x.flatten(0, 2), weight, bias, slope=SLOPE).view(x.shape)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm_act_reference(x.flatten(0, 2), weight, bias, slope=SLOPE).view(x.shape)

    kernel = "batch_norm_act"
    providers = {TORCH: Provider(plain), OURS: Provider(ours, f"{kernel} {dtype} {sizes[-1]}")}
    return Case(kernel, str(sizes), dtype, sizes, (2, 5, 7, sizes[-1]), draw, providers, reference)


def decoding_step(kernel: str, batch: int, channels: int, dtype: str) -> Case:
    """Return one step of generation, which overwrites its first or second argument."""

    def draw_convolution(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        state = torch.randn(*sizes, TAPS, device=device).to(kind)
        taps, bias = torch.randn(sizes[1], TAPS, device=device), torch.randn(sizes[1], device=device)
        return [torch.randn(*sizes, device=device).to(kind), state, taps, bias]

    def draw_scan(sizes: tuple[int, ...], kind: torch.dtype, device: str) -> list[Tensor]:
        batch, channels = sizes
        by_channel = [torch.randn(batch, channels, device=device).to(kind) for _ in range(3)]
        rows = [torch.randn(batch, D_STATE, device=device).to(kind) for _ in range(2)]
        state = torch.randn(batch, channels, D_STATE, device=device)
        rates = -torch.rand(channels, D_STATE, device=device)
        return [state, *by_channel[:2], rates, *rows, torch.randn(channels, device=device), by_channel[2]]

    draw: Draw
    ours: Operator
    reference: Operator
    if kernel == "causal_conv1d_update":
        draw, ours, reference = draw_convolution, causal_conv1d_update, causal_conv1d_update_reference
    else:
        draw, ours, reference = draw_scan, selective_state_update, selective_state_update_reference
    providers = {TORCH: Provider(reference), OURS: Provider(ours, f"{kernel} {dtype} {channels}")}
    shape, sizes, small = f"({batch}, 1, {channels})", (batch, channels), (3, channels)
    return Case(kernel, shape, dtype, sizes, small, draw, providers, reference, passes=("forward",))


def _around_a_scan(
    kernel: str,
    sizes: tuple[int, int, int],
    dtype: str,
    draw: Draw,
    ours: Operator,
    plain: Operator,
    reference: Operator,
) -> Case:
    providers = {TORCH: Provider(plain), OURS: Provider(ours, f"{kernel} {dtype} {sizes[2]}")}
    return Case(kernel, str(sizes), dtype, sizes, (*SMALL, sizes[2]), draw, providers, reference)


def _scans(sizes: tuple[int, ...], directions: int, kind: torch.dtype, device: str) -> Tensor:
    batch, steps, channels = sizes
    return torch.randn(batch, steps, directions, channels, device=device).to(kind)


def _scale_and_shift(channels: int, device: str) -> list[Tensor]:
    return [torch.randn(channels, device=device) for _ in range(2)]
