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

The loss is that of eq. 12 with the factor 1/2 of the paper's appendix C, and every gradient is taken at the memory just before the token
(eq. 16 with gradient blocks of one token), which is the sequential definition.

How chunks are computed, forward and backward, stands in `genomem.ops.linear_memory_span`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genomem.ops.linear_memory_span import Span

State = tuple[Tensor, Tensor | None]
MaybeState = tuple[Tensor | None, Tensor | None] | None


def chunked_linear_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: MaybeState = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int = 64,
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
        step_size: theta, ``[B, T, H]``. With momentum, ``(1 - momentum) * step`` with step in (0, 1] stays bounded for repeated keys.
        momentum: eta, ``[B, T, H]`` in [0, 1], values and not logits. None is zero everywhere and costs nothing.
        forget: alpha, ``[B, T, H]`` in [0, 1], values and not logits. None is zero everywhere.
        state: ``(W, S)``, each ``[B, H, K, V]``; None is zero.
        mask: ``[B, T]`` bool, True for a real token. Others leave the state as it is and read zero.
        reset: ``[B, T]`` bool, True for the first token of a packed document: W and S are zero before it.
        chunk_size: Tokens a chunk; a choice of speed, not of the result.
        objective: "squared" (delta rule) or "dot" (plain outer products).
        decay_first: Take the gradient at ``(1 - alpha_t) W_{t-1}``; without momentum that is Gated DeltaNet.
        read: "after" the update of the token, or "before" it.

    Returns:
        The output, and ``(W, S)`` after the last token; S is None without momentum.

    Raises:
        ValueError: `objective`, `read` or `chunk_size` is not one of the above.
    """
    _check(objective, read, chunk_size)
    batch, length, heads, _ = key.shape
    memory, gates = _prepare(key, value, step_size, momentum, forget, state, mask, reset, objective, decay_first)
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
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    objective: str = "squared",
    decay_first: bool = False,
    read: str = "after",
) -> tuple[Tensor, State]:
    """Returns what :func:`chunked_linear_memory` returns, one token at a time: the form for streaming."""
    _check(objective, read)
    memory, gates = _prepare(key, value, step_size, momentum, forget, state, mask, reset, objective, decay_first)
    state = _unpack(memory, momentum)
    outputs = [query.new_zeros(query.shape[0], 0, *value.shape[2:])]
    for _, *token in zip(*_cut([(1, 1)] * query.shape[1], query, key, value, *gates), strict=True):
        token = [None if part is None else part[:, 0].to(memory.dtype) for part in token]
        with torch.autocast(query.device.type, enabled=False):
            output, state = _step(*token, state=state, read=read)
        outputs.append(output[:, None].to(query.dtype))
    return _hide(torch.cat(outputs, dim=1), mask, reset, read), state


def _step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write: Tensor,
    erase: Tensor | None,
    momentum: Tensor | None,
    keep: Tensor | None,
    real: Tensor | None,
    *,
    state: State,
    read: str,
) -> tuple[Tensor, State]:
    memory, surprise = state
    update = write[..., None] * value
    if erase is not None:
        update = update - erase[..., None] * torch.einsum("bhk,bhkv->bhv", key, memory)
    update = key[..., None] * update[..., None, :]
    kept = memory if keep is None else keep[..., None, None] * memory
    if momentum is not None and surprise is not None:
        surprise = update = momentum[..., None, None] * surprise + update
        update = update if real is None else real[..., None, None] * update
    read_from = memory if read == "before" else kept + update
    return torch.einsum("bhk,bhkv->bhv", query, read_from), (kept + update, surprise)


def _check(objective: str, read: str, chunk_size: int = 1) -> None:
    if objective not in ("squared", "dot"):
        raise ValueError(f"objective is {objective!r}; it must be 'squared' or 'dot'")
    if read not in ("after", "before"):
        raise ValueError(f"read is {read!r}; it must be 'after' or 'before'")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")


def _prepare(
    key: Tensor,
    value: Tensor,
    step_size: Tensor,
    momentum: Tensor | None,
    forget: Tensor | None,
    state: MaybeState,
    mask: Tensor | None,
    reset: Tensor | None,
    objective: str,
    decay_first: bool,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Puts mask, reset and `decay_first` into the gates; returns the state ``[B, H, K or 2K, V]`` and the gates ``[B, T, H]``.

    Gates: write (theta), erase (theta times what of the memory the gradient sees), momentum, keep (1 - alpha), real (1 or 0).
    """
    dtype = torch.float64 if key.dtype == torch.float64 else torch.float32
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
    shape = key.shape[0], key.shape[2], key.shape[3], value.shape[3]
    memory, surprise = (key.new_zeros(shape, dtype=dtype) if part is None else part.to(dtype) for part in state or (None, None))
    memory = memory if momentum is None else torch.cat([memory, surprise], dim=2)
    return memory, (write, erase, momentum, keep, None if momentum is None or mask is None else real.to(dtype))


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
