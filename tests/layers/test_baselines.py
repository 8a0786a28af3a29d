"""The baselines that are no linear memory, each against its definition: one token after the other, from the paper's equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers import build_mixer
from genomem.layers.block_sparse_attention import BlockSparseAttention
from genomem.layers.hyena import Hyena
from genomem.layers.lstm import LSTM
from genomem.layers.mamba import Mamba
from genomem.layers.rmt import RMT
from genomem.layers.samba import Samba

DIM, HEADS, TOKENS = 8, 2, 29
WIDTH = DIM // HEADS


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scrambled(name: str, **options: Any) -> Any:
    """Returns a mixer whose parameters are all random, so that none of them is hidden by its start."""
    torch.manual_seed(0)
    mixer = build_mixer(name, DIM, **options).double()
    for key, parameter in mixer.named_parameters():
        nn.init.normal_(parameter, std=0.1 if "filter.hidden" in key else 0.5)
    return mixer


def rms(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def turn(x: Tensor, place: int) -> Tensor:
    """Turns the pairs of channels of `[H, K]`, as complex numbers."""
    half = WIDTH // 2
    angle = torch.tensor([place * 10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    pairs = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angle)
    return torch.cat([pairs.real, pairs.imag], dim=1)


def attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Returns what one token finds, `[D]`, from turned queries and keys `[H, K]`."""
    scores = torch.stack([(query * key).sum(1) / math.sqrt(WIDTH) for key in keys])
    return (scores.softmax(0)[..., None] * torch.stack(values)).sum(0).flatten()


def heads(x: Tensor) -> tuple[Tensor, ...]:
    """Returns query, key and value of one token, `[H, K]` each."""
    return x.view(3, HEADS, WIDTH).unbind(0)


def mamba_by_loops(layer: Mamba, hidden: Tensor) -> Tensor:
    channels, size = layer.A_log.shape
    taps, state, past, outputs = layer.convolution.weight, torch.zeros(channels, size, dtype=torch.float64), [], []
    for x in hidden:
        u, z = (layer.value_gate.weight @ x).split(channels)
        past = [u, *past]
        u = silu(sum(tap * seen for tap, seen in zip(taps, past, strict=False)) + layer.bias)
        low, B, C = (layer.selection.weight @ u).split([layer.step_size.in_features, size, size])
        delta = torch.log(1 + torch.exp(layer.step_size.weight @ low + layer.step_size.bias))
        A = -torch.exp(layer.A_log)
        state = torch.exp(torch.diag(delta) @ A) * state + torch.outer(delta * u, B)
        outputs.append(layer.out.weight @ ((state @ C + layer.D * u) * silu(z)))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", [{}, {"state_size": 1, "expand": 1}, {"conv_kernel": 1}, {"state_size": 5, "expand": 3}], ids=str)
def test_mamba_equals_its_definition(hidden: Tensor, options: dict[str, Any]) -> None:
    layer: Mamba = scrambled("mamba", **options)
    torch.testing.assert_close(layer(hidden[None])[0][0], mamba_by_loops(layer, hidden))


def test_mamba_starts_with_steps_and_decays_of_many_sizes() -> None:
    torch.manual_seed(0)
    layer = Mamba(64)
    steps = F.softplus(layer.step_size.bias)
    assert 0.001 <= steps.min() < 0.002
    assert 0.05 < steps.max() <= 0.1
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17).expand(128, -1))


def test_mamba_equals_the_mixer_of_transformers(hidden: Tensor) -> None:
    """The same weights in both, without the authors' kernels: outputs and the gradients of the input."""
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba", reason="needs transformers, which is not installed")
    from transformers import MambaConfig

    config = MambaConfig(hidden_size=DIM, state_size=5, expand=2, conv_kernel=4, time_step_rank=1, num_hidden_layers=1, vocab_size=4)
    layer, other = scrambled("mamba", state_size=5), modeling.MambaMixer(config, layer_idx=0).double().eval()
    with torch.no_grad():
        other.in_proj.weight.copy_(layer.value_gate.weight)
        other.conv1d.weight.copy_(layer.convolution.weight.flip(0).t()[:, None])
        other.conv1d.bias.copy_(layer.bias)
        other.x_proj.weight.copy_(layer.selection.weight)
        other.dt_proj.load_state_dict(layer.step_size.state_dict())
        other.A_log.copy_(layer.A_log)
        other.D.copy_(layer.D)
        other.out_proj.weight.copy_(layer.out.weight)
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in other.parameters())
    inputs = [hidden[None].clone().requires_grad_() for _ in range(2)]
    outputs = [layer(inputs[0])[0], other(inputs[1])]
    # It takes A, D and the bias of the step in float32 whatever the type of the model.
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [1, 4, 50])
def test_samba_equals_its_definition(hidden: Tensor, window: int) -> None:
    layer: Samba = scrambled("samba", heads=HEADS, window=window, state_size=3)
    remembered = mamba_by_loops(layer.mamba, hidden)
    keys, values, outputs = [], [], []
    for t, (x, m) in enumerate(zip(hidden, remembered, strict=True)):
        query, key, value = heads(layer.attention.qkv.weight @ rms(x + m, layer.norm))
        keys.append(turn(key, t))
        values.append(value)
        outputs.append(m + layer.attention.out.weight @ attend(turn(query, t), keys[-window:], values[-window:]))
    torch.testing.assert_close(layer(hidden[None])[0][0], torch.stack(outputs))


