"""Tiles of row-major matrices, and their products. Widths may be any number: what lies beyond them reads as zero and is not written."""

import triton
import triton.language as tl


@triton.jit
def load(pointer, rows, columns, height: tl.constexpr, width: tl.constexpr):
    """Returns these rows and columns of the ``[height, width]`` matrix at `pointer`."""
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store(pointer, tile, rows, columns, height: tl.constexpr, width: tl.constexpr):
    """Writes these rows and columns of the ``[height, width]`` matrix at `pointer`."""
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    tl.store(pointer + rows[:, None] * width + columns[None, :], tile, mask=inside)


@triton.jit
def product(pointer, right, rows, height: tl.constexpr, width: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    """Returns these rows of ``X @ right``, or of ``X^T @ right``, for the ``[height, width]`` matrix X at `pointer`.

    The operands of an IEEE product are held in registers, 16 columns and rows at a time to fit; those of tensor cores are not.
    """
    inner: tl.constexpr = right.shape[0]
    if PRECISION != "ieee":
        return tl.dot(_operand(pointer, rows, tl.arange(0, inner), height, width, TRANSPOSED), right, input_precision=PRECISION)
    blocks: tl.constexpr = inner // 16
    stacked = tl.reshape(right, (blocks, 16, right.shape[1]))
    total = tl.zeros((rows.shape[0], right.shape[1]), tl.float32)
    for block in range(blocks):
        part = tl.sum(tl.where(tl.arange(0, blocks)[:, None, None] == block, stacked, 0.0), axis=0)
        left = _operand(pointer, rows, block * 16 + tl.arange(0, 16), height, width, TRANSPOSED)
        total = tl.dot(left, part, total, input_precision="ieee")
    return total


@triton.jit
def _operand(pointer, rows, columns, height: tl.constexpr, width: tl.constexpr, TRANSPOSED: tl.constexpr):
    if TRANSPOSED:
        return tl.trans(load(pointer, columns, rows, height, width))
    return load(pointer, rows, columns, height, width)
