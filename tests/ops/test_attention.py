"""Causal attention against attention written as loops over tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genomem.ops import attention
from genomem.ops.attention import Prefix, causal_attention, rotate, segment_attention, windowed_attention

BASE = 100.0


def turn(x: Tensor, place: int) -> Tensor:
    """Returns one head's vector `[K]` turned to its place: channels i and i + K/2 are a complex number."""
    half = len(x) // 2
    turned = torch.complex(x[:half], x[half:]) * torch.exp(
        1j * place * torch.tensor([BASE ** (-i / half) for i in range(half)], dtype=x.dtype)
    )
    return torch.cat([turned.real, turned.imag])


def by_loops(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, mask: Tensor, reset: Tensor, prefix: Prefix | None = None
) -> Tensor:
    """Softmax attention as its definition, a token at a time; a prefix is scored with vectors that are not turned."""
    output = torch.zeros_like(value)
    batch, tokens, heads, width = query.shape
    for b in range(batch):
        for h in range(heads):
            seen: list[tuple[int, int]] = []  # token, place among the real tokens of its document
            for t in range(tokens):
                if not mask[b, t]:
                    continue
                if reset[b, t]:
                    seen = []
                place = len(seen)
                seen.append((t, place))
                near = [(s, p) for s, p in seen if window is None or place - p < window]
                pairs = [(turn(query[b, t, h], place) @ turn(key[b, s, h], p), value[b, s, h]) for s, p in near]
                pairs += [] if prefix is None else [(query[b, t, h] @ k[h], v[h]) for k, v in zip(*prefix, strict=True)]
                scores = torch.stack([score for score, _ in pairs]) / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                output[b, t, h] = sum(w * v for w, (_, v) in zip(weights, pairs, strict=True))
    return output


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 11, 2, 4, generator=generator, dtype=torch.float64)
    return query, key, value


def marks(*places: tuple[int, int]) -> Tensor:
    """Returns a `[2, 11]` mask, True at the places."""
    mask = torch.zeros(2, 11, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


PADDING = ~marks((0, 0), (0, 5), (1, 3), (1, 4), (1, 10))
BORDERS = marks((0, 4), (1, 0), (1, 7))


@pytest.fixture(params=[None, 0, 3], ids=["no prefix", "empty prefix", "prefix"])
def prefix(request: pytest.FixtureRequest) -> Prefix | None:
    generator = torch.Generator().manual_seed(1)
    if request.param is None:
        return None
    key, value = torch.randn(2, request.param, 2, 4, generator=generator, dtype=torch.float64)
    return key, value


NOTHING = torch.zeros(2, 11, dtype=torch.bool)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 11, 100])
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("reset", [None, BORDERS], ids=["one document", "packed"])
def test_equals_the_loops(
    inputs: tuple[Tensor, Tensor, Tensor], window: int | None, mask: Tensor | None, reset: Tensor | None, prefix: Prefix | None
) -> None:
    output, _ = causal_attention(*inputs, rope_base=BASE, window=window, prefix=prefix, mask=mask, reset=reset)
    expected = by_loops(*inputs, window, ~NOTHING if mask is None else mask, NOTHING if reset is None else reset, prefix)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)


