"""The k-mer memory in streaming form: one pass over a sequence, which predicts each base and then learns it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genomem.ops.kmer_memory.tables import KmerTables

if TYPE_CHECKING:
    from genomem.ops.kmer_memory.loops import Words

BLOCK = 1 << 14
"""Positions whose contexts are computed at once; they and their places stay in the cache."""


class KmerState(NamedTuple):
    """Where a stream stands, besides the tables.

    Attributes:
        context: ``[3]`` int64: the last 24 bases as a number, their reverse complement, and how many follow each other without a break.
        pointers: ``[tolerant orders, 3]`` int64: the tolerant context, its last 16 misses as bits, and whether there is one.
    """

    context: np.ndarray
    pointers: np.ndarray


def recurrent_kmer_memory(
    tables: KmerTables, bases: np.ndarray, *, reset: np.ndarray | None = None, state: KmerState | None = None, threads: int = 1
) -> tuple[np.ndarray, KmerState]:
    """Returns the counts that predict each base, from what came before it, and learns the sequence into the tables.

    The rule is that of the linear Titans memory with momentum 0 and sparse keys: the key of a position is the one-hot vector of its
    context, the value that of its base. The gradient of 1/2 |k W - v|^2 then touches one row, ``w <- (1 - alpha) w + theta (v - w)``
    with ``theta`` the step size and ``alpha`` what is forgotten. Rows are kept as counts ``c <- keep c + v``, ``keep = 1 - theta - alpha``:

    - ``step_size=None, forget=0``: ``theta = 1 / visits``, and ``w = c / sum(c)`` is the frequency of the base. Counts are integers; before
      one would go beyond `settings.limit`, the four of its row are halved and rounded down.
    - A constant step: ``w = step_size * c``, and ``c / sum(c)`` is the same without the pull of the empty start. Counts are float32.

    A row forgets when it is written and not at every token. Each base also teaches the other strand, if `settings.inverted_repeats`: after
    S[i], the reverse complement of ``S[i-k+1 .. i]`` is followed by the complement of ``S[i-k]``.

    A tolerant context starts as the true one and then takes in the likeliest base of its own prediction (ties to the first in A, C, G, T)
    in place of the true base, so that it runs through substitutions. It is only read. A wrong guess is a miss, and so is having none, when
    the true base is taken in. With more than `settings.max_misses` misses within 16 it starts anew.

    Args:
        tables: Changed in place.
        bases: ``[T]`` uint8: A 0, C 1, G 2, T 3; anything above is no base: it is not learnt and no context contains it.
        reset: ``[T]`` bool, True for the first base of a document: no context reaches over it. Tables stay.
        state: Of the call before, on the same stream; None begins with no context. Any split equals the whole.
        threads: Orders worked on at a time.

    Returns:
        ``[T, columns, 4]``, in the columns of `settings.columns`, of the dtype of the counts; zeros without a context. And the state.

    Raises:
        ValueError: `bases` or `reset` has another shape or dtype.

    Source: Titans (arXiv 2501.00663), equations 8 to 11; finite-context models with inverted repeats and substitution-tolerant contexts
    from Pratas, Hosseini, Pinho (GeCo2, PACBB 2019) and Silva, Pratas et al. (GeCo3, GigaScience 2020).
    """
    return _run(tables, bases, reset, state, threads, is_read=True, is_write=True)


def read_kmers(
    tables: KmerTables, bases: np.ndarray, *, reset: np.ndarray | None = None, state: KmerState | None = None, threads: int = 1
) -> tuple[np.ndarray, KmerState]:
    """Does what `recurrent_kmer_memory` does, with tables that stay as they are."""
    return _run(tables, bases, reset, state, threads, is_read=True, is_write=False)


def write_kmers(
    tables: KmerTables, bases: np.ndarray, *, reset: np.ndarray | None = None, state: KmerState | None = None, threads: int = 1
) -> KmerState:
    """Learns what `recurrent_kmer_memory` learns, and returns only the state, whose tolerant contexts start anew."""
    return _run(tables, bases, reset, state, threads, is_read=False, is_write=True)[1]


def _run(
    tables: KmerTables,
    bases: np.ndarray,
    reset: np.ndarray | None,
    state: KmerState | None,
    threads: int,
    *,
    is_read: bool,
    is_write: bool,
) -> tuple[np.ndarray, KmerState]:
    starts = _checked(bases, reset)
    settings = tables.settings
    fresh = KmerState(np.zeros(3, np.int64), np.zeros((len(settings.tolerant_orders), 3), np.int64))
    context, pointers = (part.copy() for part in (fresh if state is None else state))
    if not is_read:
        pointers[:] = 0
    shape = (len(bases) if is_read else 0, len(settings.columns), 4)
    output = np.zeros(shape, tables.tables[0].counts.dtype)
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(bases), BLOCK):
            block = slice(first, first + BLOCK)
            words = _words(bases[block], starts[block], context)
            jobs = [(tables, column, words, output[block], pointers, is_write) for column in range(len(settings.orders))]
            list(pool.map(_scan_order, *zip(*jobs, strict=True)) if threads > 1 else map(_scan_order, *zip(*jobs, strict=True)))
    return output, KmerState(context, pointers)


def _checked(bases: np.ndarray, reset: np.ndarray | None) -> np.ndarray:
    """Returns the starts of documents, empty for none."""
    if bases.ndim != 1 or bases.dtype != np.uint8:
        raise ValueError(f"bases are {bases.dtype} {bases.shape} and are to be uint8 [T]")
    if reset is None:
        return np.zeros(0, np.bool_)
    if reset.shape != bases.shape or reset.dtype != np.bool_:
        raise ValueError(f"reset is {reset.dtype} {reset.shape} and is to be bool {bases.shape}")
    return reset


def _words(bases: np.ndarray, starts: np.ndarray, context: np.ndarray) -> Words:
    from genomem.ops.kmer_memory.loops import Words, roll

    size = len(bases)
    words = Words(np.empty(size, np.uint8), np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.uint8))
    roll(np.ascontiguousarray(bases), np.ascontiguousarray(starts), context, words)
    return words


def _scan_order(tables: KmerTables, column: int, words: Words, output: np.ndarray, pointers: np.ndarray, is_write: bool) -> None:
    from genomem.ops.kmer_memory.loops import scan

    settings, table = tables.settings, tables.tables[column]
    guided, pointer = output[:0, 0], np.zeros(3, np.int64)
    if len(output) and table.order in settings.tolerant_orders:
        which = settings.tolerant_orders.index(table.order)
        guided, pointer = output[:, len(settings.orders) + which], pointers[which]
    scan(table, words, settings.inverted_repeats, is_write, output[:, column], guided, pointer, settings.max_misses)
