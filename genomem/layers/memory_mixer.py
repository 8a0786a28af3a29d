"""What the mixers around one memory a head share: projection, short convolution, the call of the memory, output projection."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.convolution import ShortConvolution
from genomem.layers.mixer import Mixer, State
from genomem.ops.attention import rotate
from genomem.ops.linear_memory import chunked_linear_memory


class Tokens(NamedTuple):
    """What a memory is given of each token, under the names of `genomem.ops.linear_memory`."""

    query: Tensor  # [B, T, H, K]
    key: Tensor  # [B, T, H, K]
    value: Tensor  # [B, T, H, V]
    step_size: Tensor  # [B, T, H]
    forget: Tensor | None = None  # [B, T, H], or [B, T, H, K]


class MemoryMixer(Mixer):
    """Projects the hidden states, convolves them, writes and reads a memory a head at every token, and projects what was read.

    A subclass makes the tokens of the memory (`_tokens`), with its own gates, and says what becomes of a read (`_finish`), with its own
    norm. Its state is the history of the convolution, the memory, and with rotary positions the number of tokens so far.

    Args:
        dim: Model width D.
        heads: H.
        memory: K and V of the memory of a head.
        channels: How many channels the hidden states are projected to, all of them convolved.
        inner: Channels of a finished read.
        conv_kernel: Taps of the convolution; 1 turns it off.
        chunk_size: Compute chunk of the memory in tokens; it changes speed and rounding, nothing else.
    """

    # The rule of the memory, as in `chunked_linear_memory`.
    objective: ClassVar[str] = "dot"
    decay_first: ClassVar[bool] = False
    rope_base: ClassVar[float | None] = None

    def __init__(
        self, dim: int, *, heads: int, memory: tuple[int, int], channels: int, inner: int, conv_kernel: int = 1, chunk_size: int = 1
    ) -> None:
        super().__init__()
        self.heads, self.memory_shape, self.chunk_size = heads, memory, chunk_size
        self.project = nn.Linear(dim, channels, bias=False)
        self.convolution = ShortConvolution(channels, conv_kernel) if conv_kernel > 1 else None
        self.out = nn.Linear(inner, dim, bias=False)

    @abstractmethod
    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        """Returns what the memory is given, from the hidden states and from what was projected and convolved, `[B, T, channels]`."""

    @abstractmethod
    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Returns `[B, T, inner]` from what each token read, `[B, T, H, V]`."""

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        history, memory, count = (None, None, None) if state is None else state
        projected = self.project(hidden)
        if self.convolution is not None:
            projected, history = self.convolution(projected, history, mask=mask, reset=reset)
        tokens = self._tokens(hidden, projected)
        if self.rope_base is not None:
            tokens, count = _turned(tokens, self.rope_base, count, mask)
        read, memory = self._remember(tokens, memory, mask, reset)
        mixed = self.out(self._finish(read, tokens, hidden).to(self.out.weight.dtype))
        return (mixed if mask is None else mixed * mask[..., None]), (history, memory, count)

    def _remember(self, tokens: Tokens, memory: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        rule: dict[str, Any] = {"objective": self.objective, "decay_first": self.decay_first}
        return chunked_linear_memory(**tokens._asdict(), state=memory, mask=mask, reset=reset, chunk_size=self.chunk_size, **rule)

    def _memory_bytes(self, size: int) -> int:
        return self.heads * math.prod(self.memory_shape) * size

    def state_bytes(self, tokens: int) -> int:
        size = self.out.weight.element_size()
        convolution = 0 if self.convolution is None else self.convolution.span * self.project.out_features * size
        count = 0 if self.rope_base is None else torch.int64.itemsize
        return convolution + self._memory_bytes(max(size, torch.float32.itemsize)) + count


def _turned(tokens: Tokens, base: float, count: Tensor | None, mask: Tensor | None) -> tuple[Tokens, Tensor]:
    """Turns query and key by their positions, which go on over document borders: only distances are seen."""
    batch, length = tokens.query.shape[:2]
    real = torch.ones(batch, length, dtype=torch.int64, device=tokens.query.device) if mask is None else mask.long()
    count = real.new_zeros(batch) if count is None else count
    position = count[:, None] + real.cumsum(1) - 1
    turned = tokens._replace(query=rotate(tokens.query, position, base), key=rotate(tokens.key, position, base))
    return turned, count + real.sum(1)


def head_width(mixer: str, dim: int, heads: int, multiple: int = 1) -> int:
    """Returns `dim // heads`.

    Raises:
        GenomemError: `dim` is not a multiple of `multiple * heads`.
    """
    if dim % (multiple * heads):
        factor = f"{multiple} * heads = {multiple * heads}" if multiple > 1 else f"heads = {heads}"
        raise GenomemError(f"{mixer}: dim {dim} is not a multiple of {factor}; change dim or heads")
    return dim // heads


def precise(x: Tensor) -> Tensor:
    """Returns `x` as float32, or float64: products of many gates need more than bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class HeadNorm(nn.Module):
    """LayerNorm of each head with learned weights a channel, which is GroupNorm with a group a head: `[B, T, H, V]` to `[B, T, H V]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, read: Tensor) -> Tensor:
        read = read.to(self.weight.dtype)
        return F.layer_norm(read, read.shape[-1:], eps=1e-6).flatten(2) * self.weight + self.bias


class StepDecay(nn.Module):
    """The gate of Mamba-2, a head: a step `dt = softplus(x W + b)`, after which `exp(-exp(A) dt)` of a memory is left.

    Steps start between 0.001 and 0.1, even in the logarithm, and `exp(A)` between 1 and 16, so that heads forget over 1 to 1,000 tokens.

    Source: Mamba-2, arXiv 2405.21060, section 7; the start, Mamba, arXiv 2312.00752, section 3.6.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.step = nn.Linear(dim, heads)
        self.rate_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        start = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        with torch.no_grad():
            self.step.bias.copy_(start.expm1().log())

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Returns dt and the share that is forgotten, each `[B, T, H]`."""
        step = F.softplus(precise(self.step(hidden)))
        return step, -torch.expm1(-precise(self.rate_log).exp() * step)
