"""Causal attention against attention written as loops over tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genomem.ops.attention import causal_attention, rotate

BASE = 100.0


def turn(x: Tensor, place: int) -> Tensor:
    """Returns one head's vector `[K]` turned to its place: channels i and i + K/2 are a complex number."""
    half = len(x) // 2
    turned = torch.complex(x[:half], x[half:]) * torch.exp(
        1j * place * torch.tensor([BASE ** (-i / half) for i in range(half)], dtype=x.dtype)
    )
    return torch.cat([turned.real, turned.imag])


def by_loops(query: Tensor, key: Tensor, value: Tensor, window: int | None, mask: Tensor, reset: Tensor) -> Tensor:
    """Softmax attention as its definition, a token at a time."""
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
                scores = torch.stack([turn(query[b, t, h], place) @ turn(key[b, s, h], p) for s, p in near]) / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                output[b, t, h] = sum(w * value[b, s, h] for w, (s, _) in zip(weights, near, strict=True))
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


@pytest.mark.parametrize("window", [None, 1, 2, 5, 11, 100])
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("reset", [None, BORDERS], ids=["one document", "packed"])
def test_equals_the_loops(inputs: tuple[Tensor, Tensor, Tensor], window: int | None, mask: Tensor | None, reset: Tensor | None) -> None:
    output, _ = causal_attention(*inputs, rope_base=BASE, window=window, mask=mask, reset=reset)
    nothing = torch.zeros(2, 11, dtype=torch.bool)
    expected = by_loops(*inputs, window, ~nothing if mask is None else mask, nothing if reset is None else reset)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)


def test_rotary_positions_are_relative(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, _ = inputs
    places = torch.arange(11).expand(2, 11)

    def products(shift: int) -> Tensor:
        return torch.einsum("bthk,bshk->bhts", rotate(query, places + shift, BASE), rotate(key, places + shift, BASE))

    torch.testing.assert_close(products(0), products(1_000_003), rtol=1e-8, atol=1e-8)
    unturned = torch.einsum("bthk,bshk->bhts", query, key)
    torch.testing.assert_close(products(5).diagonal(dim1=2, dim2=3), unturned.diagonal(dim1=2, dim2=3))
    assert not torch.allclose(products(0), unturned)


def test_gradients_are_those_of_the_loops_and_none_comes_from_padding(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    def gradients(function) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        return torch.autograd.grad((function(*leaves) * torch.linspace(-1, 1, 4, dtype=torch.float64)).sum(), leaves)

    fast = gradients(lambda *qkv: causal_attention(*qkv, rope_base=BASE, window=3, mask=PADDING, reset=BORDERS)[0])
    slow = gradients(lambda *qkv: by_loops(*qkv, 3, PADDING, BORDERS))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        assert not one[~PADDING].any()


def test_the_window_bounds_the_state(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    _, state = causal_attention(*inputs, rope_base=BASE, window=4)
    assert [x.shape[1] for x in state] == [3, 3, 3, 3]
    assert state[2].tolist() == [[8, 9, 10]] * 2
    _, state = causal_attention(*inputs, rope_base=BASE)
    assert state[0].shape[1] == 11
