"""Block-sparse attention against its definition by loops, in outputs and gradients, and against attention to everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genomem.ops import block_sparse_attention
from genomem.ops.attention import causal_attention
from genomem.ops.block_sparse_attention import block_sparse_attention as attend

BATCH, HEADS, WIDTH, BASE = 2, 2, 4, 100.0
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=[3, 32], ids="tiles of {}".format)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pairs of a token and a block that are computed together."""
    monkeypatch.setattr(block_sparse_attention, "_TILE", request.param)
    return request.param


def make_inputs(tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return list(torch.randn(3, BATCH, tokens, HEADS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_().unbind(0))


def make_flags(tokens: int) -> dict[str, Tensor]:
    drawn = torch.rand(2, BATCH, tokens, generator=torch.Generator().manual_seed(tokens))
    return {"mask": drawn[0] > 0.3, "reset": drawn[1] > 0.95}


def turned(x: Tensor, position: int) -> Tensor:
    """Turns the pairs of channels of `[K]`, as complex numbers."""
    half = WIDTH // 2
    angle = torch.tensor([position * BASE ** (-i / half) for i in range(half)], dtype=torch.float64)
    pairs = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag])


def by_loops(
    query: Tensor, key: Tensor, value: Tensor, *, block: int, selected: int, mask: Tensor | None = None, reset: Tensor | None = None
) -> Tensor:
    """Returns what every token finds, one token and head at a time, with the keys of its document in a list."""
    output = torch.zeros_like(value).unbind(0)
    rows = []
    for row, found in enumerate(output):
        found = list(found.reshape(-1, WIDTH).unbind(0))
        for head in range(HEADS):
            keys: list[Tensor] = []
            values: list[Tensor] = []
            for t in range(query.shape[1]):
                if mask is not None and not mask[row, t]:
                    continue
                if reset is not None and reset[row, t]:
                    keys, values = [], []
                asking = turned(query[row, t, head], len(keys))
                keys.append(turned(key[row, t, head], len(keys)))
                values.append(value[row, t, head])
                own = (len(keys) - 1) // block
                summaries = [torch.stack(keys[b * block : (b + 1) * block]).mean(0) for b in range(own)]
                matches = [float((summary @ asking).detach()) for summary in summaries]
                best = sorted(range(own), key=matches.__getitem__, reverse=True)[:selected]
                seen = [i for b in best for i in range(b * block, (b + 1) * block)] + list(range(own * block, len(keys)))
                weights = (torch.stack([keys[i] for i in seen]) @ asking / math.sqrt(WIDTH)).softmax(0)
                found[t * HEADS + head] = weights @ torch.stack([values[i] for i in seen])
        rows.append(torch.stack(found).view(-1, HEADS, WIDTH))
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 8, 37])
@pytest.mark.parametrize(("block", "selected"), [(1, 1), (4, 2), (4, 30), (5, 1), (100, 3)])
@pytest.mark.parametrize("flags", [False, True], ids=["plain", "padded and packed"])
def test_outputs_and_gradients_equal_the_definition(tile: int, tokens: int, block: int, selected: int, flags: bool) -> None:
    inputs, given = make_inputs(tokens), make_flags(tokens) if flags else {}
    actual, _ = attend(*inputs, block=block, selected=selected, rope_base=BASE, **given)
    expected = by_loops(*inputs, block=block, selected=selected, **given)
    torch.testing.assert_close(actual, expected, **CLOSE)
    weights = torch.randn(actual.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    if not expected.requires_grad:
        return
    grads = (torch.autograd.grad((part * weights).sum(), inputs, materialize_grads=True) for part in (actual, expected))
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, **CLOSE)


@pytest.mark.parametrize("flags", [False, True], ids=["plain", "padded and packed"])
def test_choosing_every_block_is_attention_to_everything(tile: int, flags: bool) -> None:
    inputs, given = make_inputs(300), make_flags(300) if flags else {}
    actual, _ = attend(*inputs, block=7, selected=300, rope_base=BASE, **given)
    torch.testing.assert_close(actual, causal_attention(*inputs, rope_base=BASE, **given)[0], **CLOSE)


def test_a_choice_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"block": 5, "selected": 2, "rope_base": BASE} | make_flags(100)
    whole, _ = attend(*make_inputs(100), **options)
    monkeypatch.setattr(block_sparse_attention, "_SCORES", 1)
    assert torch.equal(attend(*make_inputs(100), **options)[0], whole)


@pytest.mark.parametrize("borders", [(0,), (60,), (1, 1, 40), (3, 8, 30), tuple(range(1, 60))], ids=str)
@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("flags", [False, True], ids=["plain", "padded and packed"])
def test_parts_with_the_state_carried_equal_the_whole(tile: int, borders: tuple[int, ...], block: int, flags: bool) -> None:
    inputs, given = make_inputs(60), make_flags(60) if flags else {}
    options: dict[str, Any] = {"block": block, "selected": 2, "rope_base": BASE}
    whole, _ = attend(*inputs, **options, **given)
    pieces, state = [], None
    for start, end in zip((0, *borders), (*borders, 60), strict=True):
        part = {name: flag[:, start:end] for name, flag in given.items()}
        piece, state = attend(*(x[:, start:end] for x in inputs), state, **options, **part)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **CLOSE)


def test_blocks_of_earlier_documents_are_dropped() -> None:
    reset = torch.zeros(BATCH, 60, dtype=torch.bool)
    reset[0, 50], reset[1, 55] = True, True
    _, state = attend(*make_inputs(60), block=4, selected=2, rope_base=BASE, reset=reset)
    assert state.blocks.tolist() == [2, 1]
    assert state.position.tolist() == [2, 1]
    assert state.keys.shape[2] == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs_before_a_token_do_not_change_with_it_by_a_bit(tile: int, dtype: torch.dtype) -> None:
    query, key, value = (x.detach().to(dtype) for x in make_inputs(500))
    options: dict[str, Any] = {"block": 16, "selected": 3, "rope_base": BASE}
    before, _ = attend(query, key, value, **options)
    for token in (1, 15, 16, 250, 499):
        spoilt = [x.clone() for x in (query, key, value)]
        for x in spoilt:
            x[:, token] += 3.0
        after, _ = attend(*spoilt, **options)
        assert torch.equal(after[:, :token], before[:, :token])
        assert not torch.equal(after[:, token:], before[:, token:])


def test_low_precision() -> None:
    inputs = [x.detach().bfloat16() for x in make_inputs(300)]
    options: dict[str, Any] = {"block": 16, "selected": 30, "rope_base": BASE}
    output, _ = attend(*inputs, **options)
    assert output.dtype == torch.bfloat16
    expected, _ = attend(*(x.double() for x in inputs), **options)
    assert ((output.double() - expected).norm() / expected.norm()) < 0.01


def test_it_never_holds_the_full_matrix() -> None:
    query, key, value = torch.randn(3, 1, 4096, 1, 4).unbind(0)
    with torch.profiler.profile(profile_memory=True) as profile:
        attend(query, key, value, block=64, selected=2, rope_base=BASE)
    assert max(event.cpu_memory_usage for event in profile.events()) < 4096 * 4096
