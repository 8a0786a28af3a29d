"""MAC as in the paper, with full segments, against a loop over segments; and what of the mixer contract holds for it.

It is no row of the contract test: a token sees those behind it in its segment, so that the layer is not causal, and a segment cannot be
split, so that there is no state to carry.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers import build_mixer
from genomem.layers.titans_mac import TitansMAC
from genomem.ops import reference

DIM, HEADS, TOKENS, SEGMENT = 8, 2, 13, 5
WIDTH = DIM // HEADS
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
OPTIONS = [
    {},
    {"persistent": 0},
    {"momentum": False, "forget": False, "conv_kernel": 1},
    {"learned_start": True},
    {"gradient_block": 3},
    {"depth": 2, "hidden_ratio": 2, "gradient_block": 4},
]


def scrambled(**options: Any) -> TitansMAC:
    """Returns a layer in which nothing stands at its starting value, double precision."""
    torch.manual_seed(0)
    layer = build_mixer("titans_mac", DIM, **({"heads": HEADS, "segment": SEGMENT, "persistent": 2, "full_segments": True} | options))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert isinstance(layer, TitansMAC)
    return layer.double()


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def rms(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def heads(x: Tensor) -> Tensor:
    """`[T, D]` to `[T, H, K]`."""
    return x.unflatten(-1, (HEADS, WIDTH))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def answer(memory: tuple[Tensor, ...], query: Tensor) -> Tensor:
    """What the memory says to `[T, H, K]`: matrices with GELU between them."""
    for matrix in memory[:-1]:
        query = F.gelu(torch.einsum("thk,hkv->thv", query, matrix))
    return torch.einsum("thk,hkv->thv", query, memory[-1])


def turn(x: Tensor, places: Tensor) -> Tensor:
    """Turns `[T, H, K]` to their places: channels i and i + K/2 are a complex number."""
    half = WIDTH // 2
    angle = places[:, None, None] * torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def attended(layer: TitansMAC, query: Tensor, recalled: Tensor, segment: Tensor) -> Tensor:
    """Softmax attention of a whole segment over `[P || h || S]`, without any mask."""
    learned = segment[:0] if layer.persistent is None else layer.persistent.weight
    places = torch.arange(len(segment))
    key, value = zip(*((x @ layer.key_value.weight.T).chunk(2, dim=-1) for x in (learned, recalled, segment)), strict=True)
    scores = [torch.einsum("thk,shk->hts", heads(query), heads(key[0]))]
    scores += [torch.einsum("thk,shk->hts", turn(heads(query), places), turn(heads(x), places)) for x in key[1:]]
    weights = (torch.cat(scores, dim=-1) / math.sqrt(WIDTH)).softmax(-1)
    return torch.einsum("hts,shv->thv", weights, heads(torch.cat(value))).flatten(1) @ layer.attended.weight.T


def by_segments(layer: TitansMAC, hidden: Tensor) -> Tensor:
    """The layer on one sequence `[T, D]`: retrieve, attend, write, read what has been written, segment by segment."""
    lmm = layer.lmm
    start = tuple(lmm.memory.matrices) if hasattr(lmm.memory, "matrices") else (lmm.memory.initial(hidden[None])[0][0],)
    state = (tuple(matrix[None] for matrix in start), None)
    projected, outputs = hidden.new_zeros(0, 3 * DIM), []
    for segment in hidden.split(layer.segment):
        query, asked = (segment @ layer.queries.weight.T).chunk(2, dim=-1)
        recalled = answer(tuple(matrix[0] for matrix in state[0]), unit(heads(F.silu(asked)))).flatten(1)
        found = attended(layer, query, recalled, segment)
        written = rms(found, layer.write_norm)
        projected = torch.cat([projected, written @ lmm.qkv.weight.T])
        taps = torch.ones(1, 1) if lmm.convolution is None else lmm.convolution.weight
        convolved = sum(tap * F.pad(projected, (0, 0, back, 0))[: len(projected)] for back, tap in enumerate(taps))
        q, k, v = (heads(x) for x in F.silu(convolved[-len(segment) :]).chunk(3, dim=-1))
        gates = list(torch.sigmoid(written @ lmm.gates.weight.T + lmm.gates.bias).split(HEADS, dim=-1))
        step = gates.pop(0)[None] / lmm.memory.gradient_block
        bound = lmm.momentum_bound.sigmoid() if lmm.use_momentum else torch.zeros(HEADS, dtype=torch.float64)
        momentum = gates.pop(0)[None] * bound if lmm.use_momentum else None
        forget = gates.pop(0)[None] if lmm.use_forget else None
        kept = 1 if forget is None else 1 - forget
        _, state = reference.neural_memory(
            unit(q)[None],
            unit(k)[None],
            v[None],
            weights=start,
            step_size=kept * step * lmm.memory.largest_step * (1 - bound) ** 2 / (1 + bound),
            momentum=None if momentum is None else kept * momentum,
            forget=forget,
            state=state,
            gradient_block=lmm.memory.gradient_block,
            residual=False,
        )
        read = answer(tuple(matrix[0] for matrix in state[0]), unit(q))
        remembered = rms(read, lmm.norm).flatten(1) @ lmm.out.weight.T
        gate = layer.gate
        outputs.append(rms(found, gate.attention_norm) * torch.sigmoid(rms(remembered, gate.memory_norm)) @ gate.out.weight.T)
    return torch.cat(outputs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("segment", [1, SEGMENT, TOKENS, 50])
def test_equals_the_loop_over_segments(hidden: Tensor, options: dict[str, Any], segment: int) -> None:
    layer = scrambled(segment=segment, **options)
    torch.testing.assert_close(layer(hidden)[0], torch.stack([by_segments(layer, row) for row in hidden]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_token_changes_its_whole_segment_and_all_later_ones_and_none_before(hidden: Tensor, options: dict[str, Any]) -> None:
    layer = scrambled(**options)
    output, _ = layer(hidden)
    for token in range(TOKENS):
        changed = hidden.clone()
        changed[:, token] += 1.0
        same = (layer(changed)[0] == output).all(-1)
        first = token // SEGMENT * SEGMENT
        assert same[:, :first].all(), token
        assert not same[:, first:].any(), token


def test_segments_of_one_token_are_those_of_the_causal_form(hidden: Tensor) -> None:
    causal = scrambled(segment=1, full_segments=False)
    torch.testing.assert_close(scrambled(segment=1)(hidden)[0], causal(hidden)[0], **CLOSE)
    assert not torch.allclose(scrambled()(hidden)[0], scrambled(full_segments=False)(hidden)[0])


def test_both_forms_have_the_same_weights() -> None:
    weights = []
    for full_segments in (False, True):
        torch.manual_seed(0)
        weights.append(build_mixer("titans_mac", DIM, full_segments=full_segments).state_dict())
    causal, full = weights
    assert list(causal) == list(full)
    assert all(torch.equal(causal[name], full[name]) for name in causal)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_anywhere_changes_nothing_and_segments_count_real_tokens(hidden: Tensor, options: dict[str, Any]) -> None:
    layer = scrambled(**options)
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[0, [0, 1, 6, 12]] = mask[1, 3:] = False
    output, _ = layer(hidden, mask=mask)
    assert not output[~mask].any()
    spoilt = torch.where(mask[..., None], hidden, torch.full_like(hidden, 100.0))
    assert torch.equal(layer(spoilt, mask=mask)[0], output)
    for row in range(2):
        torch.testing.assert_close(output[row][mask[row]], layer(hidden[row][mask[row]][None])[0][0], **CLOSE)
    nothing = torch.zeros_like(mask)
    assert not layer(hidden, mask=nothing)[0].any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_reset_equals_a_fresh_start(hidden: Tensor, options: dict[str, Any]) -> None:
    layer = scrambled(**options)
    reset = torch.zeros(2, TOKENS, dtype=torch.bool)
    starts = [[0, 2, 9], [0, 7, 8]]
    for row, places in enumerate(starts):
        reset[row, places] = True
    output, _ = layer(hidden, reset=reset)
    for row, places in enumerate(starts):
        for start, end in zip(places, [*places[1:], TOKENS], strict=True):
            torch.testing.assert_close(output[row, start:end], layer(hidden[row : row + 1, start:end])[0][0], **CLOSE)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_reach_every_parameter(hidden: Tensor, options: dict[str, Any]) -> None:
    layer = scrambled(**options)
    names, values = zip(*layer.named_parameters(), strict=True)
    mask = torch.ones(1, 5, dtype=torch.bool)
    mask[0, 2] = False

    def run(hidden: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (hidden,), {"mask": mask})[0]

    layer.segment = 3
    assert torch.autograd.gradcheck(run, (hidden[:1, :5].clone().requires_grad_(), *values), fast_mode=True)
    run(hidden[:1, :5], *values).square().sum().backward()
    assert all(parameter.grad.any() for parameter in values)


def test_mixed_precision_stays_close_to_full() -> None:
    torch.manual_seed(0)
    layer = build_mixer("titans_mac", 16, heads=2, segment=64, full_segments=True)
    hidden, mask = torch.randn(2, 300, 16), torch.rand(2, 300) > 0.2
    expected, _ = layer(hidden, mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = layer(hidden, mask=mask)
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


def test_there_is_no_state_to_carry(hidden: Tensor) -> None:
    layer = scrambled()
    _, state = layer(hidden)
    assert state is None
    assert layer.state_bytes(TOKENS) == 0
    _, carried = scrambled(full_segments=False)(hidden)
    with pytest.raises(ValueError, match="titans_mac with full_segments reads whole sequences: it takes no state"):
        layer(hidden, carried)
    assert layer(hidden[:, :0])[0].shape == (2, 0, DIM)
