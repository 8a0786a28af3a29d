"""The Titans layer against the equations of the paper, a token at a time, and its promises at the start of training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genomem.layers import titans_lmm
from genomem.layers.titans_lmm import LONGEST_HORIZON_BLOCKS, SHORTEST_HORIZON_BLOCKS, TitansLMM
from genomem.layers.titans_memory import DeepMemory
from genomem.ops.linear_memory import chunked_linear_memory

DIM = 6


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def answer(weights: list[Tensor], x: Tensor) -> Tensor:
    """What a memory says to one vector: a matrix, or a network with GELU between its matrices."""
    for matrix in weights[:-1]:
        x = x @ matrix
        x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x @ weights[-1]


def starts(layer: TitansLMM) -> list[Tensor]:
    """The weights of a memory at the start of a document, each `[H, in, out]`."""
    if isinstance(layer.memory, DeepMemory):
        return list(layer.memory.matrices)
    zeros = torch.zeros(layer.heads, layer.memory.width, layer.memory.width, dtype=torch.float64)
    return [zeros if layer.memory.start is None else layer.memory.start]


def by_the_paper(layer: TitansLMM, hidden: Tensor) -> Tensor:
    """The layer on one sequence `[T, D]`: project, convolve, SiLU, unit length; one gradient step a token; read, norm, gate, project.

    Gradients are those of autograd, at the memory before the token's gradient block.
    """
    tokens, width, block = len(hidden), DIM // layer.heads, layer.memory.gradient_block
    projected = hidden @ layer.qkv.weight.T
    if layer.convolution is not None:
        taps = layer.convolution.weight
        projected = torch.stack([sum(taps[j] * projected[t - j] for j in range(min(len(taps), t + 1))) for t in range(tokens)])
    query, key, value = silu(projected).chunk(3, dim=-1)
    gates = torch.sigmoid(hidden @ layer.gates.weight.T + layer.gates.bias).unflatten(-1, (-1, layer.heads))
    output = torch.zeros_like(hidden)
    for h in range(layer.heads):
        channels = slice(h * width, (h + 1) * width)
        memory = [matrix[h] for matrix in starts(layer)]
        surprise = [torch.zeros_like(matrix) for matrix in memory]
        for t in range(tokens):
            q, k = (x[t, channels] / x[t, channels].norm() for x in (query, key))
            forget = gates[t, -1, h] if layer.use_forget else 0.0
            bound = layer.momentum_bound[h].sigmoid() if layer.use_momentum else 0.0
            momentum = (1 - forget) * bound * gates[t, 1, h] if layer.use_momentum else 0.0
            if t % block == 0:
                at = [matrix.detach().requires_grad_() for matrix in memory]
            gradient = torch.autograd.grad(0.5 * (answer(at, k) - value[t, channels]).square().sum(), at)
            step = (1 - forget) * layer.memory.largest_step * (1 - bound) ** 2 / (1 + bound) * gates[t, 0, h] / block
            surprise = [momentum * s - step * g for s, g in zip(surprise, gradient, strict=True)]
            memory = [(1 - forget) * m + s for m, s in zip(memory, surprise, strict=True)]
            read = answer(memory, q)
            output[t, channels] = read / (read.square().mean() + 1e-6).sqrt() * layer.norm.weight
    if layer.output_gate is not None:
        output = output * silu(hidden @ layer.output_gate.weight.T)
    return (output @ layer.out.weight.T).detach()


def scrambled(**options: Any) -> TitansLMM:
    """Returns a layer in which nothing stands at its starting value, double precision; a deep memory is kept where its steps are stable."""
    torch.manual_seed(0)
    layer = TitansLMM(DIM, **options).double()
    for name, parameter in layer.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "matrices" in name else 1.0)
    return layer


@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "no momentum"])
@pytest.mark.parametrize("forget", [True, False], ids=["forgets", "never forgets"])
@pytest.mark.parametrize(("conv_kernel", "output_gate", "heads"), [(4, True, 2), (1, False, 3), (2, True, 1)])
@pytest.mark.parametrize(
    "memory",
    [
        {"chunk_size": 4},
        {"gradient_block": 3},
        {"chunk_size": 4, "learned_start": True},
        {"gradient_block": 3, "learned_start": True},
        {"depth": 2, "gradient_block": 1},
        {"depth": 3, "hidden_ratio": 2, "gradient_block": 4},
    ],
    ids=["linear", "linear in blocks", "learned start", "learned start in blocks", "deep", "deep in blocks"],
)
def test_equals_the_equations(
    momentum: bool, forget: bool, conv_kernel: int, output_gate: bool, heads: int, memory: dict[str, int]
) -> None:
    options = {"momentum": momentum, "forget": forget, "output_gate": output_gate}
    layer = scrambled(heads=heads, conv_kernel=conv_kernel, **options, **memory)
    hidden = torch.randn(2, 11, DIM, dtype=torch.float64)
    expected = torch.stack([by_the_paper(layer, row) for row in hidden])
    torch.testing.assert_close(layer(hidden)[0], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    "memory", [{}, {"learned_start": True}, {"depth": 2, "gradient_block": 4}], ids=["linear", "learned start", "deep"]
)
def test_persistent_tokens_stand_before_every_document(memory: dict[str, int]) -> None:
    layer = scrambled(heads=2, persistent=3, **memory)
    before, layer.persistent = layer.persistent.weight.detach(), None
    documents = [torch.randn(length, DIM, dtype=torch.float64) for length in (1, 7, 2, 5)]
    expected = [layer(torch.cat([before, document])[None])[0][0, 3:] for document in documents]
    layer.persistent = torch.nn.Embedding.from_pretrained(before)
    torch.testing.assert_close(layer(documents[1][None])[0][0], expected[1])
    # Two rows, two documents each, padding at the start, in the middle and at the end.
    hidden, reset = torch.zeros(2, 12, DIM, dtype=torch.float64), torch.zeros(2, 12, dtype=torch.bool)
    mask = torch.zeros_like(reset)
    places = [[(0, 0)], [(0, 2), (0, 3), *((0, t) for t in range(5, 10))], [(1, 0), (1, 1)], [(1, 4), *((1, t) for t in range(8, 12))]]
    for document, where in zip(documents, places, strict=True):
        rows, columns = (list(index) for index in zip(*where, strict=True))
        hidden[rows, columns], mask[rows, columns] = document, True
        reset[where[0]] = True
    output, _ = layer(hidden, mask=mask, reset=reset)
    for document, where in zip(expected, places, strict=True):
        torch.testing.assert_close(torch.stack([output[place] for place in where]), document)


def test_every_switch_changes_what_is_computed_and_what_is_trained() -> None:
    def run(**options: Any) -> tuple[set[str], Tensor, Tensor]:
        layer = scrambled(heads=2, **options)
        hidden = torch.linspace(-1, 1, 2 * 9 * DIM, dtype=torch.float64).cos().view(2, 9, DIM).requires_grad_()
        output, _ = layer(hidden)
        return {name for name, _ in layer.named_parameters()}, output, torch.autograd.grad(output.square().sum(), hidden)[0]

    names, output, gradient = run()
    more = {"memory.matrices.0", "memory.matrices.1"}
    for options, gone, new in (
        ({"momentum": False}, {"momentum_bound"}, set()),
        ({"forget": False}, set(), set()),
        ({"conv_kernel": 1}, {"convolution.weight"}, set()),
        ({"output_gate": False}, {"output_gate.weight"}, set()),
        ({"persistent": 2}, set(), {"persistent.weight"}),
        ({"gradient_block": 4}, set(), set()),
        ({"learned_start": True}, set(), {"memory.start"}),
        ({"depth": 2}, set(), more),
        ({"depth": 2, "hidden_ratio": 1}, set(), more),
    ):
        others, other_output, other_gradient = run(**options)
        assert (names - others, others - names) == (gone, new), options
        assert not torch.allclose(other_output, output), options
        assert not torch.allclose(other_gradient, gradient), options


def test_names_and_sizes_of_the_weights_with_default_options() -> None:
    layer = TitansLMM(8, heads=2)
    assert {name: tuple(weight.shape) for name, weight in layer.state_dict().items()} == {
        "momentum_bound": (2,),
        "qkv.weight": (24, 8),
        "convolution.weight": (4, 24),
        "gates.weight": (6, 8),
        "gates.bias": (6,),
        "norm.weight": (4,),
        "output_gate.weight": (8, 8),
        "out.weight": (8, 8),
    }


@pytest.mark.parametrize("options", [{}, {"persistent": 3}, {"gradient_block": 8}, {"depth": 2, "gradient_block": 8}], ids=str)
def test_long_sequences_in_pieces_are_the_whole(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = scrambled(heads=2, chunk_size=4, **options)
    hidden = torch.randn(2, 61, DIM, dtype=torch.float64, requires_grad=True)
    flags = {"mask": torch.rand(2, 61) < 0.9, "reset": torch.rand(2, 61) < 0.05}
    with torch.no_grad():
        _, before = layer(hidden[:, :5])
    found = []
    for elements in (10**9, 2 * 20 * DIM):
        monkeypatch.setattr(titans_lmm, "PIECE_ELEMENTS", elements)
        output, state = layer(hidden, before, **flags)
        found.append([output, state[1][0], *torch.autograd.grad(output.square().sum(), [hidden, *layer.parameters()])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)


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
@pytest.mark.parametrize("memory", [{}, {"gradient_block": 16}, {"depth": 2}], ids=["linear", "linear in blocks", "deep"])
def test_the_memory_stays_bounded_with_the_largest_steps_and_the_longest_momentum(
    period: int, forget: bool, memory: dict[str, int]
) -> None:
    torch.manual_seed(0)
    layer = TitansLMM(16, heads=2, forget=forget, **memory)
    with torch.no_grad():
        layer.gates.bias[:4], layer.momentum_bound[:] = 4.0, 4.0
        hidden = torch.randn(1, period, 16).repeat(1, 2000 // period, 1)
        output, (_, state) = layer(hidden)
    assert output.isfinite().all()
    for part in state[:2]:
        assert all(matrix.norm() < 20 for matrix in (part if isinstance(part, tuple) else (part,)))


def swing(tokens: int) -> Tensor:
    """Returns runs of 1 to 29 tokens of one of three keys, `[1, T, 1, 3]`: two of them orthogonal, one between them."""
    keys = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0]], dtype=torch.float64)
    runs = torch.randint(3, (tokens,)).repeat_interleave(torch.randint(1, 30, (tokens,)))
    return keys[runs[:tokens]].view(1, tokens, 1, 3)


@pytest.mark.parametrize("most", [0.3, 0.9, 0.98])
@pytest.mark.parametrize("forgets", [0.0, 0.001, 0.5])
def test_no_gates_swing_the_memory_above_its_bound(most: float, forgets: float) -> None:
    """The bound of docs/decisions/0006 with r = 1.9; values are zero, so that what is left is the difference of two memories."""
    key, r = swing(3000), 1.9
    start = torch.randn(2, 1, 1, 3, 3, dtype=torch.float64)
    bound = (1 + math.sqrt(r * most / ((1 + most) * (2 - r)))) * (start[0].norm() + most / (1 - most) * start[1].norm())
    for share in (torch.ones(3000), torch.rand(3000), torch.randint(2, (3000,)).double()):
        keep = 1 - forgets * torch.rand(3000, dtype=torch.float64)
        gates = {"step_size": keep * r * (1 - most) ** 2 / (1 + most), "momentum": keep * most * share, "forget": 1 - keep}
        gates = {name: gate.view(1, -1, 1).double() for name, gate in gates.items()}
        # Three queries of each token are the three rows of the memory after it.
        for row in torch.eye(3, dtype=torch.float64):
            query = row.expand_as(key)
            read, _ = chunked_linear_memory(query, key, torch.zeros_like(key), state=(start[0], start[1]), **gates)
            assert read.norm(dim=-1).max() <= bound


def test_steps_of_one_minus_momentum_swing_it_without_end() -> None:
    """What the bound is for: the same memory, with the step that its momentum seems to ask for."""
    key = torch.eye(3, dtype=torch.float64)[([0] * 6 + [1] * 17) * 100].view(1, -1, 1, 3)
    momentum = torch.full(key.shape[:3], 0.9, dtype=torch.float64)
    start = (torch.eye(3, dtype=torch.float64)[None, None], None)
    read, _ = chunked_linear_memory(key, key, torch.zeros_like(key), step_size=0.8 * (1 - momentum), momentum=momentum, state=start)
    assert read.norm(dim=-1).max() > 1e15


@pytest.mark.parametrize("block", [1, 8])
def test_heads_start_with_horizons_spread_over_the_range(block: int) -> None:
    layer = TitansLMM(8, heads=4, gradient_block=block)
    step, momentum, forget = layer._gates(torch.zeros(1, 1, 8))
    keep = 1 - forget
    torch.testing.assert_close(momentum, 0.5 * 0.9 * keep)
    # Without forgetting, a write adds up to step / (1 - momentum).
    torch.testing.assert_close(step, 0.5 * (1 - 0.5 * 0.9) / block * keep)
    horizon = 1 / forget.flatten() / block
    assert horizon[0].item() == pytest.approx(SHORTEST_HORIZON_BLOCKS, rel=1e-3)
    assert horizon[-1].item() == pytest.approx(LONGEST_HORIZON_BLOCKS, rel=1e-3)
    ratios = horizon[1:] / horizon[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(3), rtol=1e-3, atol=0)
