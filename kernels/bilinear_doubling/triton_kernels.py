"""Bilinear doubling as Triton kernels: a program has a tile of the small map, which 2 x 2 pixels each come from.

Both passes gather, so no two programs write the same address, and every result is reproducible bit by bit. README.md
derives the weights.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_row", "x_column", "skip_batch", "skip_row", "skip_column",
        "height", "width", "row_tiles", "column_tiles",
    ]
)  # fmt: skip
def bilinear_doubling_fwd_kernel(
    x_ptr,  # (batch, H, W, C), channel stride 1
    skip_ptr,  # (batch, 2H, 2W, SKIP), channel stride 1; unused where SKIP is 0
    out_ptr,  # (batch, 2H, 2W, SKIP + C), contiguous
    x_batch,  # strides are counted in VECTOR values
    x_row,
    x_column,
    skip_batch,
    skip_row,
    skip_column,
    height,
    width,
    row_tiles,
    column_tiles,
    row_weight,  # 1 / (2H - 1)
    column_weight,  # 1 / (2W - 1)
    C: tl.constexpr,
    SKIP: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the four pixels of the doubled map that belong to each pixel of a tile, and those of the skip."""
    batch, row, column, c = locate(row_tiles, column_tiles, ROWS, COLUMNS, BLOCKS, BLOCK)
    alive = ((row < height) & (column < width))[:, None]
    c_alive = (c < C)[None, :]
    joined: tl.constexpr = SKIP + C
    kind = out_ptr.dtype.element_ty

    x_map = x_ptr + batch * x_batch * VECTOR + c[None, :]
    above, level, below = places(row, height, x_row)
    before, here, after = places(column, width, x_column)
    up, down = far_weights(row, height, row_weight)
    left, right = far_weights(column, width, column_weight)
    top, bottom = blend_rows(x_map, above + here, level + here, below + here, up, down, c_alive, VECTOR)
    before_top, before_bottom = blend_rows(
        x_map, above + before, level + before, below + before, up, down, c_alive, VECTOR
    )
    after_top, after_bottom = blend_rows(x_map, above + after, level + after, below + after, up, down, c_alive, VECTOR)

    out_row = width.to(tl.int64) * (2 * joined)
    out = out_ptr + ((batch * height + row) * 2 * out_row + column.to(tl.int64) * (2 * joined))[:, None] + c[None, :]
    doubled = out + SKIP
    tl.store(doubled, blend(top, before_top, left).to(kind), mask=alive & c_alive)
    tl.store(doubled + joined, blend(top, after_top, right).to(kind), mask=alive & c_alive)
    tl.store(doubled + out_row, blend(bottom, before_bottom, left).to(kind), mask=alive & c_alive)
    tl.store(doubled + out_row + joined, blend(bottom, after_bottom, right).to(kind), mask=alive & c_alive)

    if SKIP > 0:
        skip_alive = alive & (c < SKIP)[None, :]
        skip_map = skip_ptr + batch * skip_batch * VECTOR + c[None, :]
        for i in tl.static_range(2):
            for j in tl.static_range(2):
                pixel = (2 * row + i).to(tl.int64) * skip_row + (2 * column + j).to(tl.int64) * skip_column
                value = tl.load(skip_map + (pixel * VECTOR)[:, None], mask=skip_alive, other=0.0)
                tl.store(out + (out_row * i + joined * j), value.to(kind), mask=skip_alive)