def tap(layer: Hyena, distance: int) -> Tensor:
    """Returns what every channel hears from so many tokens back, `[D]`."""
    network, share = layer.filter, distance / layer.longest_bp
    features = [share, *(math.cos(2 * math.pi * n * share) for n in (1, 2)), *(math.sin(2 * math.pi * n * share) for n in (1, 2))]
    x = torch.tensor(features, dtype=torch.float64)
    for matrix in network.hidden:
        x = torch.sin(network.frequency * (matrix.weight @ x + matrix.bias))
    slow, fast = math.log(100) / 1.5, math.log(100) / 0.3
    rates = torch.tensor([slow + (fast - slow) * channel / (DIM - 1) for channel in range(DIM)], dtype=torch.float64)
    return (network.taps.weight @ x) * torch.sqrt(2 * rates / layer.longest_bp) * torch.exp(-rates * share)


@pytest.mark.parametrize("longest_bp", [1, 7, 4096])
def test_hyena_equals_its_definition(hidden: Tensor, longest_bp: int) -> None:
    layer: Hyena = scrambled("hyena", longest_bp=longest_bp)
    projected, inputs, outputs = [], [], []
    for x in hidden:
        projected = [layer.projections.weight @ x, *projected][:3]
        value, before, after = sum(weight * p for weight, p in zip(layer.convolution.weight, projected, strict=False)).chunk(3)
        inputs = [before * value, *inputs][:longest_bp]
        heard = sum(tap(layer, distance) * u for distance, u in enumerate(inputs))
        outputs.append(layer.out.weight @ (after * (heard + layer.skip * inputs[0])))
    torch.testing.assert_close(layer(hidden[None])[0][0], torch.stack(outputs))


def test_hyena_hears_nothing_beyond_its_filter(hidden: Tensor) -> None:
    layer: Hyena = scrambled("hyena", longest_bp=7)
    changed = hidden.clone()
    changed[10] += 1.0
    # Two more tokens by the short convolution.
    same = torch.isclose(layer(changed[None])[0], layer(hidden[None])[0], rtol=0, atol=1e-13).all(-1)[0]
    assert same.nonzero().flatten().tolist() == [*range(10), *range(10 + 7 + 2, TOKENS)]


def test_hyena_starts_with_an_output_of_the_scale_of_its_input() -> None:
    torch.manual_seed(0)
    for longest_bp in (64, 4096):
        taps = Hyena(32, longest_bp=longest_bp).filter(longest_bp)
        assert 0.1 < taps.square().sum(0).sqrt().mean() < 1.0


def rmt_by_loops(layer: RMT, hidden: Tensor) -> Tensor:
    memory, outputs = list(layer.memory.weight), []
    for segment in hidden.split(layer.segment):
        z = [heads(layer.qkv.weight @ x) for x in (*memory, *segment, *memory)]
        keys = [turn(key, place) for place, (_, key, _) in enumerate(z)]
        values = [value for _, _, value in z]
        found = [layer.out.weight @ attend(turn(z[t][0], t), keys[: t + 1], values[: t + 1]) for t in range(len(z))]
        outputs += found[len(memory) : len(memory) + len(segment)]
        memory = [rms(m + y, layer.norm) for m, y in zip(memory, found[-len(memory) :], strict=True)]
    return torch.stack(outputs)


@pytest.mark.parametrize("segment", [1, 4, 29, 50])
@pytest.mark.parametrize("memory_tokens", [1, 3])
def test_rmt_equals_its_definition(hidden: Tensor, segment: int, memory_tokens: int) -> None:
    layer: RMT = scrambled("rmt", heads=HEADS, segment=segment, memory_tokens=memory_tokens)
    torch.testing.assert_close(layer(hidden[None])[0][0], rmt_by_loops(layer, hidden))


def test_rmt_remembers_earlier_segments_by_its_memory_alone(hidden: Tensor) -> None:
    layer: RMT = scrambled("rmt", heads=HEADS, segment=5)
    _, state = layer(hidden[None, :10])
    assert not torch.allclose(state.memory, layer.memory.weight)
    following, _ = layer(hidden[None, 10:], state)
    spoilt = state._replace(keys=torch.full_like(state.keys, 7.0), values=torch.full_like(state.values, 7.0))
    assert torch.equal(layer(hidden[None, 10:], spoilt)[0], following)
    assert not torch.allclose(layer(hidden[None, 10:])[0], following)


