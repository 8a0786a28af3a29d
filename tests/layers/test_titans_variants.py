"""MAC, MAG and MAL against their definitions, a token at a time; and the layer without a state on long repeats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers import build_mixer
from genomem.layers.titans_lmm import TitansLMM
from genomem.layers.titans_mac import TitansMAC
from genomem.layers.titans_mag import TitansMAG
from genomem.layers.titans_mal import TitansMAL
from genomem.layers.titans_memory import Gates
from genomem.ops import reference

DIM, HEADS, TOKENS = 8, 2, 13
WIDTH = DIM // HEADS


def scrambled(name: str, **options: Any) -> Any:
    """Returns a layer in which nothing stands at its starting value, double precision."""
    torch.manual_seed(0)
    layer = build_mixer(name, DIM, heads=HEADS, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def rms(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def unit(x: Tensor) -> Tensor:
    """SiLU, then unit length a head: `[..., D]` to `[..., H, K]`."""
    x = (x * torch.sigmoid(x)).unflatten(-1, (HEADS, WIDTH))
    return x / x.norm(dim=-1, keepdim=True)


class SlowMemory:
    """The memory layer, a token at a time, on `genomem.ops.reference`."""

    def __init__(self, layer: TitansLMM) -> None:
        self.layer, self.written = layer, []
        start = layer.memory.start
        self.memory = torch.zeros(HEADS, WIDTH, WIDTH, dtype=torch.float64) if start is None else start
        self.state = (self.memory[None], None)

    def __call__(self, x: Tensor) -> Tensor:
        """Writes and reads one token `[D]`."""
        layer = self.layer
        self.written.append(layer.qkv.weight @ x)
        taps = [torch.ones_like(self.written[0])] if layer.convolution is None else layer.convolution.weight
        query, key, value = sum(tap * past for tap, past in zip(taps, reversed(self.written), strict=False)).chunk(3)
        step, *gates = torch.sigmoid(layer.gates.weight @ x + layer.gates.bias).unflatten(0, (-1, 1, 1, HEADS))
        bound = layer.momentum_bound.sigmoid() if layer.use_momentum else torch.zeros(HEADS, dtype=torch.float64)
        momentum = gates.pop(0) * bound if layer.use_momentum else None
        forget = gates.pop(0) if layer.use_forget else None
        kept = 1 if forget is None else 1 - forget
        step, momentum = kept * step * 2 * (1 - bound) ** 2 / (1 + bound), None if momentum is None else kept * momentum
        tokens = (unit(query)[None, None], unit(key)[None, None], F.silu(value).view(1, 1, HEADS, WIDTH))
        read, self.state = reference.linear_memory(*tokens, step_size=step, momentum=momentum, forget=forget, state=self.state)
        self.memory = self.state[0][0]
        read = rms(read[0, 0], layer.norm).flatten()
        read = read if layer.output_gate is None else read * F.silu(layer.output_gate.weight @ x)
        return layer.out.weight @ read


def remembered(layer: TitansLMM, hidden: Tensor) -> Tensor:
    """What the memory layer returns for one document, its learned tokens put in front."""
    before = [] if layer.persistent is None else list(layer.persistent.weight)
    memory = SlowMemory(layer)
    return torch.stack([memory(x) for x in (*before, *hidden)])[len(before) :]


def turn(x: Tensor, place: int) -> Tensor:
    """Returns heads `[H, K]` turned to their place: channels i and i + K/2 are a complex number."""
    half = WIDTH // 2
    angle = torch.tensor([place * 10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angle)
    return torch.cat([turned.real, turned.imag], dim=1)


def attend(query: Tensor, place: int, seen: list[tuple[int, Tensor]], before: list[Tensor], key_value: nn.Linear) -> Tensor:
    """Returns what one token finds, `[D]`, in seen tokens, each with its place, and in learned tokens, which have none."""
    query = query.view(HEADS, WIDTH)
    scores, values = [], []
    for at, x in [*seen, *((None, x) for x in before)]:
        key, value = (key_value.weight @ x).view(2, HEADS, WIDTH)
        score = (query * key if at is None else turn(query, place) * turn(key, at)).sum(1) / math.sqrt(WIDTH)
        scores.append(score)
        values.append(value)
    weights = torch.stack(scores).softmax(0)
    return (weights[..., None] * torch.stack(values)).sum(0).flatten()


def windowed(attention: nn.Module, persistent: nn.Embedding | None, hidden: Tensor) -> Tensor:
    """Sliding-window attention over one document, behind the learned tokens."""
    before = [] if persistent is None else list(persistent.weight)
    found = []
    for t in range(len(hidden)):
        near = [(s, hidden[s]) for s in range(max(0, t - attention.window + 1), t + 1)]
        found.append(attention.out.weight @ attend(attention.query.weight @ hidden[t], t, near, before, attention.key_value))
    return torch.stack(found)


def gated(layer: TitansMAG | TitansMAC, attended: Tensor, memory: Tensor) -> Tensor:
    gate = layer.gate
    return rms(attended, gate.attention_norm) * torch.sigmoid(rms(memory, gate.memory_norm)) @ gate.out.weight.T


ABLATIONS = [
    {},
    {"persistent": 0},
    {"momentum": False},
    {"forget": False},
    {"conv_kernel": 1},
    {"learned_start": True},
    {"persistent": 0, "momentum": False, "forget": False, "conv_kernel": 1},
]


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
@pytest.mark.parametrize("window", [3, 50])
def test_mag_equals_its_definition(hidden: Tensor, options: dict[str, Any], window: int) -> None:
    layer: TitansMAG = scrambled("titans_mag", window=window, **options)
    expected = gated(layer, windowed(layer.attention, layer.lmm.persistent, hidden), remembered(layer.lmm, hidden))
    torch.testing.assert_close(layer(hidden[None])[0][0], expected)


@pytest.mark.parametrize("options", [*ABLATIONS, {"output_gate": False}], ids=str)
@pytest.mark.parametrize("window", [3, 50])
def test_mal_equals_its_definition(hidden: Tensor, options: dict[str, Any], window: int) -> None:
    layer: TitansMAL = scrambled("titans_mal", window=window, **options)
    expected = windowed(layer.attention, layer.lmm.persistent, rms(remembered(layer.lmm, hidden), layer.norm))
    torch.testing.assert_close(layer(hidden[None])[0][0], expected)


def mac_by_loops(layer: TitansMAC, hidden: Tensor) -> Tensor:
    memory, outputs = SlowMemory(layer.lmm), []
    before = [] if layer.persistent is None else list(layer.persistent.weight)
    for t, x in enumerate(hidden):
        place = t % layer.segment
        if place == 0:
            frozen, seen = memory.memory, []
        query, asked = (layer.queries.weight @ x).chunk(2)
        recalled = torch.einsum("hk,hkv->hv", unit(asked), frozen).flatten()
        seen += [(place, recalled), (place, x)]
        found = layer.attended.weight @ attend(query, place, seen, before, layer.key_value)
        outputs.append(gated(layer, found, memory(rms(found, layer.write_norm))))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
@pytest.mark.parametrize("segment", [1, 4, 13, 50])
def test_mac_equals_its_definition(hidden: Tensor, options: dict[str, Any], segment: int) -> None:
    layer: TitansMAC = scrambled("titans_mac", segment=segment, **options)
    torch.testing.assert_close(layer(hidden[None])[0][0], mac_by_loops(layer, hidden))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mac_recalls_from_the_memory_as_it_was_when_the_segment_began(hidden: Tensor, depth: int) -> None:
    layer: TitansMAC = scrambled("titans_mac", segment=4, depth=depth, hidden_ratio=2, gradient_block=2)
    _, state = layer(hidden[None, :8])
    begun = state.lmm[1][0]
    for start, end in ((8, 9), (9, 12)):
        _, state = layer(hidden[None, start:end], state)
        for frozen, weights in zip(state.frozen, begun if isinstance(begun, tuple) else (begun,), strict=True):
            torch.testing.assert_close(frozen, weights)
    # Reading a frozen memory is what the memory layer reads when no token is written.
    query = torch.randn(1, 5, HEADS, WIDTH, dtype=torch.float64)
    gates = Gates(torch.zeros(1, 5, HEADS, dtype=torch.float64), None, None)
    read, _ = layer.lmm.memory(query, query, query, gates, state.lmm[1], mask=None, reset=None)
    torch.testing.assert_close(layer.lmm.memory.recall(query, layer.lmm.memory.current(state.lmm[1], query)), read)


def test_a_gate_at_one_half_leaves_attention_alone(hidden: Tensor) -> None:
    layer: TitansMAG = scrambled("titans_mag", window=5)
    nn.init.zeros_(layer.gate.memory_norm.weight)
    attended = windowed(layer.attention, layer.lmm.persistent, hidden)
    expected = 0.5 * rms(attended, layer.gate.attention_norm) @ layer.gate.out.weight.T
    output, _ = layer(hidden[None])
    torch.testing.assert_close(output[0], expected)
    nn.init.normal_(layer.lmm.out.weight)
    assert torch.equal(layer(hidden[None])[0], output)


@pytest.mark.parametrize("name", ["titans_mac", "titans_mag", "titans_mal"])
def test_every_switch_changes_what_is_computed_and_what_is_trained(name: str, hidden: Tensor) -> None:
    size = {"segment": 4} if name == "titans_mac" else {"window": 5}

    def run(**options: Any) -> tuple[set[str], Tensor]:
        layer = scrambled(name, **(size | options))
        return {key for key, _ in layer.named_parameters()}, layer(hidden[None])[0]

    names, output = run()
    learned = {key for key in names if "persistent" in key}
    assert len(learned) == 1
    more = {"lmm.memory.matrices.0", "lmm.memory.matrices.1"}
    switches = [
        ({"momentum": False}, {"lmm.momentum_bound"}, set()),
        ({"forget": False}, set(), set()),
        ({"conv_kernel": 1}, {"lmm.convolution.weight"}, set()),
        ({"persistent": 0}, learned, set()),
        ({"gradient_block": 3}, set(), set()),
        ({"learned_start": True}, set(), {"lmm.memory.start"}),
        ({"depth": 2}, set(), more),
        (dict.fromkeys(size, 3), set(), set()),
    ]
    if name == "titans_mal":
        switches.append(({"output_gate": False}, {"lmm.output_gate.weight"}, set()))
    for options, gone, new in switches:
        others, other_output = run(**options)
        assert (names - others, others - names) == (gone, new), options
        assert not torch.allclose(other_output, output), options


LONG = 20_000
REPEATS = {"no repeat": LONG, "homopolymer": 1, "period 2": 2, "period 6": 6, "171-mer": 171, "a run inside": 0}


@pytest.mark.slow
@pytest.mark.parametrize("period", REPEATS.values(), ids=REPEATS)
def test_long_repeats_give_bounded_outputs_and_gradients_with_full_segments(period: int) -> None:
    torch.manual_seed(0)
    layer = build_mixer("titans_mac", 16, heads=2, full_segments=True)
    hidden = torch.randn(1, period or LONG, 16).repeat(1, LONG // (period or LONG) + 1, 1)[:, :LONG]
    if period == 0:
        hidden[:, 5_000:15_000] = hidden[:, :1]
    hidden.requires_grad_()
    output, _ = layer(hidden)
    assert output.abs().max() < 20
    output.square().mean().backward()
    for key, tensor in [("hidden", hidden), *layer.named_parameters()]:
        assert tensor.grad.isfinite().all(), key
        assert tensor.grad.norm() < 10, key


TITANS = {
    "titans_lmm": {"persistent": 2},
    "titans_lmm, blocks": {"gradient_block": 16},
    "titans_lmm, deep": {"depth": 2},
    "titans_mac": {},
    "titans_mac, deep": {"depth": 2},
    "titans_mag": {"window": 64},
    "titans_mal": {"window": 64},
}


@pytest.mark.parametrize("name", TITANS)
def test_mixed_precision_stays_close_to_full(name: str) -> None:
    torch.manual_seed(0)
    layer = build_mixer(name.partition(",")[0], 16, heads=2, **TITANS[name])
    hidden = torch.randn(2, 300, 16)
    reset = torch.zeros(2, 300, dtype=torch.bool)
    reset[:, 0], reset[0, 140] = True, True
    expected, _ = layer(hidden, reset=reset)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, state = layer(hidden[:, :111], reset=reset[:, :111])
        second, _ = layer(hidden[:, 111:], state, reset=reset[:, 111:])
    output = torch.cat([first, second], dim=1).float()
    assert (output - expected).norm() < 0.05 * expected.norm()