def test_a_prefix_is_seen_alike_from_everywhere(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value = (x[:, :1].expand(-1, 11, -1, -1) for x in inputs)
    prefix = (torch.ones(1, 2, 4, dtype=torch.float64), torch.full((1, 2, 4), 1e6, dtype=torch.float64))
    output, _ = causal_attention(query, key, value, rope_base=BASE, window=1, prefix=prefix)
    torch.testing.assert_close(output, output[:, :1].expand(-1, 11, -1, -1))
    assert (output > 1e3).all()


@pytest.mark.parametrize("window", [1, 2, 7, 40, 70])
@pytest.mark.parametrize("block", [1, 64], ids=["blocks of the window", "blocks of 64"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_windows_in_blocks_equal_the_full_matrix(
    window: int, block: int, padded: bool, packed: bool, prefix: Prefix | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SMALLEST_BLOCK", block)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(3, 2, 230, 2, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 230, generator=generator) > 0.3 if padded else None
    if mask is not None:
        mask[0, 30:110], mask[1, :100] = False, False
    reset = torch.rand(2, 230, generator=generator) > 0.95 if packed else None

    def run(function) -> list[Tensor]:
        """Outputs of four parts, the last state, and the gradients of the inputs and of the prefix."""
        leaves = [x.clone().requires_grad_() for x in (*inputs, *(prefix or ()))]
        outputs, state = [], None
        for start, end in ((0, 15), (15, 120), (120, 121), (121, 230)):
            part = {name: None if flag is None else flag[:, start:end] for name, flag in (("mask", mask), ("reset", reset))}
            qkv, learned = (x[:, start:end] for x in leaves[:3]), (leaves[3], leaves[4]) if prefix else None
            output, state = function(*qkv, state, rope_base=BASE, window=window, prefix=learned, **part)
            outputs.append(output)
        whole = torch.cat(outputs, dim=1)
        return [whole, *state, *torch.autograd.grad((whole * torch.linspace(-1, 1, 4, dtype=torch.float64)).sum(), leaves)]

    for one, other in zip(run(windowed_attention), run(causal_attention), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_windows_in_blocks_never_hold_the_full_matrix() -> None:
    inputs = torch.randn(3, 1, 4096, 1, 2)
    with torch.profiler.profile(profile_memory=True) as profile:
        windowed_attention(*inputs, rope_base=BASE, window=64)
    assert sum(event.self_cpu_memory_usage for event in profile.key_averages() if event.self_cpu_memory_usage > 0) < 4096 * 4096


@pytest.mark.parametrize("streams", [1, 2])
def test_segments_equal_the_loops(inputs: tuple[Tensor, Tensor, Tensor], streams: int, prefix: Prefix | None) -> None:
    generator = torch.Generator().manual_seed(3)
    key, value = torch.randn(2, 2, streams, 9, 2, 4, generator=generator, dtype=torch.float64)
    place = torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])
    query = inputs[0][:, :4]
    output = segment_attention(query, key, value, place, rope_base=BASE, prefix=prefix)
    for b in range(2):
        for t in range(4):
            for h in range(2):
                here = int(place[b, t])
                seen = [(n, s) for n in range(streams) for s in range(here + 1)]
                pairs = [(turn(query[b, t, h], here) @ turn(key[b, n, s, h], s), value[b, n, s, h]) for n, s in seen]
                pairs += [] if prefix is None else [(query[b, t, h] @ k[h], v[h]) for k, v in zip(*prefix, strict=True)]
                weights = torch.stack([score / 2 for score, _ in pairs]).exp()  # the square root of four channels
                expected = sum(w * v for w, (_, v) in zip(weights / weights.sum(), pairs, strict=True))
                torch.testing.assert_close(output[b, t, h], expected, rtol=1e-10, atol=1e-12)


def test_rotary_positions_are_relative(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, _ = inputs
    places = torch.arange(11).expand(2, 11)

    def products(shift: int) -> Tensor:
        return torch.einsum("bthk,bshk->bhts", rotate(query, places + shift, BASE), rotate(key, places + shift, BASE))

    torch.testing.assert_close(products(0), products(1_000_003), rtol=1e-8, atol=1e-8)
    unturned = torch.einsum("bthk,bshk->bhts", query, key)
    torch.testing.assert_close(products(5).diagonal(dim1=2, dim2=3), unturned.diagonal(dim1=2, dim2=3))
    assert not torch.allclose(products(0), unturned)


def test_gradients_are_those_of_the_loops_and_none_comes_from_padding(inputs: tuple[Tensor, Tensor, Tensor], prefix: Prefix | None) -> None:
    def gradients(function) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        return torch.autograd.grad((function(*leaves) * torch.linspace(-1, 1, 4, dtype=torch.float64)).sum(), leaves)

    fast = gradients(lambda *qkv: causal_attention(*qkv, rope_base=BASE, window=3, prefix=prefix, mask=PADDING, reset=BORDERS)[0])
    slow = gradients(lambda *qkv: by_loops(*qkv, 3, PADDING, BORDERS, prefix))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        assert not one[~PADDING].any()


def test_the_window_bounds_the_state(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    _, state = causal_attention(*inputs, rope_base=BASE, window=4)
    assert [x.shape[1] for x in state] == [3, 3, 3, 3]
    assert state[2].tolist() == [[8, 9, 10]] * 2
    _, state = causal_attention(*inputs, rope_base=BASE)
    assert state[0].shape[1] == 11
