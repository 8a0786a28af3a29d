"""The parts of the linear memory that every chunk does on its own; `genomem.ops.linear_memory_span` defines the symbols."""

import triton
import triton.language as tl

from genomem.ops.triton.tiles import load, product, store


@triton.jit
def decay(momentum, keep, real, weights, inherited, last, kept, fading, carried, C: tl.constexpr, P: tl.constexpr):
    """Writes the decays of one chunk row by row, by their definition: ``X_t = gate_t X_{t-1} + ...`` for X each of D, E, A, b, c and p."""
    at = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, C)
    a, d, e = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    b, c, p = tl.full((), 1.0, tl.float32), tl.full((), 0.0, tl.float32), tl.full((), 1.0, tl.float32)
    for t in range(C + 1):
        row = at * (C + 1) + t
        if t > 0:
            token = at * C + t - 1
            if keep is not None:
                keeps = tl.load(keep + token)
                a, b, c, d = keeps * a, keeps * b, keeps * c, keeps * d
            d = tl.where(i == t - 1, 1.0, d)
            if P == 2:
                fades = tl.load(momentum + token)
                e, p = tl.where(i == t - 1, 1.0, fades * e), fades * p
                added = 1.0 if real is None else tl.load(real + token)
                a, c = a + added * e, c + added * p
        tl.store(kept + row * C + i, d)
        tl.store(inherited + row * P, b)
        if P == 2:
            tl.store(fading + row * C + i, e)
            tl.store(weights + row * C + i, a)
            tl.store(carried + row, p)
            tl.store(inherited + row * P + 1, c)
    tl.store(last + (at * C + i) * P, a if P == 2 else d)
    if P == 2:
        tl.store(last + (at * C + i) * P + 1, e)


@triton.jit
def invert_blocks(erased, key, weights, inverse, C: tl.constexpr, K: tl.constexpr):
    """Writes the inverses of the 16 by 16 blocks on the diagonal of ``I + L``, ``[M, C, C]``, made of blocks of 1, 2, 4 and 8."""
    at, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, 16)
    rows, row, column = block * 16 + i, i[:, None], i[None, :]
    matched = _matched(erased + at * C * K, key + at * C * K, weights + at * (C + 1) * C, rows, rows, C, K)
    solved = tl.where(row == column, 1.0, 0.0)
    for step in tl.static_range(4):
        corner = tl.where((row >> step == (column >> step) + 1) & (row >> step & 1 == 1), matched, 0.0)
        solved -= tl.dot(tl.dot(solved, corner, input_precision="ieee"), solved, input_precision="ieee")
    store(inverse + at * C * C, solved, rows, rows, C, C)


@triton.jit
def join_inverses(erased, key, weights, inverse, C: tl.constexpr, K: tl.constexpr, SIZE: tl.constexpr):
    """Makes inverses of blocks of ``2 SIZE`` out of those of SIZE: ``[[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]]``."""
    at, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * 2 * SIZE
    i = tl.arange(0, SIZE)
    matched = _matched(erased + at * C * K, key + at * C * K, weights + at * (C + 1) * C, first + SIZE + i, first + i, C, K)
    whole = inverse + at * C * C
    upper, lower = whole + first * (C + 1), whole + (first + SIZE) * (C + 1)
    right = tl.trans(product(upper, tl.trans(matched), i, C, C, True, "ieee"))
    store(whole, -product(lower, right, i, C, C, False, "ieee"), first + SIZE + i, first + i, C, C)


@triton.jit
def _matched(erased, key, weights, rows, columns, C: tl.constexpr, K: tl.constexpr):
    """Returns a tile of ``L_ti = A_{t-1,i} theta_t (k_t . k_i)``."""
    total = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, K, 16):
        k = start + tl.arange(0, 16)
        total = tl.dot(load(erased, rows, k, C, K), tl.trans(load(key, columns, k, C, K)), total, input_precision="ieee")
    return total * tl.load(weights + rows[:, None] * C + columns[None, :], mask=rows[:, None] > columns[None, :], other=0.0)


@triton.jit
def read(
    query,
    key,
    weights,
    inherited,
    states,
    writes,
    output,
    C: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    P: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    LAG: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes ``y_t = q_t (b_t W + c_t S) + sum_i A_ti (q_t . k_i) u_i`` with A, b and c LAG tokens back, 16 writes at a time."""
    at = tl.program_id(0).to(tl.int64)
    t, k, v = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    asked, start = query + at * C * K, states + at * P * K * V
    row = at * (C + 1) + t + 1 - LAG
    total = tl.load(inherited + row * P)[:, None] * product(asked, load(start, k, v, K, V), t, C, K, False, PRECISION)
    if P == 2:
        surprise = load(start + K * V, k, v, K, V)
        total += tl.load(inherited + row * P + 1)[:, None] * product(asked, surprise, t, C, K, False, PRECISION)
    for first in range(0, C, 16):
        i = first + tl.arange(0, 16)
        scores = product(asked, tl.trans(load(key + at * C * K, i, k, C, K)), t, C, K, False, PRECISION)
        scores *= tl.load(weights + row[:, None] * C + i[None, :])
        total = tl.dot(scores, load(writes + at * C * V, i, v, C, V), total, input_precision=PRECISION)
    store(output + at * C * V, total, t, v, C, V)
