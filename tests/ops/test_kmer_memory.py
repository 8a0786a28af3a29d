"""The k-mer memory: the definition against counting of strings and the dense Titans memory, every form against the definition."""

from __future__ import annotations

import dataclasses
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from genomem.ops import reference
from genomem.ops.kmer_memory import (
    KmerSettings,
    new_tables,
    parallel_kmer_memory,
    read_kmers,
    recurrent_kmer_memory,
    sorted_tables,
    table_entries,
    table_statistics,
    tables_from_arrays,
    write_kmers,
)
from genomem.ops.kmer_memory.tables import unhash_key

MIRROR = os.environ.get("GENOMEM_MIRROR")
ORDERS = (1, 3, 12, 13, 16)


def _sequence(seed: int = 0) -> np.ndarray:
    """Bases with a diverged repeat, an inverted repeat, letters that are no base, and a stretch that overflows 8 bits."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 4, 250)
    diverged = np.where(rng.random(250) < 0.05, rng.integers(0, 4, 250), first)
    parts = (first, [4], rng.integers(0, 4, 40), diverged, [4, 200], 3 - first[::-1], np.tile([0, 1], 350), np.zeros(300), first[:100])
    return np.concatenate(parts).astype(np.uint8)


def _starts(bases: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).random(len(bases)) < 0.005


def _settings(**changes) -> KmerSettings:
    return KmerSettings(**{"orders": ORDERS, "slot_bits": 12} | changes)


def _definition(settings: KmerSettings, bases: np.ndarray, **options):
    names = ("tolerant_orders", "max_misses", "inverted_repeats", "keep")
    given = {name: getattr(settings, name) for name in names} | {"limit": settings.limit if settings.limit > 0 else None}
    return reference.kmer_memory(bases.tolist(), settings.orders, **given, **options)


def _key(context: tuple[int, ...]) -> int:
    return sum(base << 2 * place for place, base in enumerate(reversed(context)))


def _same_entries(table, expected: dict) -> bool:
    keys, counts = table_entries(table)
    wanted = sorted((_key(context), tuple(values)) for context, values in expected.items())
    return wanted == [(int(key), tuple(values)) for key, values in zip(keys, counts, strict=True)]


@pytest.mark.parametrize("inverted_repeats", [True, False])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_definition_counts_what_stands_in_the_text_and_in_its_other_strand(order: int, inverted_repeats: bool) -> None:
    text = "".join(np.random.default_rng(0).choice(list("ACGT"), 120)) + "N" + "ACGTTTACG" * 4
    counts, _ = reference.kmer_memory(["ACGT".find(letter) for letter in text], [order], inverted_repeats=inverted_repeats)
    for i in range(len(text)):
        context, strands = text[max(0, i - order) : i], [text[:i]]
        if inverted_repeats:
            strands.append(text[:i][::-1].translate(str.maketrans("ACGT", "TGCA")))
        expected = [sum(strand[p:].startswith(context + base) for strand in strands for p in range(i)) for base in "ACGT"]
        assert counts[i, 0].tolist() == (expected if len(context) == order and "N" not in context else [0, 0, 0, 0])


@pytest.mark.parametrize(("step_size", "forget"), [(None, 0.0), (0.25, 0.0), (0.25, 0.1)])
def test_the_rule_is_that_of_the_dense_titans_memory_with_one_hot_keys(step_size: float | None, forget: float) -> None:
    bases = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0))
    context = 4 * bases[:-2] + bases[1:-1]
    key = torch.nn.functional.one_hot(context, 16).double()
    visits = (key.cumsum(0) * key).sum(1)
    theta = 1 / visits if step_size is None else torch.full_like(visits, step_size)
    value = torch.nn.functional.one_hot(bases[2:], 4).double()
    shaped = [x[None, :, None] for x in (key, key, value)]
    dense, _ = reference.linear_memory(*shaped, step_size=theta[None, :, None], forget=forget * shaped[0], read="before")
    settings = KmerSettings((2,), inverted_repeats=False, step_size=step_size, forget=forget)
    counts = torch.from_numpy(recurrent_kmer_memory(new_tables(settings), bases.numpy().astype(np.uint8))[0])[2:, 0].double()
    scale = counts.sum(1, keepdim=True).clamp(min=1).reciprocal() if step_size is None else step_size
    torch.testing.assert_close(counts * scale, dense[0, :, 0], rtol=1e-5, atol=1e-6)


FACTORS = {
    "layout": ("open", "chained"),
    "count_bits": (8, 16),
    "rule": ((None, 0.0), (0.1, 0.0), (None, 0.05), (0.05, 0.1)),
    "inverted_repeats": (True, False),
    "tolerant_orders": ((), (16,), (16, 3)),
    "max_misses": (0, 8),
    "reset": (True, False),
    "cuts": ((), (1, 300, 307, 900)),
}


def _settings_of(choice: dict) -> KmerSettings:
    step_size, forget = choice["rule"]
    own = {name: choice[name] for name in ("layout", "count_bits", "inverted_repeats", "tolerant_orders", "max_misses")}
    return _settings(step_size=step_size, forget=forget, **own)


def test_streaming_equals_the_definition(choice: dict) -> None:
    settings, bases = _settings_of(choice), _sequence()
    reset = _starts(bases) if choice["reset"] else None
    expected, dictionaries = _definition(settings, bases, reset=reset)
    tables, state, parts = new_tables(settings), None, []
    for first, last in zip((0, *choice["cuts"]), (*choice["cuts"], len(bases)), strict=True):
        cut = slice(first, last)
        counts, state = recurrent_kmer_memory(tables, bases[cut], reset=None if reset is None else reset[cut], state=state)
        parts.append(counts)
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert all(_same_entries(table, known) for table, known in zip(tables.tables, dictionaries, strict=True))


def test_the_parallel_form_equals_the_definition(choice: dict) -> None:
    settings, bases = dataclasses.replace(_settings_of(choice), tolerant_orders=()), torch.from_numpy(_sequence())
    reset = _starts(bases.numpy()) if choice["reset"] else None
    expected, dictionaries = _definition(settings, bases.numpy(), reset=reset)
    state, parts = None, []
    for first, last in zip((0, *choice["cuts"]), (*choice["cuts"], len(bases)), strict=True):
        cut = slice(first, last)
        counts, state = parallel_kmer_memory(
            settings, bases[cut], reset=None if reset is None else torch.from_numpy(reset[cut]), state=state
        )
        parts.append(counts)
    tolerance = {"rtol": 0, "atol": 0} if settings.keep == 1 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat(parts).float(), torch.from_numpy(expected), **tolerance)
    assert [len(keys) for keys in state.keys] == [len(known) for known in dictionaries]


@pytest.mark.parametrize("length", [0, 1, 2, 17, 63, 64, 65])
def test_any_length_equals_the_definition(length: int) -> None:
    settings, bases = _settings(), np.zeros(length, np.uint8)
    expected, _ = _definition(settings, bases)
    np.testing.assert_array_equal(recurrent_kmer_memory(new_tables(settings), bases)[0], expected)
    np.testing.assert_array_equal(parallel_kmer_memory(settings, torch.from_numpy(bases))[0], expected)


def test_blocks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, bases = _settings(tolerant_orders=(13,)), _sequence()
    whole, _ = recurrent_kmer_memory(new_tables(settings), bases, reset=_starts(bases))
    monkeypatch.setattr("genomem.ops.kmer_memory.recurrent.BLOCK", 37)
    parts, _ = recurrent_kmer_memory(new_tables(settings), bases, reset=_starts(bases), threads=2)
    np.testing.assert_array_equal(parts, whole)


def test_counts_are_halved_before_they_overflow() -> None:
    settings = _settings(orders=(1,), count_bits=8, inverted_repeats=False)
    tables = new_tables(settings)
    write_kmers(tables, np.array([0] * 10 + [1] + [0] * 400, np.uint8))
    assert tables.tables[0].counts[:4].tolist() == [128 + (9 + 399) - (255 + 1 + 127 + 1), 0, 0, 0]
    assert table_statistics(tables.tables[0]).halved == 2


@pytest.mark.parametrize("tolerant_orders", [(), (13,)])
def test_reading_sees_what_was_written_and_changes_nothing(tolerant_orders: tuple[int, ...]) -> None:
    settings, bases = _settings(tolerant_orders=tolerant_orders), _sequence()
    tables = new_tables(settings)
    write_kmers(tables, bases)
    before = {name: array.copy() for name, array in tables.arrays().items()}
    other = _sequence(seed=3)
    counts, _ = read_kmers(tables, other)
    _, known = _definition(settings, bases)
    expected, _ = _definition(settings, other, tables=known, is_write=False)
    np.testing.assert_array_equal(counts, expected)
    assert all(np.array_equal(array, before[name]) for name, array in tables.arrays().items())
    if not tolerant_orders:
        found, _ = parallel_kmer_memory(settings, torch.from_numpy(other), state=sorted_tables(tables), is_write=False)
        np.testing.assert_array_equal(found, expected)


def test_documents_reset_contexts_and_not_tables() -> None:
    settings, bases = _settings(orders=(13,)), _sequence()[:250]
    reset = np.zeros(500, np.bool_)
    reset[250] = True
    counts, _ = recurrent_kmer_memory(new_tables(settings), np.concatenate([bases, bases]), reset=reset)
    assert counts[250:263].sum() == 0
    assert (counts[263:, 0].argmax(1) == bases[13:]).all()


def test_no_prediction_depends_on_what_follows() -> None:
    settings, bases = _settings(tolerant_orders=(16,)), _sequence()
    changed = bases.copy()
    changed[400:] = 3 - changed[400:] % 4
    first, second = (recurrent_kmer_memory(new_tables(settings), version)[0] for version in (bases, changed))
    np.testing.assert_array_equal(first[:401], second[:401])
    assert (first[401:] != second[401:]).any()


def test_a_tolerant_context_runs_through_substitutions() -> None:
    rng = np.random.default_rng(0)
    bases = rng.integers(0, 4, 3000).astype(np.uint8)
    diverged = bases.copy()
    diverged[5::14] = (diverged[5::14] + 1) % 4
    settings = KmerSettings((16,), tolerant_orders=(16,), slot_bits=14)
    # The first 20 bases stand unchanged, so that a context of 16 has where to start from.
    counts, _ = recurrent_kmer_memory(new_tables(settings), np.concatenate([bases, bases[:20], diverged[20:]]))
    plain, tolerant = (counts[3020:, column].max(1) > 0 for column in (0, 1))
    assert plain.mean() < 0.01
    assert tolerant.mean() > 0.99
    assert (counts[3020:, 1].argmax(1) == bases[20:]).mean() > 0.99


@pytest.mark.parametrize("order", [13, 16, 20, 24])
def test_the_hash_is_one_to_one(order: int) -> None:
    from genomem.ops.kmer_memory.loops import hash_key

    keys = np.unique(np.random.default_rng(0).integers(0, 1 << 2 * order, 2000))
    hashed = np.array([hash_key.py_func(int(key), order) for key in keys], dtype=object).astype(np.int64)
    assert ((hashed >= 0) & (hashed < 1 << 2 * order)).all()
    np.testing.assert_array_equal(unhash_key(hashed, order), keys)


@pytest.mark.parametrize("layout", ["open", "chained"])
def test_colliding_contexts_never_share_counts(layout: str) -> None:
    settings, bases = _settings(orders=(16,), slot_bits=11, layout=layout), np.random.default_rng(0).integers(0, 4, 300).astype(np.uint8)
    tables = new_tables(settings)
    twice = np.concatenate([bases, bases])
    counts, _ = recurrent_kmer_memory(tables, twice)
    expected, dictionaries = _definition(settings, twice)
    statistics = table_statistics(tables.tables[0])
    assert statistics.collisions > 50
    assert statistics.dropped == 0
    assert statistics.used == statistics.probes.sum() == len(dictionaries[0])
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("layout", ["open", "chained"])
def test_a_full_table_drops_new_contexts_counts_them_and_keeps_the_others_exact(layout: str) -> None:
    settings, bases = _settings(orders=(16,), slot_bits=6, layout=layout), np.random.default_rng(0).integers(0, 4, 2000).astype(np.uint8)
    bases = np.concatenate([bases, bases])
    tables = new_tables(settings)
    counts, _ = recurrent_kmer_memory(tables, bases)
    expected, dictionaries = _definition(settings, bases)
    statistics = table_statistics(tables.tables[0])
    assert statistics.load == 1
    known = {_key(context): values for context, values in dictionaries[0].items()}
    keys, values = table_entries(tables.tables[0])
    np.testing.assert_array_equal(values, [known[key] for key in keys.tolist()])
    assert statistics.dropped == sum(sum(value) for value in known.values()) - values.sum() > 0
    read = counts.any(axis=2)
    assert 0 < read.sum() < expected.any(axis=2).sum()
    np.testing.assert_array_equal(counts[read], expected[read])


@pytest.mark.parametrize("layout", ["open", "chained"])
def test_tables_are_plain_arrays_that_can_be_saved_and_mapped(layout: str, tmp_path: Path) -> None:
    settings, bases = _settings(layout=layout), _sequence()
    tables = new_tables(settings)
    state = write_kmers(tables, bases[:500])
    assert tables.state_bytes == sum(array.nbytes for array in tables.arrays().values())
    for name, array in tables.arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="c") for name in tables.arrays()}
    again = tables_from_arrays(settings, mapped)
    expected, _ = recurrent_kmer_memory(tables, bases[500:], state=state)
    np.testing.assert_array_equal(recurrent_kmer_memory(again, bases[500:], state=state)[0], expected)


def test_arrays_of_other_settings_are_refused() -> None:
    arrays = new_tables(_settings()).arrays()
    with pytest.raises(ValueError, match=r"order_13\.counts is to be uint8 \(16384,\) for these settings and is uint16"):
        tables_from_arrays(_settings(orders=(13, 16), count_bits=8), arrays)
    with pytest.raises(ValueError, match=r"order_14\.counts .* is missing"):
        tables_from_arrays(_settings(orders=(13, 14)), arrays)
    arrays["order_13.tags"].flags.writeable = False
    with pytest.raises(ValueError, match=r"order_13\.tags is read-only"):
        tables_from_arrays(_settings(), arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": ()}, "orders"),
        ({"orders": (3, 2)}, "ascending"),
        ({"orders": (0,)}, "from 1 to 24"),
        ({"orders": (25,)}, "from 1 to 24"),
        ({"tolerant_orders": (4,)}, "tolerant_orders"),
        ({"max_misses": 17}, "max_misses"),
        ({"step_size": 0.9, "forget": 0.1}, "step_size 0.9"),
        ({"forget": -0.1}, "forget -0.1"),
        ({"count_bits": 12}, "count_bits 12"),
        ({"layout": "cuckoo"}, "cuckoo"),
        ({"orders": (24,), "slot_bits": 20}, "slot_bits 20: a table of order 24 takes 21 to 30"),
        ({"orders": (13,), "slot_bits": 27}, "takes 4 to 26"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _settings(**changes)


def test_bases_of_another_shape_or_dtype_are_refused() -> None:
    tables, bases = new_tables(_settings()), _sequence()
    with pytest.raises(ValueError, match="uint8"):
        recurrent_kmer_memory(tables, bases.astype(np.int64))
    with pytest.raises(ValueError, match="uint8"):
        read_kmers(tables, bases[None])
    with pytest.raises(ValueError, match="reset"):
        write_kmers(tables, bases, reset=np.zeros(3, np.bool_))
    with pytest.raises(ValueError, match="recurrent_kmer_memory"):
        parallel_kmer_memory(_settings(tolerant_orders=(13,)), torch.from_numpy(bases))


def test_the_package_is_imported_without_numba() -> None:
    code = "import sys; from genomem.ops.kmer_memory import *; new_tables(KmerSettings((3,))); assert 'llvmlite' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not MIRROR, reason="GENOMEM_MIRROR is not set: no real genomes")
@pytest.mark.parametrize("layout", ["open", "chained"])
def test_a_real_chromosome_equals_the_definition(layout: str) -> None:
    with gzip.open(Path(MIRROR) / "genomes" / "sacCer3" / "sacCer3.fa.gz", "rt", encoding="ascii") as file:
        assert next(file).startswith(">")
        text = "".join(line.strip() for line, _ in zip(file, range(400), strict=False)).upper()
    bases = np.array(["ACGT".find(letter) for letter in text], np.int64).astype(np.uint8)
    settings = KmerSettings(tolerant_orders=(16, 20, 24), slot_bits=21, layout=layout)
    expected, _ = _definition(settings, bases)
    np.testing.assert_array_equal(recurrent_kmer_memory(new_tables(settings), bases)[0], expected)
    found, _ = parallel_kmer_memory(dataclasses.replace(settings, tolerant_orders=()), torch.from_numpy(bases))
    np.testing.assert_array_equal(found, expected[:, :6])
