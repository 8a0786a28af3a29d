"""The tables of a k-mer memory: plain arrays, one set an order.

A key is the context as a number of 2k bits, its last base lowest (A 0, C 1, G 2, T 3). Up to order 12 it is the row of the table. Above,
a one-to-one hash of 2k bits to 2k bits stirs it; the high bits of the result say where it belongs and the low bits are stored beside the
counts as its tag. Place and tag together are the key: two contexts can meet, but they are never mistaken for each other.

- "open": the high bits name a bucket of 16 slots, the low 4 the slot to begin at; the search goes round the bucket until the tag or an
  empty slot.
- "chained": the high bits name a list of entries, which are taken from one pool in order of arrival.

A table never evicts. A new context that finds its bucket or the pool full is dropped and counted, and those already there go on learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from genomem.ops.kmer_memory.settings import BUCKET_BITS, DIRECT_ORDER, KmerSettings

DIRECT, OPEN, CHAINED = 0, 1, 2
USED, DROPPED, HALVED = 0, 1, 2
FIRST_FACTOR, SECOND_FACTOR = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9
_CACHE_LINE = 64


class KmerTable(NamedTuple):
    """The table of one order.

    Attributes:
        order: k.
        kind: DIRECT, OPEN or CHAINED.
        home_bits: High bits of the hash that name a bucket or a list.
        keep: What a row keeps when it is written, float32; 1 for plain counts.
        limit: Counts are halved before one would go beyond it; -1 for never.
        counts: ``[rows * 4]`` uint8, uint16 or float32: counts of A, C, G and T, row by row.
        tags: ``[rows]`` uint32, tag + 1, or 0 where the row is empty; empty for a direct table.
        heads: ``[lists]`` int32, 1 + the row that a list begins with, or 0; empty but for a chained table.
        links: ``[rows]`` int32, 1 + the row that follows in the list, or 0; empty but for a chained table.
        tally: ``[3]`` int64: rows in use (0 for a direct table), writes dropped because the table was full, halvings.
    """

    order: int
    kind: int
    home_bits: int
    keep: np.float32
    limit: int
    counts: np.ndarray
    tags: np.ndarray
    heads: np.ndarray
    links: np.ndarray
    tally: np.ndarray


ARRAYS = ("counts", "tags", "heads", "links", "tally")


class KmerTables(NamedTuple):
    """The tables of a k-mer memory, one for each of `settings.orders`; writing changes them in place."""

    settings: KmerSettings
    tables: tuple[KmerTable, ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays by name, such as ``order_14.counts``: all that there is to save beside the settings; not copies."""
        named = {f"order_{table.order}.{name}": getattr(table, name) for table in self.tables for name in ARRAYS}
        return {name: array for name, array in named.items() if array.size}


def table_bytes(settings: KmerSettings) -> int:
    """Returns the bytes of all tables of these settings."""
    return sum(size * np.dtype(dtype).itemsize for order in settings.orders for size, dtype in _shapes(settings, order).values())


def new_tables(settings: KmerSettings) -> KmerTables:
    """Returns empty tables."""
    return KmerTables(settings, tuple(_table(settings, order, {}) for order in settings.orders))


def tables_from_arrays(settings: KmerSettings, arrays: Mapping[str, np.ndarray]) -> KmerTables:
    """Returns the tables of saved arrays, which are used and not copied.

    A memory-mapped file is to be opened for copies on write (mode "c"), so that it stays as it is whatever is learnt.

    Raises:
        ValueError: An array is missing, is not what these settings make, or is read-only.
    """
    tables = []
    for order in settings.orders:
        given = {name: np.asarray(arrays[f"order_{order}.{name}"]) for name in ARRAYS if f"order_{order}.{name}" in arrays}
        for name, (size, dtype) in _shapes(settings, order).items():
            if size and (name not in given or given[name].shape != (size,) or given[name].dtype != dtype):
                found = f"{given[name].dtype} {given[name].shape}" if name in given else "missing"
                raise ValueError(f"order_{order}.{name} is to be {np.dtype(dtype)} ({size},) for these settings and is {found}")
            if size and not given[name].flags.writeable:
                raise ValueError(f"order_{order}.{name} is read-only; open a memory-mapped file with mode 'c'")
        tables.append(_table(settings, order, given))
    return KmerTables(settings, tuple(tables))


def _kind(settings: KmerSettings, order: int) -> int:
    return DIRECT if order <= DIRECT_ORDER else {"open": OPEN, "chained": CHAINED}[settings.layout]


