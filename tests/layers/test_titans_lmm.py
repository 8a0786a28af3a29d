"""The Titans layer against the equations of the paper, a token at a time, and its promises at the start of training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genomem.layers.titans_lmm import LONGEST_HORIZON_TOKENS, SHORTEST_HORIZON_TOKENS, TitansLMM

DIM = 6


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def by_the_paper(layer: TitansLMM, hidden: Tensor) -> Tensor:
    """The layer on one sequence `[T, D]`: project, convolve, SiLU, unit length; one gradient step a token; read, norm, gate, project."""
    tokens, width = len(hidden), DIM // layer.heads
    projected = hidden @ layer.qkv.weight.T
    if layer.convolution is not None:
        taps = layer.convolution.weight
        projected = torch.stack([sum(taps[j] * projected[t - j] for j in range(min(len(taps), t + 1))) for t in range(tokens)])
    query, key, value = silu(projected).chunk(3, dim=-1)
    gates = torch.sigmoid(hidden @ layer.gates.weight.T + layer.gates.bias).unflatten(-1, (-1, layer.heads))
    output = torch.zeros_like(hidden)
    for h in range(layer.heads):
        channels = slice(h * width, (h + 1) * width)
        memory, surprise = torch.zeros(2, width, width, dtype=hidden.dtype)
        for t in range(tokens):
            q, k = (x[t, channels] / x[t, channels].norm() for x in (query, key))
            momentum = gates[t, 1, h] if layer.use_momentum else 0.0
            forget = gates[t, -1, h] if layer.use_forget else 0.0
            gradient = torch.outer(k, k @ memory - value[t, channels])
            surprise = momentum * surprise - (1 - momentum) * gates[t, 0, h] * gradient
            memory = (1 - forget) * memory + surprise
            read = q @ memory
            output[t, channels] = read / (read.square().mean() + 1e-6).sqrt() * layer.norm.weight
    if layer.output_gate is not None:
        output = output * silu(hidden @ layer.output_gate.weight.T)
    return output @ layer.out.weight.T


@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "no momentum"])
@pytest.mark.parametrize("forget", [True, False], ids=["forgets", "never forgets"])
@pytest.mark.parametrize(("conv_kernel", "output_gate", "heads"), [(4, True, 2), (1, False, 3), (2, True, 1)])
def test_equals_the_equations(momentum: bool, forget: bool, conv_kernel: int, output_gate: bool, heads: int) -> None:
    torch.manual_seed(0)
    layer = TitansLMM(DIM, heads=heads, conv_kernel=conv_kernel, momentum=momentum, forget=forget, output_gate=output_gate, chunk_size=4)
    for parameter in layer.double().parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(2, 11, DIM, dtype=torch.float64)
    expected = torch.stack([by_the_paper(layer, row) for row in hidden])
    torch.testing.assert_close(layer(hidden)[0], expected, rtol=1e-9, atol=1e-10)


def test_chunk_size_changes_nothing_but_rounding() -> None:
    hidden = torch.randn(2, 50, DIM, dtype=torch.float64)
    outputs = []
    for chunk_size in (1, 7, 64):
        torch.manual_seed(0)
        outputs.append(TitansLMM(DIM, heads=2, chunk_size=chunk_size).double()(hidden)[0])
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("period", [1, 5, 20, 2000], ids=["one base", "satellite of 5", "satellite of 20", "no repeat"])
@pytest.mark.parametrize("forget", [True, False], ids=["forgets", "never forgets"])
def test_the_memory_stays_bounded_with_the_largest_steps_and_the_longest_momentum(period: int, forget: bool) -> None:
    torch.manual_seed(0)
    layer = TitansLMM(16, heads=2, forget=forget)
    with torch.no_grad():
        layer.gates.bias[:4] = 4.0
    hidden = torch.randn(1, period, 16).repeat(1, 2000 // period, 1)
    output, (_, (memory, surprise)) = layer(hidden)
    assert output.isfinite().all()
    assert memory.norm() < 20
    assert surprise.norm() < 20


def test_heads_start_with_horizons_spread_over_the_range() -> None:
    layer = TitansLMM(8, heads=4)
    step, momentum, forget = layer._gates(torch.zeros(1, 1, 8))
    torch.testing.assert_close(momentum, torch.full_like(momentum, 0.5))
    torch.testing.assert_close(step, torch.full_like(step, 0.25))  # (1 - momentum) * 1/2
    horizon = 1 / forget.flatten()
    assert horizon[0].item() == pytest.approx(SHORTEST_HORIZON_TOKENS, rel=1e-3)
    assert horizon[-1].item() == pytest.approx(LONGEST_HORIZON_TOKENS, rel=1e-3)
    ratios = horizon[1:] / horizon[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(3), rtol=1e-3, atol=0)
