"""What a sequence costs: the mixture of all columns of counts, the back-off chain, and each order alone, in bits per base."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from genomem.analysis.kmer_compressor import NO_BASE, KmerCompressor, Prediction, first_strengths
from genomem.evaluation.markov_models import PSEUDOCOUNTS, SURE_PROBABILITY
from genomem.ops.kmer_memory.tables import ARRAYS
from genomem.ops.kmer_mixture import back_off

OURS, BACK_OFF = "k-mer memory, mixed", "back-off"
CLASSES = ("all", "sure", "unsure")


class Scores:
    """Adds up what the mixture, the back-off chain and each order alone pay.

    A base counts as sure where the highest order has seen its context and gives one base `SURE_PROBABILITY` or more of what followed.
    Seconds are those of the tables that a row needs, as their share of all columns, and of its own arithmetic.
    """

    def __init__(self, compressor: KmerCompressor) -> None:
        self._compressor, settings = compressor, compressor.tables.settings
        self.orders, self.top = settings.orders, settings.orders[-1]
        self.positions = dict.fromkeys(CLASSES, 0)
        self._chain = f"{BACK_OFF}, orders {self.orders[0]} to {self.top}"
        names = (OURS, self._chain, *(f"order {order}" for order in self.orders))
        self._bits, self._seconds = ({name: np.zeros(size) for name in names} for size in (len(CLASSES), 1))
        # A pseudocount of one is the first choice, until something has been paid.
        self._paid = np.tile(np.abs(np.log10(PSEUDOCOUNTS)), (len(self.orders), 1))

    def add(self, prediction: Prediction) -> None:
        """Adds a piece."""
        known = torch.from_numpy(prediction.codes < NO_BASE)
        targets = torch.from_numpy(prediction.codes).long()[known]
        counts = prediction.counts[known, : len(self.orders)]
        highest, seen = counts[:, -1].amax(-1), counts[:, -1].sum(-1)
        sure = ((seen > 0) & (highest >= SURE_PROBABILITY * seen)).numpy()
        masks = np.stack([np.ones_like(sure), sure, ~sure]).astype(np.float64)
        for name, mask in zip(CLASSES, masks, strict=True):
            self.positions[name] += int(mask.sum())
        self._bits[OURS] += masks @ _bits(prediction.log_probability[known], targets)
        began = time.perf_counter()
        uniform = torch.full((len(targets), 4), -math.log(4))
        self._bits[self._chain] += masks @ _bits(back_off(counts, first_strengths(self.orders), uniform)[:, -1], targets)
        self._seconds[self._chain] += time.perf_counter() - began
        for column, order in enumerate(self.orders):
            began = time.perf_counter()
            self._bits[f"order {order}"] += masks @ self._alone(column, counts[:, column].numpy(), targets.numpy())
            self._seconds[f"order {order}"] += time.perf_counter() - began

    def _alone(self, column: int, counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns bits of one order, ``(C + a) / (n + 4 a)``, with the `a` of `PSEUDOCOUNTS` that has paid least before this piece."""
        hits, a = counts[np.arange(len(targets)), targets], PSEUDOCOUNTS[:, None]
        bits = np.log2((counts.sum(-1) + 4 * a) / (hits + a))
        best = int(self._paid[column].argmin())
        self._paid[column] += bits.sum(1)
        return bits[best]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each, bits per base by class of position."""
        compressor, columns = self._compressor, len(self._compressor.tables.settings.columns)
        sizes = [sum(getattr(table, name).nbytes for name in ARRAYS) for table in compressor.tables.tables]
        share = compressor.table_seconds / columns
        held = dict(zip(self._bits, (compressor.state_bytes, sum(sizes), *sizes), strict=True))
        used = dict(zip(self._bits, (columns, len(sizes), *(1 for _ in sizes)), strict=True))
        rows = []
        for name, bits in self._bits.items():
            per_base = {f"bits_{key}": self._mean(total, key) for key, total in zip(CLASSES, bits, strict=True)}
            seconds = used[name] * share + float(self._seconds[name][0]) + (compressor.gate_seconds if name == OURS else 0)
            rows.append({"row": name, **per_base, "seconds": seconds, "state_bytes": held[name], "note": ""})
        return rows

    def _mean(self, bits: float, key: str) -> float | None:
        return float(bits) / self.positions[key] if self.positions[key] else None


def _bits(log_probability: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    return F.nll_loss(log_probability, targets, reduction="none").double().numpy() / math.log(2)
