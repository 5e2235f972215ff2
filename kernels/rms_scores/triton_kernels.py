"""The scores and their gradients as Triton kernels: vectors of some pixels in registers, each tensor read once.

A program takes pixels that follow one another in the map, where stores of logits lie side by side; vectors and scores
of one line of a patch lie side by side too. No two programs write the same address, so every result is reproducible bit
by bit. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["width", "blocks"])
def rms_scores_fwd_kernel(
    vectors_ptr,  # (batch, H, W, s, s, C), contiguous
    scores_ptr,  # (batch, H, W, s, s, K), contiguous
    shift_ptr,  # (K,)
    logits_ptr,  # (batch, K, pixels), contiguous
    reciprocal_ptr,  # (batch, pixels): 1 / root mean square
    eps,
    width,  # of the map, W s
    pixels,  # of the map
    blocks,  # of a map
    SIDE: tl.constexpr,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Divide and shift the scores of ``BLOCK`` pixels of a map."""
    image, pixel, row = locate(tl.program_id(0), width, pixels, blocks, SIDE, BLOCK)
    alive = pixel < pixels
    k = tl.arange(0, PADDED)
    k_alive = k < K
    vectors = load_vectors(vectors_ptr, row, alive, C, CHUNK)
    scores = load_scores(scores_ptr, row, alive, k, K)
    shift = tl.load(shift_ptr + k, mask=k_alive, other=0.0).to(tl.float32)
    squares = tl.zeros([BLOCK, CHUNK], tl.float32)
    for i in tl.static_range(len(vectors)):
        x = vectors[i].to(tl.float32)
        squares += x * x
    reciprocal = tl.rsqrt(tl.sum(squares, axis=1) / C + eps)
    logits = scores * reciprocal[:, None] + shift[None, :]
    tile = logits_ptr + image * pixels * K + k.to(tl.int64)[None, :] * pixels + pixel[:, None]
    tl.store(tile, logits.to(logits_ptr.dtype.element_ty), mask=alive[:, None] & k_alive[None, :])
    tl.store(reciprocal_ptr + image * pixels + pixel, reciprocal, mask=alive)


@triton.jit(do_not_specialize=["width", "blocks", "all_blocks", "turns"])
def rms_scores_bwd_kernel(
    grad_logits_ptr,  # (batch, K, pixels), contiguous
    vectors_ptr,  # (batch, H, W, s, s, C), contiguous
    scores_ptr,  # (batch, H, W, s, s, K), contiguous
    reciprocal_ptr,  # (batch, pixels): 1 / root mean square
    grad_vectors_ptr,  # (batch, H, W, s, s, C), contiguous
    grad_scores_ptr,  # (batch, H, W, s, s, K), contiguous
    shares_ptr,  # (programs, K), contiguous: the gradient of the shift, a share per program
    width,  # of the map, W s
    pixels,  # of the map
    blocks,  # of a map
    all_blocks,
    turns,  # blocks that each program takes, one after another
    SIDE: tl.constexpr,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differentiate the pixels of one program, and sum their share of the gradient of the shift."""
    program = tl.program_id(0)
    k = tl.arange(0, PADDED)
    k_alive = k < K
    grad_shift = tl.zeros([BLOCK, PADDED], tl.float32)
    for block in range(program * turns, tl.minimum((program + 1) * turns, all_blocks)):
        image, pixel, row = locate(block, width, pixels, blocks, SIDE, BLOCK)
        alive = pixel < pixels
        vectors = load_vectors(vectors_ptr, row, alive, C, CHUNK)
        scores = load_scores(scores_ptr, row, alive, k, K)
        reciprocal = tl.load(reciprocal_ptr + image * pixels + pixel, mask=alive, other=0.0)
        both_alive = alive[:, None] & k_alive[None, :]
        tile = grad_logits_ptr + image * pixels * K + k.to(tl.int64)[None, :] * pixels + pixel[:, None]
        grad = tl.load(tile, mask=both_alive, other=0.0).to(tl.float32)
        grad_shift += grad
        grad_scores = grad_scores_ptr + row[:, None] * K + k[None, :]
        tl.store(grad_scores, (grad * reciprocal[:, None]).to(grad_scores_ptr.dtype.element_ty), mask=both_alive)
        along = tl.sum(grad * scores, axis=1)
        factor = -along * reciprocal * reciprocal * reciprocal / C
        for i in tl.static_range(len(vectors)):
            grad_vectors = vectors[i].to(tl.float32) * factor[:, None]
            place, mask = chunk(row, alive, i, C, CHUNK)
            tl.store(grad_vectors_ptr + place, grad_vectors.to(grad_vectors_ptr.dtype.element_ty), mask=mask)
    tl.store(shares_ptr + program.to(tl.int64) * K + k, tl.sum(grad_shift, axis=0), mask=k_alive)


@triton.jit
def locate(block, width, pixels, blocks, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Return what a block is: an image, pixels of it by their places in the map, and the rows of their vectors."""
    pixel = block % blocks * BLOCK + tl.arange(0, BLOCK)
    image = (block // blocks).to(tl.int64)
    line, column = pixel // width, pixel % width
    patch_row = line // SIDE * (width * SIDE) + column // SIDE * (SIDE * SIDE)
    return image, pixel, image * pixels + patch_row + line % SIDE * SIDE + column % SIDE


@triton.jit
def chunk(row, alive, index: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr):
    """Return where a chunk of ``CHUNK`` channels of vectors lies, and which of it exists."""
    c = index * CHUNK + tl.arange(0, CHUNK)
    mask = alive[:, None] & (c < C)[None, :] if (index + 1) * CHUNK > C else alive[:, None]
    return row[:, None] * C + c[None, :], mask


@triton.jit
def load_vectors(vectors_ptr, row, alive, C: tl.constexpr, CHUNK: tl.constexpr):
    """Load vectors chunk by chunk, as they are, so that nothing waits before all loads are on their way."""
    vectors = ()
    for i in tl.static_range((C + CHUNK - 1) // CHUNK):
        place, mask = chunk(row, alive, i, C, CHUNK)
        vectors = vectors + (tl.load(vectors_ptr + place, mask=mask, other=0.0),)
    return vectors


@triton.jit
def load_scores(scores_ptr, row, alive, k, K: tl.constexpr):
    """Load the scores of pixels in float32; classes that do not exist are 0."""
    mask = alive[:, None] & (k < K)[None, :]
    return tl.load(scores_ptr + row[:, None] * K + k[None, :], mask=mask, other=0.0).to(tl.float32)
