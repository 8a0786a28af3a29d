"""Causal depthwise convolution against its definition as loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genomem.ops.convolution import causal_convolution


def by_loops(x: Tensor, weight: Tensor, dilation: int, mask: Tensor, reset: Tensor) -> Tensor:
    """`y[t] = sum_j weight[j] x[t - j dilation]`, counting the real tokens of the document only."""
    output = torch.zeros_like(x)
    for b in range(x.shape[0]):
        document: list[Tensor] = []
        for t in range(x.shape[1]):
            if not mask[b, t]:
                continue
            if reset[b, t]:
                document = []
            document.append(x[b, t])
            for tap in range(weight.shape[0]):
                if tap * dilation < len(document):
                    output[b, t] += weight[tap] * document[-1 - tap * dilation]
    return output


def flags(*places: tuple[int, int]) -> Tensor:
    """Returns a `[2, 12]` mask, True at the places."""
    mask = torch.zeros(2, 12, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


PADDING = ~flags((0, 0), (0, 1), (0, 6), (1, 5), (1, 10), (1, 11))
BORDERS = flags((0, 0), (0, 4), (0, 5), (1, 0), (1, 9))


@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (2, 1), (4, 1), (3, 2), (2, 5), (5, 4)])
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("reset", [None, BORDERS], ids=["one document", "packed"])
def test_equals_the_loops_whole_and_in_parts(taps: int, dilation: int, mask: Tensor | None, reset: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(taps)
    x = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(taps, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(2, 12, dtype=torch.bool)
    expected = by_loops(x, weight, dilation, ~nothing if mask is None else mask, nothing if reset is None else reset)

    output, history = causal_convolution(x, weight, dilation=dilation, mask=mask, reset=reset)
    torch.testing.assert_close(output, expected)
    assert history.shape == (2, (taps - 1) * dilation, 3)

    pieces, carried = [], None
    for start, end in ((0, 0), (0, 1), (1, 6), (6, 12)):
        part_mask, part_reset = (None if flag is None else flag[:, start:end] for flag in (mask, reset))
        piece, carried = causal_convolution(x[:, start:end], weight, carried, dilation=dilation, mask=part_mask, reset=part_reset)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)
    torch.testing.assert_close(carried, history)

    for one, other in zip(
        torch.autograd.grad(output.square().sum(), (x, weight)), torch.autograd.grad(expected.square().sum(), (x, weight)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_what_stands_at_padding_reaches_nothing() -> None:
    x = torch.randn(2, 12, 3)
    weight = torch.randn(4, 3)
    spoilt = torch.where(PADDING[..., None], x, torch.full_like(x, 1e6))
    for clean, other in zip(causal_convolution(x, weight, mask=PADDING), causal_convolution(spoilt, weight, mask=PADDING), strict=True):
        assert torch.equal(clean, other)


@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (4, 1), (9, 3)])
def test_gradients_over_many_blocks_are_those_of_a_plain_convolution(taps: int, dilation: int) -> None:
    x = torch.randn(2, 4000, 40, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(taps, 40, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 4000, 40, dtype=torch.float64)

    padded = torch.nn.functional.pad(x.transpose(1, 2), ((taps - 1) * dilation, 0))
    plain = torch.nn.functional.conv1d(padded, weight.flip(0).t()[:, None], groups=40, dilation=dilation).transpose(1, 2)
    output, _ = causal_convolution(x, weight, dilation=dilation)
    torch.testing.assert_close(output, plain, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(output, (x, weight), upstream), torch.autograd.grad(plain, (x, weight), upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_under_autocast_the_type_of_the_input_stays_and_weights_get_float32_gradients() -> None:
    x, weight = torch.randn(2, 300, 16), torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = causal_convolution(x.bfloat16(), weight)
    assert output.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(output.float().sum(), weight)
    (expected,) = torch.autograd.grad(causal_convolution(x, weight)[0].sum(), weight)
    torch.testing.assert_close(grad, expected, rtol=2e-2, atol=1.0)
