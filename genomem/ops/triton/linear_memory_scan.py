"""The sequential part of the linear memory, forward and backward: one program keeps a slice of ``[W; S]`` on the chip over all chunks.

The columns of the state never meet, so that a program takes one head of one sequence and BV of the V columns. `key` is ``[M, C, K]``,
and so on: the matrices of one chunk lie ``C K`` numbers apart. `genomem.ops.linear_memory_span` defines the symbols.
"""

import triton
import triton.language as tl

from genomem.ops.triton.tiles import load, product, store


@triton.jit
def scan(
    key,
    target,
    erase,
    inverse,
    inherited,
    last,
    carried,
    states,
    writes,
    chunks,
    heads,
    C: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    P: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fills ``states[1:]`` and `writes`: ``u = (I + L)^-1 (theta v - erase k (b W + c S))``, then the state at the end of the chunk."""
    head = tl.program_id(0)
    t, k, v = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    first = states + head.to(tl.int64) * P * K * V
    memory = load(first, k, v, K, V)
    if P == 2:
        surprise = load(first + K * V, k, v, K, V)
    for chunk in range(chunks):
        at = (chunk * heads + head).to(tl.int64)
        keys, update = key + at * C * K, load(target + at * C * V, t, v, C, V)
        decay = inherited + at * (C + 1) * P
        if erase is not None:
            seen = tl.load(decay + t * P)[:, None] * product(keys, memory, t, C, K, False, PRECISION)
            if P == 2:
                seen += tl.load(decay + t * P + 1)[:, None] * product(keys, surprise, t, C, K, False, PRECISION)
            update -= tl.load(erase + at * C + t)[:, None] * seen
            update = product(inverse + at * C * C, update, t, C, C, False, PRECISION)
        store(writes + at * C * V, update, t, v, C, V)
        kept = tl.load(last + (at * C + t) * P)[:, None] * update
        memory *= tl.load(decay + C * P)
        if P == 2:
            memory += tl.load(decay + C * P + 1) * surprise
            surprise *= tl.load(carried + at * (C + 1) + C)
            added = tl.load(last + (at * C + t) * P + 1)[:, None] * update
            surprise += product(keys, added, k, C, K, True, PRECISION)
        memory += product(keys, kept, k, C, K, True, PRECISION)
        end = states + (at + heads) * P * K * V
        store(end, memory, k, v, K, V)
        if P == 2:
            store(end + K * V, surprise, k, v, K, V)


@triton.jit
def scan_backward(
    key,
    erase,
    inverse,
    inherited,
    last,
    carried,
    grad_writes,
    grad_starts,
    grad_state,
    grad_ends,
    grad_first,
    chunks,
    heads,
    C: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    P: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Completes `grad_writes` in place and fills `grad_ends` and `grad_first`, from the last chunk to the first."""
    head = tl.program_id(0)
    t, k, v = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    own = head.to(tl.int64) * P * K * V
    memory = load(grad_state + own, k, v, K, V)
    if P == 2:
        surprise = load(grad_state + own + K * V, k, v, K, V)
    for step in range(chunks):
        at = ((chunks - 1 - step) * heads + head).to(tl.int64)
        keys, update = key + at * C * K, load(grad_writes + at * C * V, t, v, C, V)
        decay, state = inherited + at * (C + 1) * P, at * P * K * V
        store(grad_ends + state, memory, k, v, K, V)
        update += tl.load(last + (at * C + t) * P)[:, None] * product(keys, memory, t, C, K, False, PRECISION)
        if P == 2:
            store(grad_ends + state + K * V, surprise, k, v, K, V)
            update += tl.load(last + (at * C + t) * P + 1)[:, None] * product(keys, surprise, t, C, K, False, PRECISION)
            surprise = surprise * tl.load(carried + at * (C + 1) + C) + tl.load(decay + C * P + 1) * memory
            surprise += load(grad_starts + state + K * V, k, v, K, V)
        memory = memory * tl.load(decay + C * P) + load(grad_starts + state, k, v, K, V)
        store(grad_writes + at * C * V, update, t, v, C, V)
        if erase is not None:
            solved = product(inverse + at * C * C, update, t, C, C, True, PRECISION)
            erased = -tl.load(erase + at * C + t)[:, None] * solved
            seen = tl.load(decay + t * P)[:, None] * erased
            memory += product(keys, seen, k, C, K, True, PRECISION)
            if P == 2:
                seen = tl.load(decay + t * P + 1)[:, None] * erased
                surprise += product(keys, seen, k, C, K, True, PRECISION)
    store(grad_first + own, memory, k, v, K, V)
    if P == 2:
        store(grad_first + own + K * V, surprise, k, v, K, V)
