"""The linear Titans memory, exactly: momentum, forgetting and the delta rule as matrix products over chunks of tokens.

For one head, with the memory ``W`` and its momentum ``S`` both ``[K, V]``, each token does ::

    r_t = v_t - k_t W_{t-1}                         (objective "dot": r_t = v_t)
    S_t = eta_t S_{t-1} + theta_t k_t^T r_t         minus the gradient of 1/2 |k_t W - v_t|^2, times theta_t
    W_t = (1 - alpha_t) W_{t-1} + S_t
    y_t = q_t W_t                                   (read "before": y_t = q_t W_{t-1})

======== ============== ======================================== =========================
symbol   argument       meaning                                  Titans (arXiv 2501.00663)
======== ============== ======================================== =========================
q        `query`        what is asked                            eq. 15
k, v     `key`, `value` where and what to write                  eq. 11
theta    `step_size`    how strongly a token is written, >= 0    eq. 14
eta      `momentum`     share of the past surprise, in [0, 1]    eq. 14
alpha    `forget`       share of the memory forgotten, in [0, 1] eq. 13
W, S     `state`        memory (M in the paper) and momentum     eq. 13, 14
======== ============== ======================================== =========================

The loss is that of eq. 12 with the factor 1/2 of the paper's appendix C. With `gradient_block` 1 every gradient is taken at the memory
just before the token, which is the sequential definition; with b, at the memory before the block of b tokens that the token stands in
(eq. 16). Blocks are counted over real tokens, from the first of each document. b belongs to the model, the chunk size does not.

How chunks are computed stands in `genomem.ops.linear_memory_span` (b = 1, one forget gate a head: fast, with a backward pass by hand)
and in `genomem.ops.linear_memory_blocks` (everything else).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genomem.ops.linear_memory_blocks import BlockState, blockwise_linear_memory
from genomem.ops.linear_memory_span import Span
from genomem.ops.ragged import insert_before, reorder, take_slots

State = tuple[Tensor, Tensor | None] | BlockState
MaybeState = tuple[Tensor | None, Tensor | None] | BlockState | None


# A compiler that traces the chunks takes minutes and gains nothing: it leaves the operation as it is.
@torch.compiler.disable
def chunked_linear_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: MaybeState = None,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int = 64,
    gradient_block: int = 1,
    objective: str = "squared",
    decay_first: bool = False,
    read: str = "after",
) -> tuple[Tensor, State]:
    """Returns what the memory reads at each token, ``[B, T, H, V]``, and its last state; exact for every T and every chunk size.

    Gates, decays, solve and state are float32 (float64 for float64 inputs); the output has the dtype of `query`.

    Args:
        query: ``[B, T, H, K]``.
        key: ``[B, T, H, K]``; of unit length wherever stability matters.
        value: ``[B, T, H, V]``.
        step_size: theta, ``[B, T, H]``. With momentum up to h, steps under ``2 (1 - h)^2 / (1 + h)`` are stable.
        momentum: eta, ``[B, T, H]`` in [0, 1], values and not logits. None is zero everywhere and costs nothing.
        forget: alpha, ``[B, T, H]``, or ``[B, T, H, K]`` for a gate a key channel, in [0, 1], values and not logits. None is zero.
        state: ``(W, S)``, each ``[B, H, K, V]``, at the start of a gradient block; or what the last call returned; None is a fresh start.
        start: ``[H, K, V]``, W before the first token of a document, where S is zero; None is zero.
        mask: ``[B, T]`` bool, True for a real token. Others leave the state as it is and read zero.
        reset: ``[B, T]`` bool, True for the first token of a packed document, a fresh start. On padding it says nothing.
        chunk_size: Tokens a chunk; a choice of speed, not of the result.
        gradient_block: b, tokens that take their gradients at the same memory.
        objective: "squared" (delta rule) or "dot" (plain outer products).
        decay_first: Take the gradient of token t at ``(1 - alpha_t)`` times that memory; with b = 1 and no momentum that is Gated DeltaNet.
        read: "after" the update of the token, or "before" it.

    Returns:
        The output, and ``(W, S)`` after the last token, or a `BlockState` for b > 1; S is None without momentum.

    Raises:
        ValueError: `objective`, `read`, `chunk_size` or `gradient_block` is not one of the above.
    """
    _check(objective, read, chunk_size, gradient_block)
    reset = reset if reset is None or mask is None else reset & mask
    opened = _open(key, value, momentum, state, start)
    if start is not None and reset is not None and bool(reset.any()):
        tokens = {"query": query, "key": key, "value": value, "step_size": step_size, "momentum": momentum, "forget": forget}
        laid, slot = _with_written_starts(start, tokens, mask, reset, gradient_block)
        rule: dict[str, Any] = {"objective": objective, "decay_first": decay_first, "read": read}
        output, after = chunked_linear_memory(**laid, state=opened, chunk_size=chunk_size, gradient_block=gradient_block, **rule)
        return reorder(output, slot), after
    if gradient_block > 1 or (forget is not None and forget.dim() == 4):
        output, opened = blockwise_linear_memory(
            query,
            key,
            value,
            step_size=step_size,
            momentum=momentum,
            forget=forget,
            state=opened,
            mask=mask,
            reset=reset,
            chunk_size=chunk_size,
            gradient_block=gradient_block,
            objective=objective,
            decay_first=decay_first,
            read=read,
        )
        return _hide(output, mask, reset, read), opened if gradient_block > 1 else opened[:2]
    batch, length, heads, _ = key.shape
    memory = opened.memory if opened.surprise is None else torch.cat([opened.memory, opened.surprise], dim=2)
    gates = _gates(step_size, momentum, forget, mask, reset, objective, decay_first, memory.dtype)
    spans = _spans(length, chunk_size, batch * heads, query.device)
    outputs = [query.new_zeros(batch, 0, heads, value.shape[-1])]
    memory = memory.flatten(0, 1)
    for chunk, *pieces in zip(*_cut(spans, query, key, value, *gates), strict=True):
        output, memory = Span.apply(*pieces, memory, chunk, int(read == "before"))
        outputs.append(output)
    output = _hide(torch.cat(outputs, dim=1), mask, reset, read)
    return output, _unpack(memory.unflatten(0, (batch, heads)), momentum)


def recurrent_linear_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: MaybeState = None,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    gradient_block: int = 1,
    objective: str = "squared",
    decay_first: bool = False,
    read: str = "after",
) -> tuple[Tensor, State]:
    """Returns what :func:`chunked_linear_memory` returns, one token at a time: the form for streaming."""
    _check(objective, read, 1, gradient_block)
    reset = reset if reset is None or mask is None else reset & mask
    opened = _open(key, value, momentum, state, start)
    dtype = opened.memory.dtype
    fresh = opened.memory.new_zeros(()) if start is None else start.to(dtype)
    inputs = (query, key, value, step_size, momentum, forget)
    outputs = [query.new_zeros(query.shape[0], 0, *value.shape[2:])]
    with torch.autocast(query.device.type, enabled=False):
        for t in range(query.shape[1]):
            token: list[Any] = [None if part is None else part[:, t].to(dtype) for part in inputs]
            opened = opened if reset is None else _restart(opened, reset[:, t], fresh)
            real = None if mask is None else mask[:, t]
            output, opened = _step(token, real, opened, gradient_block, (objective, decay_first, read))
            outputs.append(output[:, None].to(query.dtype))
    output = _hide(torch.cat(outputs, dim=1), mask, None, read)
    return output, opened if gradient_block > 1 else opened[:2]


def _restart(state: BlockState, starts: Tensor, fresh: Tensor) -> BlockState:
    """Puts the memory of some rows, ``[B]`` bool, back to the start of a document."""
    rows = starts[:, None, None, None]
    surprise = None if state.surprise is None else state.surprise.masked_fill(rows, 0)
    return state._replace(memory=torch.where(rows, fresh, state.memory), surprise=surprise, position=state.position.masked_fill(starts, 0))


def _step(
    token: list[Any], real: Tensor | None, state: BlockState, gradient_block: int, rule: tuple[str, bool, str]
) -> tuple[Tensor, BlockState]:
    """Takes one token: query, key, value, step size, momentum and forget gate, each ``[B, H, ...]``."""
    query, key, value, step_size, momentum, forget = token
    objective, decay_first, read = rule
    memory, surprise, opened, position = state
    opened = torch.where((position == 0)[:, None, None, None], memory, opened) if gradient_block > 1 else memory
    keep = None if forget is None else 1 - (forget if forget.dim() == 3 else forget[..., None])
    if objective == "squared":
        seen = key * keep if decay_first and keep is not None else key
        value = value - torch.einsum("bhk,bhkv->bhv", seen, opened)
    update = key[..., None] * (step_size[..., None] * value)[..., None, :]
    if momentum is not None and surprise is not None:
        update = update + momentum[..., None, None] * surprise
    after = BlockState(
        update + (memory if keep is None else keep[..., None] * memory),
        None if momentum is None else update,
        opened,
        (position + 1) % gradient_block,
    )
    output = torch.einsum("bhk,bhkv->bhv", query, memory if read == "before" else after.memory)
    return output, after if real is None else _where(real, after, BlockState(memory, surprise, opened, position))


def _where(real: Tensor, after: BlockState, before: BlockState) -> BlockState:
    """Keeps the state of rows whose token is padding."""
    pairs: Any = zip(after, before, strict=True)
    parts: list[Any] = [None if a is None else torch.where(real.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs]
    return BlockState(parts[0], parts[1], parts[2], parts[3])


def _check(objective: str, read: str, chunk_size: int, gradient_block: int) -> None:
    if objective not in ("squared", "dot"):
        raise ValueError(f"objective is {objective!r}; it must be 'squared' or 'dot'")
    if read not in ("after", "before"):
        raise ValueError(f"read is {read!r}; it must be 'after' or 'before'")
    for name, size in (("chunk_size", chunk_size), ("gradient_block", gradient_block)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def _open(key: Tensor, value: Tensor, momentum: Tensor | None, state: MaybeState, start: Tensor | None) -> BlockState:
    """Returns the whole state, float32 or float64: fresh where none is given, and at the start of a block unless one is open."""
    dtype = torch.float64 if key.dtype == torch.float64 else torch.float32
    zeros = key.new_zeros(key.shape[0], key.shape[2], key.shape[3], value.shape[3], dtype=dtype)
    # A copy for each row: what is carried over must not change with the learnt start.
    fresh = zeros if start is None else start.to(dtype).repeat(key.shape[0], 1, 1, 1)
    given = (None, None) if state is None else state[:2]
    memory, surprise = (other if part is None else part.to(dtype) for part, other in zip(given, (fresh, zeros), strict=True))
    held = None if momentum is None else surprise
    if isinstance(state, BlockState):
        return BlockState(memory, held, state.block_memory.to(dtype), state.position)
    return BlockState(memory, held, memory, torch.zeros(key.shape[0], dtype=torch.int64, device=key.device))


def _with_written_starts(
    start: Tensor, tokens: dict[str, Tensor | None], mask: Tensor | None, reset: Tensor, gradient_block: int
) -> tuple[dict[str, Any], Tensor]:
    """Puts the rows of the start in front of every document, as tokens that write them into the empty memory.

    Their keys are the unit vectors, so that what they have written together is the start, and their surprise is kept from the document.
    They fill whole gradient blocks.

    Returns:
        The arguments of the memory with these tokens, and ``[B, T]`` int64, where each token went.
    """
    batch, heads, width = reset.shape[0], *start.shape[:2]
    count = -(-width // gradient_block) * gradient_block
    source, slot = insert_before(reset, count)

    def lay(part: Tensor, rows: Tensor | None = None) -> Tensor:
        new = part.new_zeros(0, *part.shape[2:]) if rows is None else rows
        new = torch.cat([new, new.new_zeros(count - len(new), *new.shape[1:])])
        return take_slots(torch.cat([part, new.expand(batch, *new.shape)], dim=1), source)

    written = {"key": torch.eye(width, device=start.device)[:, None].expand(-1, heads, -1), "value": start.transpose(0, 1)}
    written["step_size"] = start.new_ones(width, heads)
    momentum = tokens["momentum"]
    tokens = tokens | {"momentum": None if momentum is None else momentum.masked_fill(reset[..., None], 0)}
    laid = {name: None if part is None else lay(part, written.get(name)) for name, part in tokens.items()}
    real = torch.ones_like(reset) if mask is None else mask
    ones = reset.new_ones(count)
    return laid | {"mask": lay(real, ones), "reset": lay(torch.zeros_like(reset), ones[:1])}, slot


def _gates(
    step_size: Tensor,
    momentum: Tensor | None,
    forget: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    objective: str,
    decay_first: bool,
    dtype: torch.dtype,
) -> tuple[Tensor | None, ...]:
    """Puts mask, reset and `decay_first` into the gates, each ``[B, T, H]``.

    They are: write (theta), erase (theta times what of the memory the gradient sees), momentum, keep (1 - alpha), real (1 or 0).
    """
    real = torch.ones_like(step_size, dtype=torch.bool) if mask is None else mask[..., None].expand_as(step_size)
    write = torch.where(real, step_size.to(dtype), 0.0)
    stays = None if reset is None else (~reset)[..., None].expand_as(step_size).to(dtype)
    keep = None if forget is None else torch.where(real, 1 - forget.to(dtype), 1.0)
    keep = stays if keep is None else keep if stays is None else keep * stays
    if momentum is not None:
        momentum = torch.where(real, momentum.to(dtype), 1.0)
        momentum = momentum if stays is None else momentum * stays
    seen = keep if decay_first else stays
    erase = None if objective == "dot" else write if seen is None else write * seen
    return write, erase, momentum, keep, None if momentum is None or mask is None else real.to(dtype)


def _unpack(memory: Tensor, momentum: Tensor | None) -> State:
    if momentum is None:
        return memory, None
    memory, surprise = memory.chunk(2, dim=2)
    return memory, surprise


def _hide(output: Tensor, mask: Tensor | None, reset: Tensor | None, read: str) -> Tensor:
    """Zeroes what padding reads, and what a first token would read from the document before it."""
    hidden = None if mask is None else ~mask
    if reset is not None and read == "before":
        hidden = reset if hidden is None else hidden | reset
    return output if hidden is None else output.masked_fill(hidden[..., None, None], 0)


# Elements of one [C, C] matrix over all chunks of a span: what stays in the cache of a CPU, what fills a GPU.
_SPAN_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 25}


def _spans(length: int, chunk_size: int, heads: int, device: torch.device) -> list[tuple[int, int]]:
    """Returns ``(tokens, tokens a chunk)`` of the spans that are computed one after the other; a ragged end is a span of one chunk."""
    chunks, rest = divmod(length, chunk_size)
    most = max(1, _SPAN_ELEMENTS.get(device.type, 1 << 25) // (heads * chunk_size**2))
    spans = [(min(most, chunks - first) * chunk_size, chunk_size) for first in range(0, chunks, most)]
    return spans + [(rest, rest)] * (rest > 0)


def _cut(spans: list[tuple[int, int]], *sequences: Tensor | None) -> list[Sequence[Any]]:
    """Returns the chunk sizes, then each sequence cut into the spans along its tokens."""
    sizes = [size for size, _ in spans]
    pieces = ([None] * len(sizes) if sequence is None else sequence.split(sizes, dim=1) for sequence in sequences)
    return [[chunk for _, chunk in spans], *pieces]