def _shapes(settings: KmerSettings, order: int) -> dict[str, tuple[int, type]]:
    """Size and dtype of each array."""
    kind = _kind(settings, order)
    rows = 4**order if kind == DIRECT else 1 << settings.slot_bits
    chained = rows * (kind == CHAINED)
    return {
        "counts": (4 * rows, settings.cell),
        "tags": (rows * (kind != DIRECT), np.uint32),
        "heads": (chained, np.int32),
        "links": (chained, np.int32),
        "tally": (3, np.int64),
    }


def _table(settings: KmerSettings, order: int, arrays: Mapping[str, np.ndarray]) -> KmerTable:
    kind = _kind(settings, order)
    home_bits = settings.slot_bits - BUCKET_BITS * (kind == OPEN)
    made = {name: arrays[name] if name in arrays else _zeros(*shape) for name, shape in _shapes(settings, order).items()}
    return KmerTable(order, kind, home_bits, np.float32(settings.keep), settings.limit, **made)


def _zeros(size: int, dtype: type) -> np.ndarray:
    """Returns zeros that begin at a cache line, so that the tags of a bucket lie in one."""
    extra = _CACHE_LINE // np.dtype(dtype).itemsize
    array: np.ndarray = np.zeros(size + extra, dtype)
    skip = -array.ctypes.data % _CACHE_LINE // array.itemsize
    return array[skip : skip + size]


class TableStatistics(NamedTuple):
    """How full a table is.

    Attributes:
        order: k.
        rows: Rows of the table.
        used: Rows in use.
        dropped: Writes that found no row.
        halved: Times that a row was halved.
        probes: ``[longest]`` int64: rows in use that are found at the first look, the second, and so on.
        state_bytes: Of its arrays.
    """

    order: int
    rows: int
    used: int
    dropped: int
    halved: int
    probes: np.ndarray
    state_bytes: int

    @property
    def load(self) -> float:
        """Share of the rows in use."""
        return self.used / self.rows

    @property
    def collisions(self) -> int:
        """Rows that another context stands before: all that are not found at the first look."""
        return int(self.probes[1:].sum())


def table_statistics(table: KmerTable) -> TableStatistics:
    """Returns how full a table is; reads all of it."""
    rows = table.counts.size // 4
    used = _in_use(table)
    if table.kind == OPEN:
        size = 1 << BUCKET_BITS
        probes = np.bincount((used - (table.tags[used].astype(np.int64) - 1)) % size)
    elif table.kind == CHAINED:
        probes = np.bincount(_depths(table))
    else:
        probes = np.array([used.size])
    held = sum(getattr(table, name).nbytes for name in ARRAYS)
    return TableStatistics(table.order, rows, used.size, int(table.tally[DROPPED]), int(table.tally[HALVED]), probes, held)


def table_entries(table: KmerTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a table knows, whatever its layout: keys ``[N]`` int64, ascending, and their counts ``[N, 4]``."""
    used = _in_use(table)
    keys = used
    if table.kind != DIRECT:
        home = used >> BUCKET_BITS if table.kind == OPEN else _lists(table)[used]
        keys = unhash_key(home << (2 * table.order - table.home_bits) | table.tags[used].astype(np.int64) - 1, table.order)
    order = np.argsort(keys)
    return keys[order], table.counts.reshape(-1, 4)[used[order]]


def unhash_key(hashed: np.ndarray, order: int) -> np.ndarray:
    """Returns the keys that `loops.hash_key` turned into these, int64."""
    mask = (1 << 2 * order) - 1
    for factor in (SECOND_FACTOR, FIRST_FACTOR):
        hashed = (hashed ^ hashed >> order) * pow(factor, -1, 1 << 2 * order) & mask
    return hashed ^ hashed >> order


def _in_use(table: KmerTable) -> np.ndarray:
    """Returns the rows that know something."""
    return np.flatnonzero(table.counts.reshape(-1, 4).any(1) if table.kind == DIRECT else table.tags)


def _chains(table: KmerTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns of each row in use the list that it stands in and its place there, both 0 elsewhere; walks all lists at once."""
    lists, depths = np.zeros((2, table.links.size), np.int64)
    owner = np.flatnonzero(table.heads)
    row, depth = table.heads[owner].astype(np.int64) - 1, 0
    while row.size:
        lists[row], depths[row] = owner, depth
        following = table.links[row]
        owner, row, depth = owner[following > 0], following[following > 0].astype(np.int64) - 1, depth + 1
    return lists, depths


def _lists(table: KmerTable) -> np.ndarray:
    return _chains(table)[0]


def _depths(table: KmerTable) -> np.ndarray:
    return _chains(table)[1][: table.tally[USED]]