def test_lstm_equals_its_definition(hidden: Tensor) -> None:
    layer: LSTM = scrambled("lstm")
    network = layer.lstm
    h = c = torch.zeros(DIM, dtype=torch.float64)
    outputs = []
    for x in hidden:
        drive = network.weight_ih_l0 @ x + network.bias_ih_l0 + network.weight_hh_l0 @ h + network.bias_hh_l0
        enter, forget, new, leave = drive.chunk(4)
        c = c / (1 + torch.exp(-forget)) + torch.tanh(new) / (1 + torch.exp(-enter))
        h = torch.tanh(c) / (1 + torch.exp(-leave))
        outputs.append(layer.out.weight @ h)
    output, state = layer(hidden[None])
    torch.testing.assert_close(output[0], torch.stack(outputs))
    torch.testing.assert_close(state, (h[None], c[None]))


def test_lstm_begins_with_open_forget_gates() -> None:
    network = LSTM(DIM).lstm
    assert (network.bias_ih_l0 + network.bias_hh_l0)[DIM : 2 * DIM].tolist() == [1.0] * DIM


@pytest.mark.parametrize("lengths", [[5, 1, 29], [29, 29, 29], [1, 1, 1]], ids=str)
def test_lstm_takes_no_step_for_padding(hidden: Tensor, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer: LSTM = scrambled("lstm")
    given: list[Any] = []
    inner = layer.lstm.forward
    monkeypatch.setattr(layer.lstm, "forward", lambda packed, *rest: given.append(packed) or inner(packed, *rest))
    mask = torch.arange(TOKENS) < torch.tensor(lengths)[:, None]
    layer(hidden.expand(3, -1, -1), mask=mask)
    assert len(given[0].data) == sum(lengths)
    assert len(given[0].batch_sizes) == max(lengths)


@pytest.mark.parametrize(("block", "selected"), [(1, 1), (4, 2), (4, 50), (50, 2)])
def test_block_sparse_attention_equals_its_definition(hidden: Tensor, block: int, selected: int) -> None:
    layer: BlockSparseAttention = scrambled("block_sparse_attention", heads=HEADS, block=block, selected=selected)
    keys, values, outputs = [], [], []
    for t, x in enumerate(hidden):
        query, key, value = heads(layer.qkv.weight @ x)
        keys.append(turn(key, t))
        values.append(value)
        own, found = t // block, []
        for head, asking in enumerate(turn(query, t)):
            past = [torch.stack([keys[i][head] for i in range(b * block, (b + 1) * block)]).mean(0) for b in range(own)]
            match = torch.tensor([(asking * summary).sum().item() for summary in past])
            chosen = match.argsort(descending=True)[:selected].tolist() if past else []
            seen = [i for b in (*chosen, own) for i in range(b * block, min((b + 1) * block, t + 1))]
            weights = torch.stack([(asking * keys[i][head]).sum() / math.sqrt(WIDTH) for i in seen]).softmax(0)
            found.append(weights @ torch.stack([values[i][head] for i in seen]))
        outputs.append(layer.out.weight @ torch.cat(found))
    torch.testing.assert_close(layer(hidden[None])[0][0], torch.stack(outputs))


@pytest.mark.parametrize("name", ["samba", "rmt", "block_sparse_attention"])
def test_width_that_heads_do_not_divide(name: str) -> None:
    with pytest.raises(GenomemError, match=r"dim 9 is not a multiple of 2 \* heads = 4"):
        build_mixer(name, 9, heads=2)


NAMES = ["mamba", "samba", "hyena", "rmt", "lstm", "block_sparse_attention"]


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_stays_close_to_full(name: str) -> None:
    torch.manual_seed(0)
    layer = build_mixer(name, 16)
    hidden = torch.randn(2, 300, 16)
    mask = torch.rand(2, 300) > 0.1
    full, _ = layer(hidden, mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, state = layer(hidden[:, :170], mask=mask[:, :170])
        rest, _ = layer(hidden[:, 170:], state, mask=mask[:, 170:])
        rest.float().square().sum().backward()
    half = torch.cat([half, rest], dim=1).float()
    assert ((half - full).norm() / full.norm()) < 0.03
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("period", [1, 6])
def test_long_repeats_give_bounded_outputs_and_gradients(name: str, period: int) -> None:
    torch.manual_seed(0)
    layer = build_mixer(name, 16)
    hidden = torch.randn(1, period, 16).repeat(1, 3000 // period, 1).requires_grad_()
    output, _ = layer(hidden)
    assert output.abs().max() < 20
    output.square().mean().backward()
    for key, tensor in [("hidden", hidden), *layer.named_parameters()]:
        assert tensor.grad.isfinite().all(), key
        assert tensor.grad.norm() < 100, key
