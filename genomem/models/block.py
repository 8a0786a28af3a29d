"""A layer of a model: a mixer along the sequence, then a gated MLP along the channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.mixer import State


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
    """A pre-norm residual block: mixer along the sequence, then MLP along the channels.

    Args:
        mixer: A `Mixer`, or a module that is called like one.
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp_hidden: int, dropout: float) -> None:
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


def scale_residual_outputs(blocks: nn.Module, outputs: int) -> None:
    """Scales the output matrices of all blocks by 1 / sqrt(outputs), so that depth does not change the scale of the hidden states.

    Args:
        outputs: Terms that all blocks together add to the hidden states.
    """
    for name, parameter in blocks.named_parameters():
        if name.endswith("out.weight"):
            with torch.no_grad():
                parameter.mul_(outputs**-0.5)
