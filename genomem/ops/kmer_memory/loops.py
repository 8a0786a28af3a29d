"""The compiled loops of the k-mer memory; whoever imports this module loads Numba.

Contexts depend on the sequence alone, so the places of a whole block are known before its first base is learnt: they are computed first,
and each is fetched into the cache some positions before it is needed.

Compiled code is kept beside this file and renewed when this file changes; after a change of a constant that it imports, delete it there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from genomem.ops.kmer_memory.settings import BUCKET_BITS, MAX_ORDER
from genomem.ops.kmer_memory.tables import CHAINED, DIRECT, DROPPED, FIRST_FACTOR, HALVED, OPEN, SECOND_FACTOR, USED

AHEAD = 24
"""Positions between a fetch into the cache and its use: more than a trip to memory takes, fewer than the cache forgets."""

_BUCKET = 1 << BUCKET_BITS
_WINDOW = (1 << 16) - 1
_FULL = -(1 << 40)
_TOP = 2 * MAX_ORDER


class Words(NamedTuple):
    """The contexts of a block of T positions.

    Attributes:
        bases: ``[T]`` uint8, 0 to 3, or 4 for what is no base.
        forward: ``[T]`` int64, the 24 bases before a position, the last one lowest.
        reverse: ``[T]`` int64, the reverse complement of the 24 bases that end with a position, the complement of that base highest.
        runs: ``[T]`` uint8, how many bases stand before a position without a break, at most 24.
    """

    bases: np.ndarray
    forward: np.ndarray
    reverse: np.ndarray
    runs: np.ndarray


def _emit_fetch(context, array, index):
    """Asks for the cache line of an element, without waiting for it: a call of LLVM's prefetch."""

    def build(context, builder, signature, arguments):
        view = make_array(signature.args[0])(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, signature.args[0], view, [arguments[1]], wraparound=False)
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.bitcast(pointer, byte), number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, index), build


_fetch: Any = intrinsic(_emit_fetch)


@njit(cache=True, nogil=True)
def roll(bases, starts, state, words):
    """Fills `words` for a block.

    Args:
        bases: ``[T]`` uint8; all above 3 is no base.
        starts: ``[T]`` bool, True where a document starts; or empty.
        state: ``[3]`` int64: forward word, reverse word and run before the block; those after it when this returns.
        words: Of the block.
    """
    forward, reverse, run = state
    for i in range(bases.size):
        base = np.int64(bases[i])
        if starts.size and starts[i]:
            run = 0
        words.forward[i] = forward
        words.runs[i] = run
        words.bases[i] = min(base, 4)
        if base < 4:
            forward = (forward << 2 | base) & ((1 << _TOP) - 1)
            reverse = reverse >> 2 | (3 - base) << (_TOP - 2)
            run = min(run + 1, MAX_ORDER)
        else:
            run = 0
        words.reverse[i] = reverse
    state[0], state[1], state[2] = forward, reverse, run


@njit
def hash_key(key, order):
    """Returns another number of 2k bits for each key of 2k bits."""
    mask = (1 << 2 * order) - 1
    key = (key ^ key >> order) * FIRST_FACTOR & mask
    key = (key ^ key >> order) * SECOND_FACTOR & mask
    return key ^ key >> order


@njit
def _locate(key, order, kind, home_bits):
    """Returns where the search for a key begins, a row or a list, and the tag to look for."""
    if kind == DIRECT:
        return key, 0
    hashed, tag_bits = hash_key(key, order), 2 * order - home_bits
    home, tag = hashed >> tag_bits, hashed & ((1 << tag_bits) - 1)
    return (home * _BUCKET + (tag & _BUCKET - 1) if kind == OPEN else home), tag + 1


@njit
def _find(kind, tags, heads, links, place, tag):
    """Returns the row of a key, or -1 - the row or the list's last entry where it would go, or `_FULL` where there is no room."""
    if kind == DIRECT:
        return place
    if kind == OPEN:
        first = place & -_BUCKET
        for probe in range(_BUCKET):
            row = first + (place + probe & _BUCKET - 1)
            found = np.int64(tags[row])
            if found == tag:
                return row
            if found == 0:
                return -1 - row
        return _FULL
    row, last = np.int64(heads[place]) - 1, np.int64(-1)
    while row >= 0:
        if np.int64(tags[row]) == tag:
            return row
        row, last = np.int64(links[row]) - 1, row
    return -2 - last


