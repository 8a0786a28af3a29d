"""K-mers as integers: two bits a base, first base highest, A C G T = 0 1 2 3, up to 32 bases.

The reverse complement of a base is 3 minus its code, so that of a k-mer is a reversal and a complement of bits.
Sequences are worked on joined into one array with an unknown base between them: no k-mer crosses a boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from genomem.data.tokenizer import UNKNOWN, base_codes

_BLOCK = 1 << 24
_TABLE_ORDER = 11
_SORTED_KMERS = 1 << 26

# Each step of a bit reversal that keeps pairs of bits together: swap neighbours of this width under this mask.
_SWAPS = (
    (2, 0x3333333333333333),
    (4, 0x0F0F0F0F0F0F0F0F),
    (8, 0x00FF00FF00FF00FF),
    (16, 0x0000FFFF0000FFFF),
    (32, 0x00000000FFFFFFFF),
)


def join(sequences: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the codes of ASCII `sequences` in one uint8 array: each is followed by one `UNKNOWN`."""
    gap = np.array([UNKNOWN], dtype=np.uint8)
    pieces = [piece for sequence in sequences for piece in (base_codes(sequence), gap)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint8)


def kmers(codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k-mer that starts at each base, and whether it is free of unknown bases.

    Args:
        codes: Base codes [n], uint8.
        k: 0 to 32. The empty k-mer is 0 and stands at n + 1 places.

    Returns:
        K-mers, uint64 [max(n - k + 1, 0)], and a boolean array of that shape; k-mers marked False mean nothing.
    """
    places = max(len(codes) - k + 1, 0)
    # Words of 1, 2, 4, ... bases are put together from two halves; k is a sum of such words.
    word, length = (codes & 3).astype(np.uint64), 1
    result, done = np.zeros(places, dtype=np.uint64), 0
    while done < k and places:
        if (k - done) & length:
            result = result << np.uint64(2 * length) if done else result
            result |= word[done : done + places]
            done += length
        if done < k:
            word = (word[:-length] << np.uint64(2 * length)) | word[length:]
            length *= 2
    unknown = np.zeros(len(codes) + 1, dtype=np.int32 if len(codes) < 2**31 else np.int64)
    np.cumsum(codes == UNKNOWN, out=unknown[1:])
    return result, unknown[k : k + places] == unknown[:places]


def known_kmers(codes: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """Yields the k-mers of `codes` that are free of unknown bases, in order, in blocks that bound the memory."""
    for start in range(0, max(len(codes) - k + 1, 0), _BLOCK):
        found, known = kmers(codes[start : start + _BLOCK + k - 1], k)
        yield found if known.all() else found[known]


def reverse_complement(found: np.ndarray, k: int) -> np.ndarray:
    """Returns the reverse complements of k-mers, uint64."""
    result = ~found
    for width, mask in _SWAPS:
        result = ((result & np.uint64(mask)) << np.uint64(width)) | ((result >> np.uint64(width)) & np.uint64(mask))
    return result >> np.uint64(64 - 2 * k) if k else np.zeros_like(result)


def canonical(found: np.ndarray, k: int) -> np.ndarray:
    """Returns the smaller of each k-mer and its reverse complement, uint64."""
    return np.minimum(found, reverse_complement(found, k))


@dataclass(frozen=True)
class Counts:
    """How often each base follows the contexts that were asked for.

    Attributes:
        next_base: int32 [n, 4].
        contexts: Distinct contexts that the whole training sequence holds.
    """

    next_base: np.ndarray
    contexts: int


def count_next(training: np.ndarray, queries: np.ndarray, order: int) -> Counts:
    """Counts, on both strands of `training`, what follows each of the contexts `queries`.

    Args:
        training: Base codes, chromosomes joined by `UNKNOWN`.
        queries: Contexts as k-mers of `order` bases, uint64 [n].
        order: 0 to 31. Short contexts are counted in a table of all (order + 1)-mers; long ones by sorting the
            (order + 1)-mers of training, a range of them at a time, so that memory does not grow with training.
    """
    is_short = order <= _TABLE_ORDER and 4 ** (order + 1) <= 2 * len(training)
    return _count_in_table(training, queries, order) if is_short else _count_by_sorting(training, queries, order)


def _count_in_table(training: np.ndarray, queries: np.ndarray, order: int) -> Counts:
    k = order + 1
    table = np.zeros(4**k, dtype=np.int64)
    for found in known_kmers(training, k):
        table += np.bincount(found.astype(np.int64), minlength=4**k)
    table += table[reverse_complement(np.arange(4**k, dtype=np.uint64), k)]
    table = table.reshape(-1, 4)
    return Counts(table.astype(np.int32)[queries], int(np.count_nonzero(table.any(axis=1))))


def _count_by_sorting(training: np.ndarray, queries: np.ndarray, order: int) -> Counts:
    result = np.zeros((len(queries), 4), dtype=np.int32)
    contexts = 0
    prefix_bases = 0
    while 2 * len(training) > _SORTED_KMERS * 4**prefix_bases:
        prefix_bases += 1
    for prefix in range(4**prefix_bases):
        keys, counts = _sorted_kmers(training, order + 1, prefix, prefix_bases)
        if not len(keys):
            continue
        contexts += 1 + int(np.count_nonzero(np.diff(keys >> np.uint64(2))))
        wanted = np.flatnonzero(queries >> np.uint64(2 * (order - prefix_bases)) == prefix)
        for start in range(0, len(wanted), _BLOCK >> 2):
            rows = wanted[start : start + (_BLOCK >> 2)]
            # Sorted look-ups walk through the keys once instead of jumping about in them.
            rows = rows[np.argsort(queries[rows])]
            result[rows] = _look_up(keys, counts, queries[rows])
    return Counts(result, contexts)


def _sorted_kmers(training: np.ndarray, k: int, prefix: int, prefix_bases: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted distinct k-mers of both strands that begin with `prefix`, and how often each occurs."""
    shift = np.uint64(2 * (k - prefix_bases))
    pieces = []
    for found in known_kmers(training, k):
        for strand in (found, reverse_complement(found, k)):
            pieces.append(strand[strand >> shift == prefix] if prefix_bases else strand)
    keys = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint64)
    del pieces
    keys.sort()
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, dtype=np.int64)
    return keys[first], np.diff(first, append=len(keys)).astype(np.int32)


def _look_up(keys: np.ndarray, counts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Returns the next-base counts [n, 4] of sorted `contexts`: their k-mers stand side by side among `keys`."""
    result = np.zeros((len(contexts), 4), dtype=np.int32)
    first = np.searchsorted(keys, contexts << np.uint64(2))
    for step in range(4):
        place = np.minimum(first + step, len(keys) - 1)
        key = keys[place]
        rows = np.flatnonzero((key >> np.uint64(2) == contexts) & (first + step < len(keys)))
        result[rows, (key[rows] & np.uint64(3)).astype(np.int64)] = counts[place[rows]]
    return result
