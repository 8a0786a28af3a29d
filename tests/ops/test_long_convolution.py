"""The long convolution against the sum that defines it, in outputs, histories and gradients, and its causality to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genomem.ops import long_convolution
from genomem.ops.convolution import causal_convolution
from genomem.ops.long_convolution import long_convolution as convolve

BATCH, DIM = 2, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=["matrices", "FFT", "both"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    limits = {"matrices": 1 << 40, "FFT": 0, "both": 64}
    monkeypatch.setattr(long_convolution, "_LARGEST_MATRIX", limits[request.param])
    return request.param


def make_inputs(tokens: int, taps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * taps + tokens)
    x = torch.randn(BATCH, tokens, DIM, generator=generator, dtype=torch.float64)
    return x, torch.randn(taps, DIM, generator=generator, dtype=torch.float64)


def by_loops(x: Tensor, taps: Tensor, mask: Tensor, reset: Tensor) -> Tensor:
    """Returns the sum over the real tokens of each document, one token after the other."""
    output = []
    for row in range(BATCH):
        past: list[Tensor] = []
        for t in range(x.shape[1]):
            if not mask[row, t]:
                output.append(torch.zeros(DIM, dtype=x.dtype))
                continue
            past = [x[row, t]] if reset[row, t] else [x[row, t], *past]
            output.append(sum(tap * seen for tap, seen in zip(taps, past, strict=False)))
    return torch.stack(output).view_as(x)


@pytest.mark.parametrize("tokens", [1, 2, 13, 64, 65])
@pytest.mark.parametrize("taps", [1, 2, 17, 64, 200])
@pytest.mark.parametrize("flags", [False, True], ids=["plain", "padded and packed"])
def test_outputs_and_gradients_equal_the_sum(form: str, tokens: int, taps: int, flags: bool) -> None:
    x, filters = (part.requires_grad_() for part in make_inputs(tokens, taps))
    drawn = torch.rand(2, BATCH, tokens, generator=torch.Generator().manual_seed(tokens))
    mask, reset = (drawn[0] > 0.3, drawn[1] > 0.9) if flags else (torch.ones(BATCH, tokens, dtype=torch.bool), drawn[1] > 2)
    actual, _ = convolve(x, filters, mask=mask, reset=reset) if flags else convolve(x, filters)
    expected = by_loops(x, filters, mask, reset)
    torch.testing.assert_close(actual, expected, **CLOSE)
    weights = torch.randn(actual.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    grads = (torch.autograd.grad((part * weights).sum(), [x, filters]) for part in (actual, expected))
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, **CLOSE)


def test_a_thousand_tokens_equal_the_short_convolution(form: str) -> None:
    x, filters = make_inputs(1000, 90)
    flags = {"reset": torch.rand(BATCH, 1000, generator=torch.Generator().manual_seed(4)) > 0.99}
    torch.testing.assert_close(convolve(x, filters, **flags)[0], causal_convolution(x, filters, **flags)[0], **CLOSE)


@pytest.mark.parametrize("borders", [(0,), (70,), (1, 1, 40), (30, 64), tuple(range(1, 70))], ids=str)
@pytest.mark.parametrize("taps", [1, 9, 100])
def test_parts_with_the_history_carried_equal_the_whole(form: str, borders: tuple[int, ...], taps: int) -> None:
    x, filters = make_inputs(70, taps)
    drawn = torch.rand(2, BATCH, 70, generator=torch.Generator().manual_seed(5))
    flags = {"mask": drawn[0] > 0.3, "reset": drawn[1] > 0.9}
    whole, _ = convolve(x, filters, **flags)
    pieces, history = [], None
    for start, end in zip((0, *borders), (*borders, 70), strict=True):
        piece, history = convolve(x[:, start:end], filters, history, **{name: flag[:, start:end] for name, flag in flags.items()})
        pieces.append(piece)
        assert history.shape[1] <= min(end, taps - 1)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rounding_errors_do_not_run_backwards(dtype: torch.dtype) -> None:
    x, filters = (part.to(dtype) for part in make_inputs(1000, 800))
    before, _ = convolve(x, filters)
    assert before.dtype == dtype
    for token in (1, 500, 513, 999):
        changed = x.clone()
        changed[:, token] += 1000.0
        after, _ = convolve(changed, filters)
        assert torch.equal(after[:, :token], before[:, :token])
        assert not torch.equal(after[:, token:], before[:, token:])


def test_low_precision_and_autocast(form: str) -> None:
    x, filters = (part.bfloat16() for part in make_inputs(300, 200))
    output, _ = convolve(x, filters)
    expected, _ = convolve(x.double(), filters.double())
    assert ((output.double() - expected).norm() / expected.norm()) < 4e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(convolve(x, filters)[0], output)