@triton.jit(do_not_specialize=["grad_batch", "grad_row", "grad_column", "height", "width", "row_tiles", "column_tiles"])
def bilinear_doubling_bwd_kernel(
    grad_doubled_ptr,  # (batch, 2H, 2W, C), channel stride 1
    grad_x_ptr,  # (batch, H, W, C), contiguous
    grad_batch,  # strides are counted in VECTOR values
    grad_row,
    grad_column,
    height,
    width,
    row_tiles,
    column_tiles,
    row_weight,  # 1 / (2H - 1)
    column_weight,  # 1 / (2W - 1)
    C: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum for each pixel of a tile over the 4 x 4 pixels of the doubled map that it went into."""
    batch, row, column, c = locate(row_tiles, column_tiles, ROWS, COLUMNS, BLOCKS, BLOCK)
    c_alive = (c < C)[None, :]
    row_weights = shares(row, height, row_weight)
    column_weights = shares(column, width, column_weight)
    grad_map = grad_doubled_ptr + batch * grad_batch * VECTOR + c[None, :]
    total = tl.zeros([ROWS * COLUMNS, BLOCK], tl.float32)
    for j in tl.static_range(4):
        here = clamped(2 * column - 1 + j, 2 * width) * grad_column
        along_column = tl.zeros([ROWS * COLUMNS, BLOCK], tl.float32)
        for i in tl.static_range(4):
            pixel = clamped(2 * row - 1 + i, 2 * height) * grad_row + here
            grad = tl.load(grad_map + (pixel * VECTOR)[:, None], mask=c_alive, other=0.0).to(tl.float32)
            along_column += row_weights[i] * grad
        total += column_weights[j] * along_column
    alive = ((row < height) & (column < width))[:, None] & c_alive
    grad_x = grad_x_ptr + (((batch * height + row) * width + column) * C)[:, None] + c[None, :]
    tl.store(grad_x, total.to(grad_x_ptr.dtype.element_ty), mask=alive)


@triton.jit
def locate(
    row_tiles, column_tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
):
    """Return what a program is for: a batch entry, rows and columns (ROWS COLUMNS,) of the small map, and channels."""
    program = tl.program_id(0)
    c = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    tile = program // BLOCKS
    pixel = tl.arange(0, ROWS * COLUMNS)
    column = tile % column_tiles * COLUMNS + pixel % COLUMNS
    row = tile // column_tiles % row_tiles * ROWS + pixel // COLUMNS
    batch = (tile // (column_tiles * row_tiles)).to(tl.int64)
    return batch, row, column, c


@triton.jit
def clamped(index, size):
    """Return an index moved into the map; what is read so has weight 0, or is not stored."""
    return tl.minimum(tl.maximum(index, 0), size - 1).to(tl.int64)


@triton.jit
def places(index, size, stride):
    """Return where the position before an index, the index and the one after begin."""
    return clamped(index - 1, size) * stride, clamped(index, size) * stride, clamped(index + 1, size) * stride


@triton.jit
def far_weights(index, size, weight):
    """Return what the even position of an index takes of the index before, and the odd one of that after."""
    return (index.to(tl.float32) * weight)[:, None], ((size - 1 - index).to(tl.float32) * weight)[:, None]


@triton.jit
def blend_rows(x_map, above, level, below, up, down, c_alive, VECTOR: tl.constexpr):
    """Return even and odd rows of the doubled map at columns of the small one."""
    x_above = tl.load(x_map + (above * VECTOR)[:, None], mask=c_alive, other=0.0).to(tl.float32)
    x = tl.load(x_map + (level * VECTOR)[:, None], mask=c_alive, other=0.0).to(tl.float32)
    x_below = tl.load(x_map + (below * VECTOR)[:, None], mask=c_alive, other=0.0).to(tl.float32)
    return blend(x, x_above, up), blend(x, x_below, down)


@triton.jit
def blend(near, far, weight):
    """Return what lies a share of ``weight`` on the way from the near value to the far one."""
    return near + weight * (far - near)


@triton.jit
def shares(index, size, weight):
    """Return what positions 2k - 1 to 2k + 2 of the doubled axis take of position k, four of (pixels, 1)."""
    before = tl.where(index > 0, (size - index).to(tl.float32) * weight, 0.0)
    lost_to_before, lost_to_after = far_weights(index, size, weight)
    after = tl.where(index < size - 1, (index + 1).to(tl.float32) * weight, 0.0)
    return before[:, None], 1.0 - lost_to_before, 1.0 - lost_to_after, after[:, None]
