"""The sums, the losses made of them, and the gradients of both as Triton kernels.

All classes of a block of pixels lie in registers; logits are read once for all of their targets.

No two programs write the same address, so every result is reproducible bit by bit. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from mambaseg.kernels.triton_math import LOG2_E


@triton.jit(do_not_specialize=["first", "width", "blocks", "ignore_index"])
def softmax_sums_fwd_kernel(
    logits_ptr,  # (batch, K, P), any strides
    target_ptrs,  # a tuple of (batch, P), contiguous
    shares_ptr,  # (N, 3 K + 1, width), contiguous: overlap, squares, counts and cross-entropy, a share per program
    first,  # of the N rows: that of the first target
    width,  # programs at most, over all logits
    logits_batch,
    logits_class,
    logits_pixel,
    pixels,
    blocks,  # of an image
    ignore_index,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over ``BLOCK`` pixels of an image."""
    batch, pixel, k, alive = locate(pixels, blocks, K, PADDED, BLOCK)
    z = load_below_largest(logits_ptr + batch * logits_batch, pixel, k, logits_class, logits_pixel, alive, K)
    e = tl.exp2(z * LOG2_E)
    total = tl.sum(e, axis=0)
    p = e / total[None, :]
    log_total = tl.log(total)
    width = width.to(tl.int64)
    for target in tl.static_range(len(target_ptrs)):
        y, known, hot = load_labels(target_ptrs[target] + batch * pixels, pixel, pixels, k, ignore_index)
        entropy = log_total - tl.sum(tl.where(hot, z, 0.0), axis=0)
        entropy = tl.where((y >= 0) & (y < K), entropy, float("nan"))
        share = shares_ptr + (first + target) * (3 * K + 1) * width + tl.program_id(0)
        class_share = share + k * width
        tl.store(class_share, tl.sum(tl.where(hot, p, 0.0), axis=1), mask=k < K)
        tl.store(class_share + K * width, tl.sum(tl.where(known[None, :], p * p, 0.0), axis=1), mask=k < K)
        tl.store(class_share + 2 * K * width, tl.sum(hot.to(tl.float32), axis=1), mask=k < K)
        tl.store(share + 3 * K * width, tl.sum(tl.where(known, entropy, 0.0), axis=0))


