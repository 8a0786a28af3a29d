"""Multiply-adds of our layers, counted from their equations."""

from __future__ import annotations

# The gradient of a matrix product is two products of the same size.
FORWARD_AND_BACKWARD = 3


def titans_lmm_multiply_adds(length: int, dim: int, heads: int, chunk_size: int) -> int:
    """Returns the multiply-adds in the matrix products of one forward pass of `titans_lmm`, for one sequence.

    With T tokens, D = dim, H heads, K = D / H, chunks of C tokens (the last may be shorter), and the state ``[W; S]`` of 2K rows by K ::

        projections             T (5 D^2 + 3 H D)   query, key, value, output gate, output; three gates a head
        of each head and chunk, in the symbols of `genomem.ops.linear_memory_span`:
          A = D E               C^3
          Q K^T, K K^T          2 C^2 K
          (I + L)^-1            C^3 / 2             forward substitution into the identity
          (I + L)^-1 [v | k]    3 C^2 K             values, and keys as W and as S see them
          Q [W; S], A u         2 C K^2 + C^2 K     reads of the state and of the chunk's own writes
          k [W; S]              2 C K^2             what the state knows of the chunk already
          K^T u                 2 C K^2             the writes into W and S

    Each product counts in full, its zeros above the diagonal too, as a matrix product computes them. Element-wise work counts as
    nothing, and so does the short convolution: 12 D a token are 2.4 / D of the projections, under 1 % from D = 256 on.
    """
    width = dim // heads
    whole, rest = divmod(length, chunk_size)
    chunks = whole * _chunk_multiply_adds(chunk_size, width) + _chunk_multiply_adds(rest, width)
    return length * (5 * dim**2 + 3 * heads * dim) + heads * chunks


def _chunk_multiply_adds(tokens: int, width: int) -> int:
    return 3 * tokens**3 // 2 + 6 * tokens**2 * width + 6 * tokens * width**2
