"""The model of every pretrained row: stem, blocks of mixer and gated MLP, heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genomem.config import KmerMemory as KmerMemoryConfig
from genomem.config import SequenceModel as SequenceModelConfig
from genomem.layers import build_mixer
from genomem.layers.kmer_memory import KmerMemory
from genomem.layers.mixer import State
from genomem.layers.stem import Stem
from genomem.models.bidirectional import BidirectionalBackbone
from genomem.models.block import Block, scale_residual_outputs
from genomem.ops.kmer_memory import KmerSettings


class Backbone(nn.Module):
    """Tokens `[B, T]` to hidden states `[B, T, D]`, causally, with the state of every layer carried.

    Args:
        config: Widths and layers.
        vocab_size: Rows of the embedding.
    """

    def __init__(self, config: SequenceModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.stem = Stem(vocab_size, config.dim, config.stem_kernel)
        layers = config.layers * config.repeat
        hidden = round(config.dim * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(config.dim, build_mixer(layer.mixer, config.dim, **layer.model_dump(exclude={"mixer"})), hidden, config.dropout)
            for layer in layers
        )
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        scale_residual_outputs(self.blocks, 2 * len(layers))

    def forward(
        self,
        tokens: Tensor,
        state: Sequence[State] | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, list[State]]:
        """Returns hidden states `[B, T, D]` and the state after the last token.

        Args:
            tokens: `[B, T]` int64.
            state: What the last call returned; None is a fresh start.
            mask: `[B, T]` bool, False for padding. A causal model needs none for padding on the right unless the state is used.
            reset: `[B, T]` bool, True at the first token of a packed document.
            features: `[B, T, D]`, added to the embedding.
        """
        first, *rest = [None] * (len(self.blocks) + 1) if state is None else state
        hidden, first = self.stem(tokens, first, mask=mask, reset=reset)
        hidden = hidden if features is None else hidden + features
        after: list[State] = [first]
        for block, before in zip(self.blocks, rest, strict=True):
            hidden, layer_state = block(hidden, before, mask, reset)
            after.append(layer_state)
        return self.norm(hidden), after


class LanguageModel(nn.Module):
    """A backbone and a linear head over the vocabulary: logits of the next token, mixed with a k-mer memory where the config has one.

    Args:
        config: Widths, layers and the k-mer memory.
        vocab_size: Rows of the embedding.
        bases: Token ids of A, C, G and T, one after the other; a k-mer memory needs them.
    """

    def __init__(self, config: SequenceModelConfig, vocab_size: int, bases: slice | None = None) -> None:
        super().__init__()
        self.kmer_memory = _kmer_memory(config, bases)
        self.backbone = Backbone(config, vocab_size)
        self.head = nn.Linear(config.dim, vocab_size)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Tensor, state: Sequence[State] | None = None, *, reset: Tensor | None = None, counts: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Returns logits `[B, T, vocabulary]` of the token after each token, and the state.

        Args:
            tokens: `[B, T]` int64.
            state: What the last call returned; with a k-mer memory it is used up, since tables are changed in place.
            reset: `[B, T]` bool, True at the first token of a packed document.
            counts: `[B, T, E, 4]`, what a k-mer memory elsewhere knows of the base after each token; None: the model's own memory
                reads the tokens and is carried as the last part of the state.
        """
        if self.kmer_memory is None:
            hidden, after = self.backbone(tokens, state, reset=reset)
            return self.head(hidden), after
        layers, tables = (None, None) if state is None else (state[:-1], state[-1])
        if counts is None:
            counts, tables = self.kmer_memory(tokens, tables, reset=reset)
        features = None if self.kmer_memory.embed is None else self.kmer_memory.features(counts)
        hidden, after = self.backbone(tokens, layers, reset=reset, features=features)
        return self.kmer_memory.mixed(self.head(hidden), hidden, counts), [*after, tables]


def _kmer_memory(config: SequenceModelConfig, bases: slice | None) -> KmerMemory | None:
    section = config.kmer_memory
    if section is None:
        return None
    if bases is None:
        raise ValueError("bases: a model with a k-mer memory needs the token ids of the four bases")
    settings = kmer_settings(section)
    is_mixed, has_features = section.use != "features", section.use != "output"
    return KmerMemory(
        settings, bases=bases, hidden_width=config.dim, gate_width=section.gate_width, features=has_features, is_mixed=is_mixed
    )


def kmer_settings(section: KmerMemoryConfig) -> KmerSettings:
    """Returns the settings of the tables of a study's `kmer_memory:` entry."""
    return KmerSettings(**section.model_dump(exclude={"start", "use", "gate_width"}))


class SequenceClassifier(nn.Module):
    """A backbone, pooling over real tokens, batch norm without parameters, and a linear head over the classes.

    Pooled hidden states differ little from one sequence to the next: most of each channel is what all have in common. The batch norm
    takes that away and gives every channel unit variance over the sequences. Without it the head chases the common part, and a motif
    grammar was not learnt on half of the seeds. Source: linear probing of masked autoencoders, arXiv 2111.06377, appendix A.

    A bidirectional backbone reads both strands, and what is pooled of each is averaged: a sequence and its reverse complement have the
    same logits.

    Args:
        pooling: ``mean`` of the hidden states, or ``mean_max``: the mean beside the maximum of each channel, which a motif
            that stands once in a sequence moves as much as one that stands everywhere.
        dropout: Before the head.
        complement: Of a `BidirectionalBackbone`, which a bidirectional `config` builds.
        stranded: The strand carries the label, so a bidirectional backbone reads the given strand alone.
    """

    def __init__(
        self,
        config: SequenceModelConfig,
        vocab_size: int,
        num_classes: int,
        *,
        pooling: str,
        dropout: float,
        complement: Sequence[int] = (),
        stranded: bool = False,
    ) -> None:
        super().__init__()
        bidirectional = config.bidirectional
        self.backbone = BidirectionalBackbone(config, vocab_size, complement) if bidirectional else Backbone(config, vocab_size)
        self.use_max, self.stranded = pooling == "mean_max", stranded
        width = config.dim * (1 + self.use_max)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns logits `[B, classes]`; in training, B must be at least 2.

        Args:
            tokens: `[B, T]`, padded on the right; what stands there never reaches a real token.
            mask: `[B, T]` bool, True for real tokens; at least one a row.
        """
        return self.head(self.dropout(self.norm(self._features(tokens, mask))))

    def _features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns what is pooled of each sequence, `[B, width]`."""
        if isinstance(self.backbone, Backbone):
            hidden, _ = self.backbone(tokens)
            return self._pool(hidden, mask)
        if self.stranded:
            return self._pool(self.backbone(tokens, mask=mask), mask)
        strand, other = self.backbone.both_strands(tokens, mask=mask)
        return (self._pool(strand, mask) + self._pool(other, mask)) / 2

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pools `[B, T, D]` over real tokens."""
        real = mask[..., None]
        pooled = (hidden * real).sum(1) / real.sum(1)
        if not self.use_max:
            return pooled
        return torch.cat([pooled, hidden.masked_fill(~real, float("-inf")).amax(1)], dim=-1)