@triton.jit(do_not_specialize=["first", "blocks", "ignore_index"])
def softmax_sums_bwd_kernel(
    grad_sums_ptr,  # (N, 3 K + 1), contiguous
    logits_ptr,  # (batch, K, P), any strides
    target_ptrs,  # a tuple of (batch, P), contiguous
    grad_ptr,  # (batch, K, P), any strides
    first,  # of the N rows: that of the first target
    logits_batch,
    logits_class,
    logits_pixel,
    grad_batch,
    grad_class,
    grad_pixel,
    pixels,
    blocks,  # of an image
    ignore_index,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differentiate ``BLOCK`` pixels of an image, with the softmax computed anew."""
    batch, pixel, k, alive = locate(pixels, blocks, K, PADDED, BLOCK)
    z = load_below_largest(logits_ptr + batch * logits_batch, pixel, k, logits_class, logits_pixel, alive, K)
    e = tl.exp2(z * LOG2_E)
    p = e / tl.sum(e, axis=0)[None, :]
    grad = tl.zeros_like(p)
    for target in tl.static_range(len(target_ptrs)):
        grad_sums = grad_sums_ptr + (first + target) * (3 * K + 1)
        by_overlap = tl.load(grad_sums + k, mask=k < K, other=0.0)[:, None]
        by_squares = tl.load(grad_sums + K + k, mask=k < K, other=0.0)[:, None]
        by_entropy = tl.load(grad_sums + 3 * K)
        _, known, hot = load_labels(target_ptrs[target] + batch * pixels, pixel, pixels, k, ignore_index)
        by_p = tl.where(hot, by_overlap, 0.0) + 2.0 * p * by_squares
        own = p * (by_p - tl.sum(p * by_p, axis=0)[None, :]) + by_entropy * (p - hot.to(tl.float32))
        grad += tl.where(known[None, :], own, 0.0)
    grad_tile = grad_ptr + batch * grad_batch + k[:, None] * grad_class + pixel[None, :] * grad_pixel
    tl.store(grad_tile, grad.to(grad_ptr.dtype.element_ty), mask=alive)


@triton.jit
def losses_of_sums_fwd_kernel(
    sums_ptr,  # (N, 3 K + 1), contiguous
    weights_ptr,  # (N, 2), contiguous
    losses_ptr,  # (N,)
    smooth,
    K: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Make the loss of one row."""
    k, overlap, size, known, ce_weight, dice_weight = load_row(sums_ptr, weights_ptr, smooth, K, PADDED)
    # Divided exactly, so that the Dice loss is 0 where nothing is known.
    dice = tl.sum(tl.where(k < K, 1.0 - tl.div_rn(2.0 * overlap + smooth, size), 0.0), axis=0) / K
    cross_entropy = tl.load(sums_ptr + tl.program_id(0) * (3 * K + 1) + 3 * K) / known
    loss = tl.where(ce_weight != 0.0, ce_weight * cross_entropy, 0.0)
    loss += tl.where(dice_weight != 0.0, dice_weight * dice, 0.0)
    tl.store(losses_ptr + tl.program_id(0), loss)


@triton.jit
def losses_of_sums_bwd_kernel(
    grad_losses_ptr,  # (N,)
    sums_ptr,  # (N, 3 K + 1), contiguous
    weights_ptr,  # (N, 2), contiguous
    grad_ptr,  # (N, 3 K + 1), contiguous
    smooth,
    K: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Differentiate the loss of one row by its sums."""
    k, overlap, size, known, ce_weight, dice_weight = load_row(sums_ptr, weights_ptr, smooth, K, PADDED)
    grad_loss = tl.load(grad_losses_ptr + tl.program_id(0))
    by_ratio = grad_loss * dice_weight / K
    grad = grad_ptr + tl.program_id(0) * (3 * K + 1)
    tl.store(grad + k, -2.0 * by_ratio / size, mask=k < K)
    tl.store(grad + K + k, by_ratio * (2.0 * overlap + smooth) / (size * size), mask=k < K)
    tl.store(grad + 2 * K + k, tl.zeros_like(size), mask=k < K)
    tl.store(grad + 3 * K, grad_loss * ce_weight / known)


@triton.jit
def load_row(sums_ptr, weights_ptr, smooth, K: tl.constexpr, PADDED: tl.constexpr):
    """Load a row of sums: its classes, their overlap, the Dice ratio's denominators, known pixels, and its weights."""
    row = tl.program_id(0)
    k = tl.arange(0, PADDED)
    sums = sums_ptr + row * (3 * K + 1) + k
    overlap = tl.load(sums, mask=k < K, other=0.0)
    squares = tl.load(sums + K, mask=k < K, other=0.0)
    counts = tl.load(sums + 2 * K, mask=k < K, other=0.0)
    known = tl.maximum(tl.sum(counts, axis=0), 1.0)
    weights = weights_ptr + row * 2
    return k, overlap, squares + counts + smooth, known, tl.load(weights), tl.load(weights + 1)


@triton.jit
def locate(pixels, blocks, K: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Return what a program is for, counted in 64 bits: an image, pixels of it, classes; and which of them exist."""
    program = tl.program_id(0).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, PADDED).to(tl.int64)
    return program // blocks, pixel, k, (k < K)[:, None] & (pixel < pixels)[None, :]


@triton.jit
def load_labels(target_ptr, pixel, pixels, k, ignore_index):
    """Load an image's labels; return them, which pixels are known, and of which class each of these is."""
    alive = pixel < pixels
    y = tl.load(target_ptr + pixel, mask=alive, other=0).to(tl.int32)
    known = alive & (y != ignore_index)
    return y, known, (y[None, :] == k.to(tl.int32)[:, None]) & known[None, :]


@triton.jit
def load_below_largest(logits_ptr, pixel, k, class_stride, pixel_stride, alive, K: tl.constexpr):
    """Load an image's logits less the largest of their pixel; classes that do not exist are -inf."""
    tile = logits_ptr + k[:, None] * class_stride + pixel[None, :] * pixel_stride
    z = tl.load(tile, mask=alive, other=0.0).to(tl.float32)
    z = tl.where((k < K)[:, None], z, float("-inf"))
    return z - tl.max(z, axis=0)[None, :]
