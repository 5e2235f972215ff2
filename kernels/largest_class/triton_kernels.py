"""The largest class as a Triton kernel: all classes of a block of pixels in registers."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from mambaseg.kernels.softmax_sums.triton_kernels import locate


@triton.jit(do_not_specialize=["blocks"])
def largest_class_kernel(
    logits_ptr,  # (batch, K, P), any strides
    classes_ptr,  # (batch, P), contiguous
    logits_batch,
    logits_class,
    logits_pixel,
    pixels,
    blocks,  # of an image
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Choose for ``BLOCK`` pixels of an image."""
    batch, pixel, k, alive = locate(pixels, blocks, K, PADDED, BLOCK)
    tile = logits_ptr + batch * logits_batch + k[:, None] * logits_class + pixel[None, :] * logits_pixel
    z = tl.load(tile, mask=alive, other=float("-inf")).to(tl.float32)
    z = tl.where(z == z, z, float("inf"))
    chosen = tl.argmax(z, axis=0, tie_break_left=True)
    tl.store(classes_ptr + batch * pixels + pixel, chosen.to(tl.int64), mask=pixel < pixels)
