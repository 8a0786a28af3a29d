"""The model of every pretrained row: stem, blocks of mixer and gated MLP, heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.config import SequenceModel as SequenceModelConfig
from genomem.layers import build_mixer
from genomem.layers.mixer import Mixer, State
from genomem.layers.stem import Stem


class GatedMLP(nn.Module):
    """`out(silu(gate(x)) * value(x))`. Source: SwiGLU, arXiv 2002.05202."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.value_gate = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.value_gate(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """A pre-norm residual block: mixer along the sequence, then MLP along the channels."""

    def __init__(self, dim: int, mixer: Mixer, mlp_hidden: int, dropout: float) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(dim, eps=1e-6)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(dim, eps=1e-6) if mlp_hidden else None
        self.mlp = GatedMLP(dim, mlp_hidden) if mlp_hidden else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.mixer_norm(hidden), state, mask=mask, reset=reset)
        hidden = hidden + self.dropout(mixed)
        if self.mlp is not None and self.mlp_norm is not None:
            hidden = hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        return hidden, state


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
        self._initialise(len(layers))

    def _initialise(self, depth: int) -> None:
        """Scales residual outputs by 1 / sqrt(2 depth), so that depth does not change the scale of the hidden states."""
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("out.weight"):
                with torch.no_grad():
                    parameter.mul_((2 * depth) ** -0.5)

    def forward(
        self, tokens: Tensor, state: Sequence[State] | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Returns hidden states `[B, T, D]` and the state after the last token.

        Args:
            tokens: `[B, T]` int64.
            state: What the last call returned; None is a fresh start.
            mask: `[B, T]` bool, False for padding. A causal model needs none for padding on the right unless the state is used.
            reset: `[B, T]` bool, True at the first token of a packed document.
        """
        first, *rest = [None] * (len(self.blocks) + 1) if state is None else state
        hidden, first = self.stem(tokens, first, mask=mask, reset=reset)
        after: list[State] = [first]
        for block, before in zip(self.blocks, rest, strict=True):
            hidden, layer_state = block(hidden, before, mask, reset)
            after.append(layer_state)
        return self.norm(hidden), after


class LanguageModel(nn.Module):
    """A backbone and a linear head over the vocabulary: logits of the next token."""

    def __init__(self, config: SequenceModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.backbone = Backbone(config, vocab_size)
        self.head = nn.Linear(config.dim, vocab_size)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, state: Sequence[State] | None = None, *, reset: Tensor | None = None) -> tuple[Tensor, list[State]]:
        """Returns logits `[B, T, vocabulary]` of the token after each token, and the state."""
        hidden, after = self.backbone(tokens, state, reset=reset)
        return self.head(hidden), after


class SequenceClassifier(nn.Module):
    """A backbone, pooling over real tokens, batch norm without parameters, and a linear head over the classes.

    Pooled hidden states differ little from one sequence to the next: most of each channel is what all have in common. The batch norm
    takes that away and gives every channel unit variance over the sequences. Without it the head chases the common part, and a motif
    grammar was not learnt on half of the seeds. Source: linear probing of masked autoencoders, arXiv 2111.06377, appendix A.

    Args:
        pooling: ``mean`` of the hidden states, or ``mean_max``: the mean beside the maximum of each channel, which a motif
            that stands once in a sequence moves as much as one that stands everywhere.
        dropout: Before the head.
    """

    def __init__(self, config: SequenceModelConfig, vocab_size: int, num_classes: int, *, pooling: str, dropout: float) -> None:
        super().__init__()
        self.backbone = Backbone(config, vocab_size)
        self.use_max = pooling == "mean_max"
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
        hidden, _ = self.backbone(tokens)
        real = mask[..., None]
        pooled = (hidden * real).sum(1) / real.sum(1)
        if self.use_max:
            pooled = torch.cat([pooled, hidden.masked_fill(~real, float("-inf")).amax(1)], dim=-1)
        return self.head(self.dropout(self.norm(pooled)))
