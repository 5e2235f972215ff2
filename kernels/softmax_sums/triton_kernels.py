"""The sums and their gradient as Triton kernels: all classes of a block of pixels in registers, logits read once.

No two programs write the same address, so every result is reproducible bit by bit. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from mambaseg.kernels.triton_math import LOG2_E


@triton.jit(do_not_specialize=["blocks", "ignore_index"])
def softmax_sums_fwd_kernel(
    logits_ptr,  # (batch, K, P), any strides
    target_ptr,  # (batch, P), pixel stride 1
    shares_ptr,  # (3 K + 1, programs), contiguous: overlap, squares, counts and cross-entropy, a share per program
    logits_batch,
    logits_class,
    logits_pixel,
    target_batch,
    pixels,
    blocks,  # of an image
    ignore_index,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over ``BLOCK`` pixels of an image."""
    batch, pixel, k, alive = locate(pixels, blocks, K, PADDED, BLOCK)
    y, known, hot = load_labels(target_ptr + batch * target_batch, pixel, pixels, k, ignore_index)
    z = load_below_largest(logits_ptr + batch * logits_batch, pixel, k, logits_class, logits_pixel, alive, K)
    e = tl.exp2(z * LOG2_E)
    total = tl.sum(e, axis=0)
    p = e / total[None, :]
    entropy = tl.log(total) - tl.sum(tl.where(hot, z, 0.0), axis=0)
    entropy = tl.where((y >= 0) & (y < K), entropy, float("nan"))

    programs = tl.num_programs(0).to(tl.int64)
    share = shares_ptr + tl.program_id(0)
    class_share = share + k * programs
    tl.store(class_share, tl.sum(tl.where(hot, p, 0.0), axis=1), mask=k < K)
    tl.store(class_share + K * programs, tl.sum(tl.where(known[None, :], p * p, 0.0), axis=1), mask=k < K)
    tl.store(class_share + 2 * K * programs, tl.sum(hot.to(tl.float32), axis=1), mask=k < K)
    tl.store(share + 3 * K * programs, tl.sum(tl.where(known, entropy, 0.0), axis=0))


@triton.jit(do_not_specialize=["blocks", "ignore_index"])
def softmax_sums_bwd_kernel(
    grad_sums_ptr,  # (3 K + 1,)
    logits_ptr,  # (batch, K, P), any strides
    target_ptr,  # (batch, P), pixel stride 1
    grad_ptr,  # (batch, K, P), any strides
    logits_batch,
    logits_class,
    logits_pixel,
    target_batch,
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
    by_overlap = tl.load(grad_sums_ptr + k, mask=k < K, other=0.0)[:, None]
    by_squares = tl.load(grad_sums_ptr + K + k, mask=k < K, other=0.0)[:, None]
    by_entropy = tl.load(grad_sums_ptr + 3 * K)
    _, known, hot = load_labels(target_ptr + batch * target_batch, pixel, pixels, k, ignore_index)
    z = load_below_largest(logits_ptr + batch * logits_batch, pixel, k, logits_class, logits_pixel, alive, K)
    e = tl.exp2(z * LOG2_E)
    p = e / tl.sum(e, axis=0)[None, :]
    by_p = tl.where(hot, by_overlap, 0.0) + 2.0 * p * by_squares
    grad = p * (by_p - tl.sum(p * by_p, axis=0)[None, :]) + by_entropy * (p - hot.to(tl.float32))
    grad = tl.where(known[None, :], grad, 0.0)
    grad_tile = grad_ptr + batch * grad_batch + k[:, None] * grad_class + pixel[None, :] * grad_pixel
    tl.store(grad_tile, grad.to(grad_ptr.dtype.element_ty), mask=alive)


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
