"""Models that read a sequence from both ends and on both strands.

`flip` reverses the tokens of a sequence, `rc` reverses and complements them, `g` is the backbone. A model's hidden states are the pair
`(g(x), flip(g(rc(x))))`: what the two strands say of each base. The two of `rc(x)` are those of `x` flipped and exchanged, so whatever
treats the pair alike is equivariant: logits of masked bases are reversed and complemented with the sequence, and a class is the same on
both strands, by construction and not by training.

Source: equivariance by sharing weights between the strands, Shrikumar et al., bioRxiv 103663 (2017), and as two passes of one model,
Zhou et al., PMLR 165 (2022); for masked DNA models, Caduceus, arXiv 2403.03234.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genomem.config import SequenceModel as SequenceModelConfig
from genomem.layers import build_mixer
from genomem.layers.mixer import Mixer, State
from genomem.layers.stem import Stem
from genomem.models.block import Block, scale_residual_outputs


class BothDirections(nn.Module):
    """A mixer read from both ends: `mixer(h) + flip(mixer(flip(h * backward)))`.

    The two directions share the mixer. Each channel enters the backward one by a factor of its own: with equal factors the layer would
    treat a sequence and its reversal alike, and no stack of such layers could tell left from right. The factors start at random, so
    that the directions differ from the first step on.

    The mixer need not be causal inside its segments (`titans_mac` with `full_segments`): what lies between them still runs from the end at
    which a direction begins. Segments are counted from that end too, so that a token's segments in the two directions need not agree.

    Source: BiMamba of Caduceus, arXiv 2403.03234, which shares the projections and gives each direction a convolution and a state
    space model of its own.
    """

    def __init__(self, mixer: Mixer, dim: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.backward_scale = _directional_scale(dim)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Mixes `[B, T, D]` along T; the state is None.

        Args:
            mask: `[B, T]` bool, False for padding anywhere.

        Raises:
            ValueError: A state or a reset is given; the backward direction would need the tokens that are still to come.
        """
        if state is not None or reset is not None:
            raise ValueError("a bidirectional model reads whole sequences: it takes neither a state nor resets")
        both = torch.cat([hidden, (hidden * self.backward_scale).flip(1)])
        mixed, _ = self.mixer(both, mask=_both_ways(mask))
        forward, backward = mixed.chunk(2)
        return forward + backward.flip(1), None


class BidirectionalBackbone(nn.Module):
    """Tokens `[B, T]` to hidden states `[B, T, D]`, each of which depends on every token.

    Args:
        config: Widths and layers.
        vocab_size: Rows of the embedding.
        complement: Token id -> id of its complement on the other strand, `vocab_size` of them; tokens that are no base map to themselves.
    """

    complement: Tensor

    def __init__(self, config: SequenceModelConfig, vocab_size: int, complement: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("complement", _involution(complement, vocab_size), persistent=False)
        self.stem = Stem(vocab_size, config.dim, config.stem_kernel)
        self.stem_backward_scale = _directional_scale(config.dim) if config.stem_kernel > 1 else None
        layers = config.layers * config.repeat
        hidden = round(config.dim * config.mlp_ratio)
        mixers = (build_mixer(layer.mixer, config.dim, **layer.model_dump(exclude={"mixer"})) for layer in layers)
        self.blocks = nn.ModuleList(Block(config.dim, BothDirections(mixer, config.dim), hidden, config.dropout) for mixer in mixers)
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        # The mixer of a block adds two terms, its MLP one.
        scale_residual_outputs(self.blocks, 3 * len(layers))

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns `g(x)`, `[B, T, D]`.

        Args:
            tokens: `[B, T]` int64.
            mask: `[B, T]` bool, False for padding anywhere.
        """
        hidden = self._embed(tokens, mask)
        for block in self.blocks:
            hidden, _ = block(hidden, None, mask, None)
        return self.norm(hidden)

    def both_strands(self, tokens: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns `g(x)` and `flip(g(rc(x)))`, each `[B, T, D]`; arguments as in `forward`."""
        hidden = self(torch.cat([tokens, self.complement[tokens].flip(1)]), mask=_both_ways(mask))
        strand, other = hidden.chunk(2)
        return strand, other.flip(1)

    def _embed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the embedding once, plus motifs that end at a token and motifs that begin there."""
        if self.stem_backward_scale is None:
            return self.stem(tokens, mask=mask)[0]
        both, _ = self.stem(torch.cat([tokens, tokens.flip(1)]), mask=_both_ways(mask))
        forward, backward = both.chunk(2)
        return forward + self.stem_backward_scale * (backward.flip(1) - self.stem.embedding(tokens))


class MaskedLanguageModel(nn.Module):
    """A bidirectional backbone and a linear head over the vocabulary: logits of the base that stands at each token.

    With `P` the exchange of complementary tokens in the vocabulary, the logits are `head(g(x)) + P head(flip(g(rc(x))))`; those of
    `rc(x)` are therefore the logits of `x`, reversed and exchanged by `P`.
    """

    def __init__(self, config: SequenceModelConfig, vocab_size: int, complement: Sequence[int]) -> None:
        super().__init__()
        self.backbone = BidirectionalBackbone(config, vocab_size, complement)
        self.head = nn.Linear(config.dim, vocab_size)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns logits `[B, T, vocabulary]`.

        Args:
            tokens: `[B, T]` int64, masked where a base is to be predicted.
            mask: `[B, T]` bool, False for padding anywhere.
        """
        strand, other = self.backbone.both_strands(tokens, mask=mask)
        return self.head(strand) + self.head(other)[..., self.backbone.complement]


def _both_ways(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else torch.cat([mask, mask.flip(1)])


def _directional_scale(dim: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(dim).uniform_(0.5, 1.5))


def _involution(complement: Sequence[int], vocab_size: int) -> Tensor:
    table = torch.tensor(list(complement))
    if len(table) != vocab_size or not torch.equal(table[table], torch.arange(vocab_size)):
        raise ValueError(f"complement: must map {vocab_size} tokens onto themselves so that twice is the identity, is {list(complement)}")
    return table
