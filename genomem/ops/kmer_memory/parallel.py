"""The k-mer memory in exact parallel form: events sorted by context, then a scan within each; PyTorch, on any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genomem.ops.kmer_memory.settings import MAX_ORDER, KmerSettings
from genomem.ops.kmer_memory.tables import KmerTables, table_entries

_NONE = -1
"""The key of an event that is none; it sorts in front of all contexts."""


class SortedTables(NamedTuple):
    """Tables without hashing, and where the stream stands; never changed in place.

    Attributes:
        keys: For each order ``[N]`` int64, ascending: contexts of k bases as numbers of 2k bits, the last base lowest.
        counts: For each order ``[N, 4]``, int64, or float32 where counts decay.
        history: ``[24]`` int64, the last bases; 4 before the first one and where there is no base.
    """

    keys: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]
    history: Tensor


def sorted_tables(tables: KmerTables, device: torch.device | str = "cpu") -> SortedTables:
    """Returns what tables hold as sorted tables, at the start of a stream."""
    entries = [table_entries(table) for table in tables.tables]
    dtype = torch.int64 if tables.settings.keep == 1 else torch.float32
    keys = tuple(torch.from_numpy(key).to(device) for key, _ in entries)
    counts = tuple(torch.from_numpy(count).to(device, dtype) for _, count in entries)
    return SortedTables(keys, counts, torch.full((MAX_ORDER,), 4, device=device))


def parallel_kmer_memory(
    settings: KmerSettings, bases: Tensor, *, reset: Tensor | None = None, state: SortedTables | None = None, is_write: bool = True
) -> tuple[Tensor, SortedTables]:
    """Returns the counts that predict each base, and the tables after the last one: `recurrent_kmer_memory` without a loop over positions.

    Without forgetting the counts are equal to the bit, halvings included (a pass over the contexts concerned for each); with it they are
    equal up to rounding. Nothing is ever dropped, so a full table differs. Memory is about 300 bytes for each base of a call.

    Args:
        settings: As of the streaming form, without tolerant orders: those depend on what was just read.
        bases: ``[T]`` uint8 or another integer: 0 to 3, anything else is no base.
        reset: ``[T]`` bool, True for the first base of a document.
        state: Of the call before, or `sorted_tables`; None is empty. Any split equals the whole.
        is_write: Whether to learn.

    Returns:
        ``[T, orders, 4]``, int64 or, where counts decay, float32. And the tables.

    Raises:
        ValueError: There are tolerant orders.
    """
    if settings.tolerant_orders:
        raise ValueError(f"tolerant orders {settings.tolerant_orders} can only be followed one base at a time: use recurrent_kmer_memory")
    if state is None:
        state = _empty(settings, bases.device)
    # Starts of documents are kept in the history as a break of their own: the bases before one are no bases for what follows.
    sequence = torch.cat([state.history, torch.where((bases < 0) | (bases > 3), 4, bases.long())])
    starts = torch.zeros_like(sequence, dtype=torch.bool)
    if reset is not None:
        starts[MAX_ORDER:] = reset
    runs = _runs(sequence, starts)
    outputs, keys, counts = [], [], []
    for order, known, values in zip(settings.orders, state.keys, state.counts, strict=True):
        events = _events(sequence, runs, order, settings.inverted_repeats, is_write)
        output, key, value = _scan_order(settings, events, known, values)
        outputs.append(output)
        keys.append(key)
        counts.append(value)
    history = sequence.clone()
    history[: len(history) - int(runs[-1])] = 4
    return torch.stack(outputs, 1), SortedTables(tuple(keys), tuple(counts), history[-MAX_ORDER:])


def _empty(settings: KmerSettings, device: torch.device) -> SortedTables:
    dtype = torch.int64 if settings.keep == 1 else torch.float32
    keys = tuple(torch.zeros(0, dtype=torch.int64, device=device) for _ in settings.orders)
    counts = tuple(torch.zeros(0, 4, dtype=dtype, device=device) for _ in settings.orders)
    return SortedTables(keys, counts, torch.full((MAX_ORDER,), 4, device=device))


def _runs(sequence: Tensor, starts: Tensor) -> Tensor:
    """Returns how many bases stand before each of the T + 1 places without a break, ``[T + 1]``."""
    place = torch.arange(len(sequence) + 1, device=sequence.device)
    begins = torch.zeros_like(place)
    begins[1:] = torch.where(sequence == 4, place[1:], 0)
    begins[:-1] = torch.maximum(begins[:-1], torch.where(starts, place[:-1], 0))
    return place - begins.cummax(0).values


class _Events(NamedTuple):
    """What happens in time order: at each base a read that is also a write, then a write of the other strand.

    Attributes:
        keys: ``[E]`` int64, or `_NONE`.
        values: ``[E]`` int64, the base that is written, or 4 for a read alone.
        reads: ``[T]`` int64, the event of each position.
    """

    keys: Tensor
    values: Tensor
    reads: Tensor


def _events(sequence: Tensor, runs: Tensor, order: int, both_strands: bool, is_write: bool) -> _Events:
    """Returns the events of the bases behind the history."""
    length = len(sequence) - MAX_ORDER
    place = torch.arange(MAX_ORDER, len(sequence), device=sequence.device)
    forward, reverse = torch.zeros(2, length, dtype=torch.int64, device=sequence.device)
    for back in range(order, 0, -1):
        forward = forward << 2 | sequence[place - back] & 3
    for back in range(order):
        reverse = reverse << 2 | (3 - sequence[place - back]) & 3
    known, base = runs[place] >= order, sequence[place]
    learns = known & (base < 4) & is_write
    keys = torch.stack([torch.where(known, forward, _NONE), torch.where(learns & both_strands, reverse, _NONE)], 1)
    values = torch.stack([torch.where(learns, base, 4), 3 - sequence[place - order]], 1)
    return _Events(keys.flatten(), torch.where(keys == _NONE, 4, values).flatten(), 2 * torch.arange(length, device=sequence.device))


def _scan_order(settings: KmerSettings, events: _Events, known: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what each position reads ``[T, 4]``, and the table after all: keys and counts."""
    keys, order = torch.sort(events.keys, stable=True)
    values = events.values[order]
    unique, segment = torch.unique_consecutive(keys, return_inverse=True)
    start = torch.zeros(len(unique), 4, dtype=counts.dtype, device=keys.device)
    place = torch.searchsorted(known, unique)
    found = (place < len(known)) & (known[place.clamp(max=max(len(known) - 1, 0))] == unique if len(known) else place < 0)
    start[found] = counts[place[found]]
    scan = _scan_counts if settings.keep == 1 else _scan_decaying
    before, end = scan(settings, values, segment, start)
    before[keys == _NONE] = 0
    reads = torch.empty_like(before).index_copy_(0, order, before)[events.reads]
    # Contexts that were only read stay unknown.
    written = found | (torch.zeros_like(unique).index_add_(0, segment, (values < 4).long()) > 0)
    stays = torch.ones_like(known, dtype=torch.bool)
    stays[place[found]] = False
    merged, order = torch.sort(torch.cat([known[stays], unique[written]]))
    return reads, merged, torch.cat([counts[stays], end[written]])[order]


