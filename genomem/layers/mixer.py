"""The one interface of everything that mixes hidden states along the sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

# Nested tuples of tensors whose first axis is the batch. None is a fresh start.
State = Any


class Mixer(nn.Module, ABC):
    """Mixes `[B, T, D]` along T, causally, with a state that carries over any split of the sequence.

    What holds for every mixer, and what `tests/layers/test_mixer_contract.py` checks:
    outputs before token j do not depend on token j; a sequence in parts with the state carried equals
    the whole; padding, anywhere, changes nothing; a reset equals a fresh start; `state_bytes` is what is held.
    """

    @abstractmethod
    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes along the sequence.

        Args:
            hidden: `[B, T, D]`.
            state: What the last call returned for the tokens before these; None is a fresh start.
            mask: `[B, T]` bool, False for padding.
            reset: `[B, T]` bool, True at the first token of a packed document.

        Returns:
            `[B, T, D]`, zero at padding, and the state after the last real token.
        """

    @abstractmethod
    def state_bytes(self, tokens: int) -> int:
        """Returns the bytes of state that one sequence holds after `tokens` tokens, in the model's own precision."""


def held_bytes(state: State) -> int:
    """Returns the bytes of all tensors in a state, the whole batch together."""
    if state is None:
        return 0
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(held_bytes(part) for part in state)
