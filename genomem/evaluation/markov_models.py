"""Plain and back-off Markov models of DNA.

A plain model of order k gives the next base x after the context c of k bases the probability
p(x | c) = (C(c, x) + a) / (n(c) + 4 a), with C the counts in training, n(c) their sum and a one pseudocount.
A back-off chain starts from the order-0 distribution p_0 and refines it order by order:
p_j(x) = (C_j(x) + a_j p_(j-1)(x)) / (n_j + a_j); a context that was never seen (n_j = 0) changes nothing.

Counts are of both strands of the training sequence. The smoothing is tuned on other sequence, a_j after a_(j-1).
Where a context reaches before the start or over an unknown base, a chain stays at the longest order that is
known, and a plain model gives the order-0 distribution.

Source: a_j is the strength of the prior on the next lower order in MacKay and Peto, A hierarchical Dirichlet
language model (1995); here each order has one strength, found by search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from genomem.evaluation.kmers import Counts, count_next, kmers
from genomem.progress import track

SURE_PROBABILITY = 0.9

CHAIN_ORDERS = (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28)
PSEUDOCOUNTS = 10.0 ** np.arange(-3, 3.1, 0.5)
STRENGTHS = 10.0 ** np.arange(-1.5, 4.6, 0.25)

_SMALLEST = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Positions:
    """Bases to predict: places in an array of base codes, each with a known base and none at index 0."""

    codes: np.ndarray
    places: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        return self.codes[self.places]

    def contexts(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the `order` bases before each place, uint64 [n], and whether they are all known."""
        found, known = kmers(self.codes, order)
        start = self.places - order
        inside = start >= 0
        start = np.maximum(start, 0)
        if not len(found):
            return np.zeros(len(start), dtype=np.uint64), np.zeros(len(start), dtype=bool)
        start = np.minimum(start, len(found) - 1)
        return found[start], known[start] & inside


@dataclass(frozen=True)
class MarkovModel:
    """A fitted model and what it pays, in bits, for each position of the tuning and of the test sequence.

    Attributes:
        kind: "plain" or "backoff".
        contexts: Distinct contexts that its tables hold, over all the orders of a chain.
        smoothing: a, or a_j by order.
        tuning_bits, bits: float32, one a position.
    """

    order: int
    kind: str
    contexts: int
    smoothing: dict[int, float]
    tuning_bits: np.ndarray = field(repr=False)
    bits: np.ndarray = field(repr=False)

    @property
    def name(self) -> str:
        return f"order {self.order}" + (" back-off" if self.kind == "backoff" else "")


def chain_orders(backoff_orders: Sequence[int]) -> list[int]:
    """Returns the orders of the one chain that all `backoff_orders` lie on, rising from 1."""
    top = max(backoff_orders, default=0)
    return sorted({order for order in CHAIN_ORDERS if order < top} | set(backoff_orders))


def fit_markov(
    training: np.ndarray,
    tuning: Positions,
    test: Positions,
    plain_orders: Sequence[int],
    backoff_orders: Sequence[int],
    title: str = "markov",
) -> tuple[list[MarkovModel], np.ndarray]:
    """Fits every model on `training`, tunes its smoothing on `tuning`, and scores `test`.

    Returns:
        The models, plain ones first, each kind in rising order; and where the highest back-off model gives some
        base `SURE_PROBABILITY` or more, boolean, one a test position (nowhere, when there is no back-off model).
    """
    both = (tuning, test)
    counts, _ = _counts(training, both, 0)
    chain = [count.next_base.astype(np.float32) + 1 for count in counts]
    for p in chain:
        p /= p.sum(axis=1, keepdims=True)
    order_zero = [_of_target(p, positions) for p, positions in zip(chain, both, strict=True)]
    plain, backoff, links = [], [], chain_orders(backoff_orders)
    contexts, strengths = counts[0].contexts, {}
    for order in track(sorted({*plain_orders, *links}), title, unit="order"):
        counts, known = _counts(training, both, order)
        if order in plain_orders:
            plain.append(_plain(order, counts, known, both, order_zero))
        if order in links:
            strengths[order] = _tune_strength(counts[0].next_base, chain[0], tuning)
            contexts += counts[0].contexts
            for p, count in zip(chain, counts, strict=True):
                _refine(p, count.next_base, strengths[order])
        if order in backoff_orders:
            bits = [_bits(_of_target(p, positions)) for p, positions in zip(chain, both, strict=True)]
            backoff.append(MarkovModel(order, "backoff", contexts, dict(strengths), *bits))
    sure = chain[1].max(axis=1) >= SURE_PROBABILITY if backoff else np.zeros(len(test.places), dtype=bool)
    return plain + backoff, sure


def _counts(training: np.ndarray, both: tuple[Positions, Positions], order: int) -> tuple[list[Counts], list[np.ndarray]]:
    """Returns counts and known contexts of the tuning and the test positions, in one walk through training."""
    queries, known = zip(*(positions.contexts(order) for positions in both), strict=True)
    found = count_next(training, np.concatenate(queries), order)
    rows = len(queries[0])
    counts = [Counts(part, found.contexts) for part in (found.next_base[:rows], found.next_base[rows:])]
    for count, is_known in zip(counts, known, strict=True):
        count.next_base[~is_known] = 0
    return counts, list(known)


def _of_target(table: np.ndarray, positions: Positions) -> np.ndarray:
    return table[np.arange(len(table)), positions.targets]


def _bits(probability: np.ndarray) -> np.ndarray:
    # A long chain may shrink an unseen base below what float32 holds.
    return -np.log2(np.maximum(probability, _SMALLEST), dtype=np.float32)


def _plain(
    order: int, counts: list[Counts], known: list[np.ndarray], both: tuple[Positions, Positions], order_zero: list[np.ndarray]
) -> MarkovModel:
    hits = [_of_target(count.next_base, positions) for count, positions in zip(counts, both, strict=True)]
    seen = [count.next_base.sum(axis=1) for count in counts]

    def bits(part: int, pseudocount: float) -> np.ndarray:
        smoothed = (hits[part] + pseudocount) / (seen[part] + 4 * pseudocount)
        return _bits(np.where(known[part], smoothed, order_zero[part]))

    best = min(PSEUDOCOUNTS, key=lambda a: bits(0, a).mean(dtype=np.float64))
    return MarkovModel(order, "plain", counts[0].contexts, {order: float(best)}, bits(0, best), bits(1, best))


def _tune_strength(counts: np.ndarray, lower: np.ndarray, tuning: Positions) -> float:
    """Returns the a_j that codes the tuning positions in the fewest bits; only positions with counts can tell."""
    seen = counts.sum(axis=1)
    rows = np.flatnonzero(seen)
    if not len(rows):
        return 1.0
    hits, prior, seen = _of_target(counts, tuning)[rows], _of_target(lower, tuning)[rows], seen[rows]
    return float(min(STRENGTHS, key=lambda a: _bits((hits + a * prior) / (seen + a)).mean(dtype=np.float64)))


def _refine(lower: np.ndarray, counts: np.ndarray, strength: float) -> None:
    """Turns p_(j-1) [n, 4] into p_j in place."""
    lower *= np.float32(strength)
    lower += counts
    lower /= (counts.sum(axis=1, dtype=np.float32) + np.float32(strength))[:, None]
