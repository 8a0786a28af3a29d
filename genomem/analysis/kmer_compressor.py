"""Prequential probabilities of DNA: counts of the k-mers seen so far, mixed by a gate that learns as it reads.

Symbols: E columns of counts; ``C_j`` the counts of column j before a base, ``n_j`` their sum, ``p_j = (C_j + a_j / 4) / (n_j + a_j)``.
A small network turns what the columns know, and the last bases, into weights and a bias, ``p ~ exp(sum_j w_j log p_j + b)``. It predicts
a block of bases as it stands and then takes one gradient step on that block: neither the counts nor the gate learn a base before it is
predicted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.kmer_memory import FACTS, FIRST_STRENGTHS
from genomem.ops.kmer_memory import KmerState, KmerTables, recurrent_kmer_memory
from genomem.ops.kmer_mixture import evidence, mix

NO_BASE = 4
FIRST_WEIGHT = 0.3
"""More than an even share, because columns that agree are surer together than any of them."""

PIECE_BP = 1 << 14
"""Bases whose counts are held at once."""


@dataclass(frozen=True)
class GateSettings:
    """How the columns of counts are mixed.

    Attributes:
        width: Hidden width.
        block_bp: Bases that are predicted before the gate learns them; divides `PIECE_BP`.
        learning_rate: Of Adam, at first; it falls with the root of the number of steps, to a tenth.
        falling_steps: After three times so many it has halved.
        recent_bp: The last bases, which the gate sees as they are.
    """

    width: int = 32
    block_bp: int = 128
    learning_rate: float = 2e-3
    falling_steps: int = 300
    recent_bp: int = 16


class Gate(nn.Module):
    """Weights of E columns and a bias of the four bases, from what the columns know; all weights start near `FIRST_WEIGHT`."""

    def __init__(self, features: int, columns: int, width: int) -> None:
        super().__init__()
        self.columns = columns
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, columns + 4)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()
            self.out.bias[:columns] = FIRST_WEIGHT

    def forward(self, features: Tensor, log_experts: Tensor) -> Tensor:
        """Returns log probabilities ``[T, 4]``, from features ``[T, F]`` and ``log p_j`` ``[T, E, 4]``."""
        weights, bias = self.out(F.gelu(self.hidden(features))).split([self.columns, 4], dim=-1)
        return (mix(log_experts, weights) + bias).log_softmax(-1)


@dataclass(frozen=True)
class Prediction:
    """What was known before each base of a piece.

    Attributes:
        codes: ``[T]`` uint8, the bases: 0 to 3, or more for what is no base.
        counts: ``[T, E, 4]``, float32.
        log_probability: ``[T, 4]``, natural logarithms of the mixture.
    """

    codes: np.ndarray
    counts: Tensor
    log_probability: Tensor


class KmerCompressor:
    """Predicts each base of sequences from all bases before it, and learns it.

    Args:
        tables: Where the counts are kept; changed. They may have learnt other sequences.
        settings: Of the gate.
        seed: Of the gate's first weights.
    """

    def __init__(self, tables: KmerTables, settings: GateSettings | None = None, seed: int = 0) -> None:
        self.tables, self.settings = tables, settings or GateSettings()
        orders = [order for order, _ in tables.settings.columns]
        self._strengths = first_strengths(orders)
        features = len(orders) * FACTS + 4 * self.settings.recent_bp
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gate = Gate(features, len(orders), self.settings.width)
        self._optimizer = torch.optim.Adam(self.gate.parameters(), lr=self.settings.learning_rate, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: max(0.1, (1 + step / self.settings.falling_steps) ** -0.5)
        )
        self.table_seconds = self.gate_seconds = 0.0

    @property
    def state_bytes(self) -> int:
        """Bytes of the tables, and of the gate's weights with Adam's two moments."""
        return self.tables.state_bytes + 3 * sum(weight.nbytes for weight in self.gate.parameters())

    def read(self, codes: np.ndarray) -> Iterator[Prediction]:
        """Yields what was known before each base of a sequence, piece by piece, and learns the pieces.

        Args:
            codes: ``[n]`` uint8, 0 to 3 for A, C, G and T; anything above is not learnt, and no context contains it.
        """
        stream: KmerState | None = None
        recent = np.full(self.settings.recent_bp, NO_BASE, np.uint8)
        for start in range(0, len(codes), PIECE_BP):
            piece = codes[start : start + PIECE_BP]
            began = time.perf_counter()
            found, stream = recurrent_kmer_memory(self.tables, piece, state=stream)
            counts, between = torch.from_numpy(found.astype(np.float32)), time.perf_counter()
            prediction = Prediction(piece, counts, self._mixed(piece, counts, recent))
            self.table_seconds += between - began
            self.gate_seconds += time.perf_counter() - between
            yield prediction
            recent = np.concatenate([recent, piece])[len(piece) :]

    def _mixed(self, piece: np.ndarray, counts: Tensor, recent: np.ndarray) -> Tensor:
        targets = torch.from_numpy(piece).long().clamp_max(NO_BASE)
        experts = log_experts(counts, self._strengths)
        inputs = torch.cat([evidence(counts, experts).flatten(-2), _last_bases(recent, piece)], dim=-1)
        blocks = (part.split(self.settings.block_bp) for part in (inputs, experts, targets))
        return torch.cat([self._predict_and_learn(*block) for block in zip(*blocks, strict=True)])

    def _predict_and_learn(self, features: Tensor, experts: Tensor, targets: Tensor) -> Tensor:
        predicted = self.gate(features, experts)
        if (targets < NO_BASE).any():
            self._optimizer.zero_grad()
            F.nll_loss(predicted, targets, ignore_index=NO_BASE).backward()
            self._optimizer.step()
            self._schedule.step()
        return predicted.detach()


def first_strengths(orders: Sequence[int]) -> Tensor:
    """Returns ``a_j`` of some orders, ``[E]``: those that a `KmerMemory` starts with."""
    at, strengths = zip(*FIRST_STRENGTHS, strict=True)
    return torch.from_numpy(np.exp(np.interp(orders, at, np.log(strengths)))).float()


def log_experts(counts: Tensor, strengths: Tensor) -> Tensor:
    """Returns ``log p_j``, ``[T, E, 4]``: counts ``[T, E, 4]`` pulled towards equal bases by strengths ``a_j``, ``[E]``."""
    return ((counts + strengths[:, None] / 4) / (counts.sum(-1, keepdim=True) + strengths[:, None])).log()


def _last_bases(recent: np.ndarray, piece: np.ndarray) -> Tensor:
    """Returns the bases before each base of a piece, ``[T, 4 * recent]``, each one-hot, or zeros for what is no base."""
    if not len(recent):
        return torch.zeros(len(piece), 0)
    codes = np.minimum(np.concatenate([recent, piece])[:-1], NO_BASE)
    windows = np.lib.stride_tricks.sliding_window_view(codes, len(recent))
    return torch.from_numpy(np.eye(NO_BASE + 1, NO_BASE, dtype=np.float32)[windows].reshape(len(piece), -1))