def _one_hot(values: Tensor, dtype: torch.dtype) -> Tensor:
    return (values[:, None] == torch.arange(4, device=values.device)).to(dtype)


def _last(segment: Tensor, segments: int) -> Tensor:
    """Returns the last event of each segment."""
    return torch.cumsum(torch.bincount(segment, minlength=segments), 0) - 1


def _scan_counts(settings: KmerSettings, values: Tensor, segment: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Returns integer counts before each event ``[E, 4]`` and after the last of each segment ``[S, 4]``."""
    added = _one_hot(values, torch.int64)
    before = added.cumsum(0) - added
    last = _last(segment, len(start))
    first = torch.cat([last.new_zeros(1), last[:-1] + 1])[: len(start)]
    before += (start - before[first])[segment]
    if settings.limit > 0:
        _halve(before, values, segment, settings.limit, len(start))
    end = before[last]
    at_limit = (end.eq(settings.limit) & added[last].bool()).any(1, keepdim=True)
    return before, torch.where(at_limit, end // 2, end) + added[last]


def _halve(before: Tensor, values: Tensor, segment: Tensor, limit: int, segments: int) -> None:
    """Takes from counts, in place, what halving takes: the first event of each segment at the limit, then the next one, until none is."""
    place = torch.arange(len(values), device=values.device)
    written, none = values.clamp(max=3), len(values)
    after = torch.full((segments,), -1, device=values.device)
    while True:
        over = (values < 4) & (before.gather(1, written[:, None])[:, 0] >= limit) & (place > after[segment])
        if not over.any():
            return
        first = torch.full_like(after, none).scatter_reduce_(0, segment[over], place[over], "amin")
        concerned = first < none
        lost = torch.zeros(segments, 4, dtype=before.dtype, device=before.device)
        at = before[first[concerned]]
        lost[concerned] = at - at // 2
        later = place > first[segment]
        before[later] -= lost[segment[later]]
        after = torch.where(concerned, first, after)


def _scan_decaying(settings: KmerSettings, values: Tensor, segment: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Does the same for counts that decay: ``c <- keep c + v`` is a linear recurrence, scanned in steps of 1, 2, 4, ... events."""
    count = _one_hot(values, start.dtype)
    kept = torch.where(values < 4, start.new_tensor(settings.keep), start.new_tensor(1.0))
    step = 1
    while step < len(values):
        same = segment[step:] == segment[:-step]
        if not same.any():
            break
        earlier = torch.where(same[:, None], count[:-step] * kept[step:, None], torch.zeros_like(count[step:]))
        count = torch.cat([count[:step], count[step:] + earlier])
        kept = torch.cat([kept[:step], torch.where(same, kept[step:] * kept[:-step], kept[step:])])
        step *= 2
    after = count + kept[:, None] * start[segment]
    before = torch.cat([after[:1], after[:-1]])
    last = _last(segment, len(start))
    first = torch.cat([last.new_zeros(1), last[:-1] + 1])[: len(start)]
    before[first] = start
    return before, after[last]
