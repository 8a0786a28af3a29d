"""The k-mer memory beside a network: what has followed each context of k bases so far, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.ops.kmer_memory import KmerSettings, KmerState, KmerTables, new_tables, read_kmers, recurrent_kmer_memory, table_bytes
from genomem.ops.kmer_mixture import back_off, evidence, mix

# Smoothing of an order at the start of training: (order, strength); those between are interpolated in the logarithm.
FIRST_STRENGTHS = ((11, 100.0), (12, 30.0), (14, 10.0), (16, 2.0), (20, 0.5), (24, 0.3))
FACTS = 3
NO_BASE = 4


class RowState(NamedTuple):
    """The memory of one row of a batch: its tables, which the next call changes in place, and where its stream stands."""

    tables: KmerTables
    stream: KmerState | None


class Gate(nn.Module):
    """How far to trust the network and each column of counts at a token, from what they have seen, how sure they are, and what is read.

    It starts halfway between the network and the highest order, which backs off to all below it.

    Args:
        hidden_width: D of the network's hidden states.
        columns: E.
        highest: The column of the highest order, counted from 1.
        width: Hidden width.
    """

    def __init__(self, hidden_width: int, columns: int, highest: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_width, width)
        self.evidence = nn.Linear(FACTS * (columns + 1), width, bias=False)
        self.out = nn.Linear(width, columns + 1)
        nn.init.normal_(self.out.weight, std=0.02)
        with torch.no_grad():
            self.out.bias.zero_()
            self.out.bias[0] = self.out.bias[highest] = 0.5

    def forward(self, hidden: Tensor, facts: Tensor) -> Tensor:
        """Returns the weights ``[B, T, 1 + E]``, from hidden states ``[B, T, D]`` and evidence ``[B, T, (1 + E) FACTS]``."""
        return self.out(F.gelu(self.hidden(hidden) + self.evidence(facts)))


class KmerMemory(nn.Module):
    """A Titans memory whose keys are one-hot: the counts of what followed each k-mer, as experts and as features.

    With keys of this kind the delta rule is an update of one row of a table, so that a memory holds as many associations as it has rows,
    where a dense memory of key width K holds about K. It reads bases and not hidden states, and has no weights of its own; smoothing and
    the gate are learned. Every count comes from bases before the one that is predicted.

    Args:
        settings: Orders, strands, tables.
        bases: Token ids of A, C, G and T, one after the other.
        hidden_width: Width D of the network's hidden states, which the gate sees too.
        gate_width: Hidden width of the gate.
        features: Give the network the experts as input features.
        is_mixed: Mix the experts with the network's prediction.

    Source: Titans, arXiv 2501.00663, section 3.1, with sparse keys; gated experts as in GeCo3 (GigaScience 2020) and cmix.
    """

    def __init__(
        self, settings: KmerSettings, *, bases: slice, hidden_width: int, gate_width: int, features: bool = False, is_mixed: bool = True
    ) -> None:
        super().__init__()
        self.settings, self.bases = settings, bases
        columns = len(settings.columns)
        self.log_strength = nn.Parameter(torch.tensor([_first_log_strength(order) for order, _ in settings.columns]))
        self.gate = Gate(hidden_width, columns, len(settings.orders), gate_width) if is_mixed else None
        self.embed = nn.Linear((FACTS + 4) * columns, hidden_width) if features else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.02)
            nn.init.zeros_(self.embed.bias)

    def forward(
        self, tokens: Tensor, state: Sequence[RowState] | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, list[RowState]]:
        """Reads tokens and learns them.

        Args:
            tokens: ``[B, T]`` int64. What is no base breaks the contexts and is not learnt.
            state: What the last call returned, which is used up: its tables are changed. None: empty tables.
            reset: ``[B, T]`` bool, True at the first token of a document: no context reaches over it, but what was learnt stays.

        Returns:
            The counts of the base after each token, ``[B, T, E, 4]``, and the state. Those after the last token of a document mean nothing:
            the next token starts anew, which a call that ends there cannot know.
        """
        rows = [RowState(new_tables(self.settings), None) for _ in range(len(tokens))] if state is None else state
        codes = (tokens - self.bases.start).cpu()
        codes = torch.where((codes >= 0) & (codes < NO_BASE), codes, NO_BASE).to(torch.uint8).numpy()
        starts = [None] * len(tokens) if reset is None else list(reset.cpu().numpy())
        results = [self._read(row, *parts) for row, *parts in zip(rows, codes, starts, strict=True)]
        counts = torch.from_numpy(np.stack([found for found, _ in results])).to(tokens.device)
        return counts, [row for _, row in results]

    def _read(self, row: RowState, codes: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, RowState]:
        counts, stream = recurrent_kmer_memory(row.tables, codes, reset=starts, state=row.stream)
        following, _ = read_kmers(row.tables, np.array([NO_BASE], np.uint8), state=stream)
        return np.concatenate([counts, following])[1:], RowState(row.tables, stream)

    def features(self, counts: Tensor) -> Tensor:
        """Returns what the experts know as hidden states, ``[B, T, D]``, of the counts ``[B, T, E, 4]``; they back off to equal bases."""
        if self.embed is None:
            raise ValueError("this memory was built without features")
        uniform = self.log_strength.new_full((*counts.shape[:-2], 4), -math.log(4))
        with torch.autocast(counts.device.type, enabled=False):
            experts = back_off(counts, self.log_strength.exp(), uniform)
        return self.embed(torch.cat([experts, evidence(counts, experts)], dim=-1).flatten(-2))

    def mixed(self, logits: Tensor, hidden: Tensor, counts: Tensor) -> Tensor:
        """Returns the network's logits ``[B, T, vocabulary]`` with those of the bases mixed with the memory, if it is to be mixed.

        What the network gives to all bases together stays what it was. The mixture is float32 at least, and so is what comes back:
        weighted sums of logarithms need more than bfloat16.

        Args:
            logits: Of the network.
            hidden: ``[B, T, D]``, its hidden states.
            counts: ``[B, T, E, 4]``, of the base after each token.
        """
        if self.gate is None:
            return logits
        precision = torch.promote_types(logits.dtype, torch.float32)
        with torch.autocast(logits.device.type, enabled=False):
            logits, hidden, counts = logits.to(precision), hidden.to(precision), counts.to(precision)
            own = logits[..., self.bases]
            network = own.log_softmax(-1)
            experts = torch.cat([network[..., None, :], back_off(counts, self.log_strength.exp(), network)], dim=-2)
            # The network has counted nothing.
            weights = self.gate(hidden, evidence(F.pad(counts, (0, 0, 1, 0)), experts).flatten(-2))
            bases = mix(experts, weights) + own.logsumexp(-1, keepdim=True)
        return torch.cat([logits[..., : self.bases.start], bases, logits[..., self.bases.stop :]], dim=-1)

    def state_bytes(self) -> int:
        """Returns the bytes of one row's tables."""
        return table_bytes(self.settings)


def _first_log_strength(order: int) -> float:
    orders, strengths = zip(*FIRST_STRENGTHS, strict=True)
    return float(np.interp(order, orders, np.log(strengths)))