@njit
def _insert(kind, tags, heads, links, tally, place, tag, missing):
    """Returns the row that a key gets, of which `_find` said that it is missing; -1 where the table is full."""
    row = -1 - missing if kind == OPEN else tally[USED]
    if missing == _FULL or row >= tags.size:
        tally[DROPPED] += 1
        return -1
    tags[row] = tag
    tally[USED] += 1
    if kind == CHAINED and missing == -1:
        heads[place] = row + 1
    elif kind == CHAINED:
        links[-2 - missing] = row + 1
    return row


@njit
def _add(counts, row, base, keep, limit, tally):
    """Learns that a base followed."""
    first = 4 * row
    if limit < 0:
        for other in range(4):
            counts[first + other] = counts[first + other] * keep
    elif counts[first + base] == limit:
        tally[HALVED] += 1
        for other in range(4):
            counts[first + other] = counts[first + other] // 2
    counts[first + base] += 1


@njit
def _locate_block(table, words):
    """Returns places and tags of the contexts of a block, each ``[2, T]`` int64: those before a position, and the other strand's."""
    size, mask, shift = words.bases.size, (1 << 2 * table.order) - 1, _TOP - 2 * table.order
    places, marks = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    for i in range(size):
        places[0, i], marks[0, i] = _locate(words.forward[i] & mask, table.order, table.kind, table.home_bits)
        places[1, i], marks[1, i] = _locate(words.reverse[i] >> shift, table.order, table.kind, table.home_bits)
    return places, marks


@njit
def _guide(table, is_known, forward, base, pointer, output, max_misses):
    """Reads the counts of the tolerant context into `output`, ``[4]``, and moves it on."""
    mask = (1 << 2 * table.order) - 1
    if not is_known:
        pointer[2] = 0
        return
    if pointer[2] == 0:
        pointer[0], pointer[1], pointer[2] = forward & mask, 0, 1
    place, tag = _locate(pointer[0], table.order, table.kind, table.home_bits)
    row = _find(table.kind, table.tags, table.heads, table.links, place, tag)
    if row >= 0:
        for other in range(4):
            output[other] = table.counts[4 * row + other]
    guess, misses = np.argmax(output), 0
    knows = output[guess] > 0
    pointer[0] = (pointer[0] << 2 | (guess if knows else base)) & mask
    pointer[1] = (pointer[1] << 1 | (not knows or guess != base)) & _WINDOW
    for bit in range(16):
        misses += pointer[1] >> bit & 1
    pointer[2] = misses <= max_misses


@njit(cache=True, nogil=True)
def scan(table, words, both_strands, is_write, output, guided, pointer, max_misses):
    """Reads and writes a block of one order, position by position.

    Args:
        table: Of the order; changed if `is_write`.
        words: Of the block.
        both_strands: Write the other strand too.
        is_write: Whether to learn.
        output: ``[T, 4]``, zeros, which get the counts before each position; or ``[0, 4]``.
        guided: ``[T, 4]``, zeros, which get the counts of the tolerant context; or ``[0, 4]`` for none.
        pointer: ``[3]`` int64: the tolerant context, its misses as bits, and whether there is one; changed.
        max_misses: Of 16.
    """
    order, kind, _, keep, limit, counts, tags, heads, links, tally = table
    all_bases, forward, runs = words.bases, words.forward, words.runs
    places, marks = _locate_block(table, words)
    both_strands = both_strands and is_write
    for i in range(all_bases.size):
        if i + AHEAD < all_bases.size:
            for strand in range(1 + both_strands):
                ahead = places[strand, i + AHEAD]
                if kind == OPEN:
                    _fetch(tags, ahead)
                if kind == CHAINED:
                    _fetch(heads, ahead)
                else:
                    _fetch(counts, 4 * ahead)
        base, is_known = np.int64(all_bases[i]), np.int64(runs[i]) >= order
        if guided.size:
            _guide(table, is_known, forward[i], base, pointer, guided[i], max_misses)
        if not is_known:
            continue
        row = _find(kind, tags, heads, links, places[0, i], marks[0, i])
        if row >= 0 and output.size:
            for other in range(4):
                output[i, other] = counts[4 * row + other]
        if not is_write or base > 3:
            continue
        if row < 0:
            row = _insert(kind, tags, heads, links, tally, places[0, i], marks[0, i], row)
        if row >= 0:
            _add(counts, row, base, keep, limit, tally)
        if both_strands:
            row = _find(kind, tags, heads, links, places[1, i], marks[1, i])
            if row < 0:
                row = _insert(kind, tags, heads, links, tally, places[1, i], marks[1, i], row)
            if row >= 0:
                _add(counts, row, 3 - (forward[i] >> (2 * order - 2) & 3), keep, limit, tally)
