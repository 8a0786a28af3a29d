"""K-mers as integers against k-mers as strings."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genomem.data.tokenizer import UNKNOWN, base_codes
from genomem.evaluation import kmers as module
from genomem.evaluation.kmers import canonical, count_next, join, kmers, known_kmers, reverse_complement

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def _ascii(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _number(text: str) -> int:
    return sum("ACGT".index(base) << 2 * place for place, base in enumerate(reversed(text)))


def _other_strand(text: str) -> str:
    return text.translate(COMPLEMENT)[::-1]


def _random(length: int, seed: int = 0, letters: str = "ACGT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


def test_codes_know_both_cases_and_nothing_else() -> None:
    assert base_codes(_ascii("ACGTacgtNn-R")).tolist() == [0, 1, 2, 3, 0, 1, 2, 3] + [UNKNOWN] * 4
    assert join([_ascii("AC"), _ascii("g")]).tolist() == [0, 1, UNKNOWN, 2, UNKNOWN]
    assert join([]).tolist() == []


@given(st.text(alphabet="ACGTN", max_size=80), st.integers(0, 32))
def test_kmers_are_the_words_of_the_sequence(text: str, k: int) -> None:
    found, known = kmers(base_codes(_ascii(text)), k)
    words = [text[i : i + k] for i in range(len(text) - k + 1)]
    assert known.tolist() == ["N" not in word for word in words]
    assert found[known].tolist() == [_number(word) for word in words if "N" not in word]


@pytest.mark.parametrize("k", [1, 2, 7, 16, 31, 32])
def test_reverse_complement_is_the_other_strand(k: int) -> None:
    words = [_random(k, seed) for seed in range(20)]
    found = np.array([_number(word) for word in words], dtype=np.uint64)
    assert reverse_complement(found, k).tolist() == [_number(_other_strand(word)) for word in words]
    assert canonical(found, k).tolist() == [_number(min(word, _other_strand(word))) for word in words]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = base_codes(_ascii(_random(300, letters="ACGTN")))
    whole = np.concatenate(list(known_kmers(codes, 5)))
    monkeypatch.setattr(module, "_BLOCK", 16)
    np.testing.assert_array_equal(np.concatenate(list(known_kmers(codes, 5))), whole)


def _counted(sequences: list[str], order: int) -> Counter[str]:
    """Counts every (order + 1)-mer of both strands with a dictionary."""
    strands = [*sequences, *map(_other_strand, sequences)]
    words = (text[i : i + order + 1] for text in strands for i in range(len(text) - order))
    return Counter(word for word in words if "N" not in word)


WAYS = ("as chosen", "sorted", "sorted in ranges")


# A range is a prefix of three bases here, which contexts of order 0 and 1 do not have.
@pytest.mark.parametrize(("order", "way"), [(k, way) for k in (0, 1, 3, 11, 12, 24, 31) for way in (WAYS if k >= 3 else WAYS[:2])])
def test_next_base_counts_of_both_strands(order: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way != "as chosen":
        monkeypatch.setattr(module, "_TABLE_ORDER", -1)
    if way == "sorted in ranges":
        monkeypatch.setattr(module, "_SORTED_KMERS", 1 << 7)
        monkeypatch.setattr(module, "_BLOCK", 64)
    repeat = _random(90, seed=1)
    sequences = [_random(400, seed=2) + repeat + "NN" + _other_strand(repeat), repeat + _random(50, seed=3), "ACG"]
    expected = _counted(sequences, order)
    asked = sorted({word[:-1] for word in expected} | {_random(order, seed) for seed in range(5)})
    queries = np.array([_number(context) for context in asked], dtype=np.uint64)
    shuffled = np.random.default_rng(4).permutation(len(queries))
    counts = count_next(join(map(_ascii, sequences)), queries[shuffled], order)
    assert counts.next_base.tolist() == [[expected[asked[i] + base] for base in "ACGT"] for i in shuffled]
    assert counts.contexts == len({word[:-1] for word in expected})


def test_counts_of_nothing() -> None:
    counts = count_next(np.empty(0, dtype=np.uint8), np.zeros(2, dtype=np.uint64), 3)
    assert counts.next_base.tolist() == [[0] * 4] * 2
    assert counts.contexts == 0
