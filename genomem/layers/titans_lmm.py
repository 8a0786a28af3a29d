"""Titans LMM: a neural long-term memory that learns at test time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.convolution import ShortConvolution
from genomem.layers.mixer import Mixer, State
from genomem.layers.persistent import mix_behind
from genomem.layers.titans_memory import DeepMemory, Gates, LinearMemory, normalise
from genomem.ops.unit_length import query_key_value

# Heads forget over these horizons at the start of training, in gradient blocks, spaced evenly in the logarithm.
SHORTEST_HORIZON_BLOCKS, LONGEST_HORIZON_BLOCKS = 32.0, 4096.0

# At the start of training: the bound on momentum, the share of it that is used, and all that a write adds up to over the tokens after it,
# as a share of the largest step.
FIRST_MOMENTUM_BOUND, FIRST_MOMENTUM_SHARE, FIRST_WRITE = 0.5, 0.9, 0.25

DEEP_GRADIENT_BLOCK = 64

# Numbers in the hidden states of a piece of a long sequence on a CPU. A piece stays in the cache, and its buffers below the size that the
# allocator of the C library takes from the system page by page, every time.
PIECE_ELEMENTS = 1 << 18


class TitansLMM(Mixer):
    """The memory layer of Titans. With its default options the memory is linear and the rule is the sequential definition.

    Query, key and value are projected, convolved, and passed through SiLU; query and key have unit length. The memory
    `M` of each head takes one step of gradient descent on `1/2 ||M(k) - v||^2` a token, with momentum and forgetting,
    and is read after the step. The result is normalised a head, gated, and projected.

    Gates are linear functions of the layer's input behind a sigmoid. With `h` a learned bound a head, and gates `m`, `s` and alpha of the
    token, each in (0, 1)::

        momentum  = (1 - alpha) h m
        step_size = (1 - alpha) s largest_step (1 - h)^2 / (1 + h) / gradient_block

    with a largest step of 2 for a linear memory and 1 for a deep one. A linear memory with gradient block 1 is then bounded for all keys of
    unit length and all gates (docs/decisions/0006-momentum-that-stays-bounded.md). A step of `1 - momentum` is not enough: runs of one key,
    as in repeats, excite the momentum like a swing.

    Where it differs from the paper, or the paper is silent: the gates above; a linear memory starts at zero unless its start is learned,
    as that of a deep one always is; the network of a deep memory is plain, with GELU. Forgetting draws a deep memory towards zero, where
    its gradients vanish, so that heads start with horizons in proportion to the gradient block, as their steps do.

    Args:
        dim: Model width D, a multiple of `heads`.
        heads: H independent memories, each from `dim // heads` to `dim // heads`.
        conv_kernel: Taps of the convolution on query, key and value; 1 turns it off.
        momentum: eta of the paper; False takes plain gradient steps.
        forget: alpha of the paper; False never forgets.
        output_gate: Multiplies the normalised read by `silu(x W_g)`.
        chunk_size: Compute chunk of a linear memory in tokens; it changes speed and rounding, nothing else.
        depth: L_M of the paper, matrices in a memory: 1 is linear.
        hidden_ratio: Hidden width of a deep memory over `dim // heads`.
        gradient_block: b of the paper, tokens that take their gradients at the same memory; None is 1 for a linear memory and 64 for
            a deep one.
        learned_start: The memory starts every document at learned weights and not at zero; None is False for a linear memory and True
            for a deep one, which has no gradient at zero.
        persistent: Learned tokens that stand before every document and are written like tokens.

    Source: Titans, arXiv 2501.00663, sections 3.1 to 3.3 and 4.4, equations 11 to 19.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        conv_kernel: int = 4,
        momentum: bool = True,
        forget: bool = True,
        output_gate: bool = True,
        chunk_size: int = 32,
        depth: int = 1,
        hidden_ratio: int = 4,
        gradient_block: int | None = None,
        learned_start: bool | None = None,
        persistent: int = 0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise GenomemError(f"titans_lmm: dim {dim} is not a multiple of heads = {heads}; change dim or heads")
        if depth > 1 and learned_start is False:
            raise GenomemError(f"titans_lmm: learned_start is false, but a memory of depth {depth} has no gradient at zero; leave it out")
        width = dim // heads
        self.heads, self.use_momentum, self.use_forget = heads, momentum, forget
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.convolution = ShortConvolution(3 * dim, conv_kernel) if conv_kernel > 1 else None
        self.gates = nn.Linear(dim, (1 + momentum + forget) * heads)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.output_gate = nn.Linear(dim, dim, bias=False) if output_gate else None
        self.out = nn.Linear(dim, dim, bias=False)
        self.persistent = nn.Embedding(persistent, dim) if persistent else None
        self.memory: LinearMemory | DeepMemory
        if depth == 1:
            self.memory = LinearMemory(
                heads,
                width,
                momentum=momentum,
                gradient_block=gradient_block or 1,
                chunk_size=chunk_size,
                learned_start=bool(learned_start),
            )
        else:
            block = gradient_block or DEEP_GRADIENT_BLOCK
            self.memory = DeepMemory(heads, width, depth=depth, hidden_ratio=hidden_ratio, momentum=momentum, gradient_block=block)
        bound = torch.full((heads,), FIRST_MOMENTUM_BOUND)
        self.momentum_bound = nn.Parameter(bound.logit()) if momentum else None
        self._initialise_gates()

    def _initialise_gates(self) -> None:
        """Starts with writes that add up to a quarter of the largest step and with heads that forget over different horizons."""
        nn.init.normal_(self.gates.weight, std=0.02)
        bound = torch.tensor(FIRST_MOMENTUM_BOUND if self.use_momentum else 0.0)
        step = FIRST_WRITE * (1 - bound * FIRST_MOMENTUM_SHARE) / _room(bound)
        bias = [step.expand(self.heads)]
        if self.use_momentum:
            bias.append(torch.full((self.heads,), FIRST_MOMENTUM_SHARE))
        if self.use_forget:
            blocks = torch.logspace(math.log10(SHORTEST_HORIZON_BLOCKS), math.log10(LONGEST_HORIZON_BLOCKS), self.heads)
            bias.append(1.0 / (self.memory.gradient_block * blocks))
        with torch.no_grad():
            self.gates.bias.copy_(torch.cat(bias).logit())

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        mix = self._mix_in_pieces if hidden.device.type == "cpu" else self._mix
        if self.persistent is None:
            return mix(hidden, state, mask, reset)
        return mix_behind(self.persistent.weight, mix, hidden, state, mask, reset)

    def _mix_in_pieces(self, hidden: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """Does what `_mix` does, a piece of whole chunks at a time; the state makes it exact."""
        batch, length, dim = hidden.shape
        pieces = -(-length * batch * dim // PIECE_ELEMENTS)
        if pieces < 2:
            return self._mix(hidden, state, mask, reset)
        grain = self.memory.grain
        size = max(1, length // (pieces * grain)) * grain
        parts = [[None] * -(-length // size) if part is None else part.split(size, dim=1) for part in (mask, reset)]
        outputs = []
        for part, *flags in zip(hidden.split(size, dim=1), *parts, strict=True):
            output, state = self._mix(part, state, *flags)
            outputs.append(output)
        return torch.cat(outputs, dim=1), state

    def write_then_read(self, hidden: Tensor, state: State, *, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """Writes all tokens, then reads them all from the memory after the last, so that each read depends on every token.

        Args:
            hidden, state, mask: As in `forward`. There are no persistent tokens.
            reset: `[B, T]` bool, True nowhere but at the first real token of a row.
        """
        return self._mix(hidden, state, mask, reset, read_last=True)

    def _mix(
        self, hidden: Tensor, state: State, mask: Tensor | None, reset: Tensor | None, *, read_last: bool = False
    ) -> tuple[Tensor, State]:
        history, memory = (None, None) if state is None else state
        qkv = self.qkv(hidden)
        if self.convolution is not None:
            qkv, history = self.convolution(qkv, history, mask=mask, reset=reset)
        query, key, value = query_key_value(qkv, self.heads)
        read, memory = self.memory(query, key, value, self._gates(hidden), memory, mask=mask, reset=reset)
        if read_last:
            read = self.memory.recall(query, self.memory.current(memory, query))
        read = normalise(self.norm, read).flatten(2)
        if self.output_gate is not None:
            read = read * F.silu(self.output_gate(hidden))
        mixed = self.out(read)
        return (mixed if mask is None else mixed * mask[..., None]), (history, memory)

    def _gates(self, hidden: Tensor) -> Gates:
        logits = self.gates(hidden)
        # Products of many gates need more than bfloat16.
        precision = torch.promote_types(logits.dtype, torch.float32)
        gates = iter(logits.to(precision).sigmoid().split(self.heads, dim=-1))
        step = next(gates) * self.memory.largest_step / self.memory.gradient_block
        share = next(gates) if self.use_momentum else None
        forget = next(gates) if self.use_forget else None
        step = step if forget is None else (1 - forget) * step
        if share is None or self.momentum_bound is None:
            return Gates(step, None, forget)
        bound = self.momentum_bound.to(precision).sigmoid()
        momentum = bound * share
        return Gates(_room(bound) * step, momentum if forget is None else (1 - forget) * momentum, forget)

    def state_bytes(self, tokens: int) -> int:
        size = self.out.weight.element_size()
        convolution = 0 if self.convolution is None else self.convolution.span * 3 * self.out.in_features * size
        return self.memory.state_bytes(size) + convolution


def _room(momentum: Tensor) -> Tensor:
    """Returns which part of the largest step is safe where momentum is at most this."""
    return (1 - momentum).square() / (1 + momentum)
