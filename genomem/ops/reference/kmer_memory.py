"""The k-mer memory: a dictionary an order, one base at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Context = tuple[int, ...]
Table = dict[Context, np.ndarray]


def kmer_memory(
    bases: Sequence[int],
    orders: Sequence[int],
    *,
    tolerant_orders: Sequence[int] = (),
    max_misses: int = 8,
    inverted_repeats: bool = True,
    keep: float = 1.0,
    limit: int | None = None,
    reset: Sequence[bool] | None = None,
    tables: Sequence[Table] | None = None,
    is_write: bool = True,
) -> tuple[np.ndarray, list[Table]]:
    """Returns the counts that predict each base from those before it, and the tables after the last base.

    For each base S[i], for each order k: the four counts of the context ``S[i-k .. i-1]`` are the prediction. Then the context learns that
    S[i] followed, and the other strand of the same k + 1 bases is learnt too: the reverse complement of ``S[i-k+1 .. i]`` was followed by
    the complement of ``S[i-k]``. To learn is ``counts <- keep * counts``, then one more for the base.

    Args:
        bases: 0 to 3 for A, C, G and T; anything else is no base, and no context contains it.
        orders: k of each table.
        tolerant_orders: Orders with a second context that takes in its own predictions; one more column each.
        max_misses: A tolerant context ends after more than so many misses in its last 16 predictions.
        inverted_repeats: Learn the other strand too.
        keep: What a row keeps of its counts when it learns.
        limit: Before a count would go beyond it, the four of its row are halved and rounded down; None for never.
        reset: True for the first base of a document, which no context reaches over.
        tables: To start from; changed. None is empty.
        is_write: Whether to learn.

    Returns:
        Counts, float32 ``[T, orders and tolerant orders, 4]``, and a table an order.

    Source: Titans (arXiv 2501.00663), equations 8 to 11, for one-hot keys; contexts as in GeCo2 (Pratas, Hosseini, Pinho, PACBB 2019).
    """
    tables = [{} for _ in orders] if tables is None else list(tables)
    pointers = [_Pointer(order, max_misses) for order in tolerant_orders]
    output = np.zeros((len(bases), len(orders) + len(pointers), 4), np.float32)
    document: list[int] = []
    for i, base in enumerate(bases):
        if reset is not None and reset[i]:
            document = []
        for column, (order, table) in enumerate(zip(orders, tables, strict=True)):
            if len(document) >= order:
                output[i, column] = table.get(tuple(document[-order:]), 0)
        for column, pointer in enumerate(pointers, len(orders)):
            output[i, column] = pointer.read(tables[list(orders).index(pointer.order)], document, base)
        document = [*document, base][-max(orders) - 1 :] if 0 <= base < 4 else []
        for order, table in zip(orders, tables, strict=True):
            window = tuple(document[-order - 1 :])
            if is_write and len(window) == order + 1:
                _learn(table, window, keep, limit)
                if inverted_repeats:
                    _learn(table, tuple(3 - base for base in reversed(window)), keep, limit)
    return output, tables


def _learn(table: Table, window: Context, keep: float, limit: int | None) -> None:
    *context, base = window
    counts = table.get(tuple(context), np.zeros(4, np.float32)) * np.float32(keep)
    if counts[base] == limit:
        counts = counts // 2
    counts[base] += 1
    table[tuple(context)] = counts


class _Pointer:
    """A context that takes in its own predictions; None where there is none."""

    def __init__(self, order: int, max_misses: int) -> None:
        self.order, self.max_misses = order, max_misses
        self.context: Context | None = None
        self.misses: list[bool] = []

    def read(self, table: Table, document: list[int], base: int) -> np.ndarray:
        """Returns the prediction, and moves on."""
        if len(document) < self.order:
            self.context = None
        elif self.context is None:
            self.context, self.misses = tuple(document[-self.order :]), []
        if self.context is None:
            return np.zeros(4, np.float32)
        counts = table.get(self.context, np.zeros(4, np.float32))
        guess = int(np.argmax(counts)) if counts.any() else None
        self.misses = [*self.misses, guess != base][-16:]
        self.context = (*self.context, base if guess is None else guess)[-self.order :]
        if sum(self.misses) > self.max_misses:
            self.context = None
        return counts
