"""MAC with HiPPO tokens: without them it is MAC; with them, a document's past against its integrals, and what can be read from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.polynomial import Legendre
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers import build_mixer
from genomem.layers.mixer import held_bytes
from genomem.layers.titans_hippo_mac import HippoTokens, TitansHippoMAC
from genomem.layers.titans_mac import TitansMAC
from genomem.layers.titans_memory import normalise
from genomem.models.bidirectional import BothDirections

DIM, HEADS, SEGMENT, TOKENS = 8, 2, 5, 23
WIDTH = DIM // HEADS


def layer_of(**options: Any) -> TitansHippoMAC:
    torch.manual_seed(0)
    layer = build_mixer("titans_hippo_mac", DIM, **({"heads": HEADS, "segment": SEGMENT, "hippo_tokens": 4} | options))
    assert isinstance(layer, TitansHippoMAC)
    return layer


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def coefficients(signal: np.ndarray, size: int) -> np.ndarray:
    """Returns `1/t integral f g_n`, `[N, W]`, of a signal `[t, W]` that is constant over each token, by integrals of NumPy's Legendre."""
    borders = np.linspace(0, 1, len(signal) + 1)
    integrals = [np.sqrt(2 * n + 1) * Legendre.basis(n, domain=[0, 1]).integ(lbnd=0) for n in range(size)]
    return np.stack([np.diff(integral(borders)) @ signal for integral in integrals])


@pytest.mark.parametrize("options", [{}, {"persistent": 0, "momentum": False}, {"depth": 2, "gradient_block": 4}], ids=str)
def test_without_hippo_tokens_it_is_mac_to_the_bit(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = build_mixer("titans_mac", DIM, heads=HEADS, segment=SEGMENT, **options)
    layer = layer_of(hippo_tokens=0, **options)
    assert {name.removeprefix("mac."): p.tolist() for name, p in layer.named_parameters()} == {
        name: p.tolist() for name, p in plain.named_parameters()
    }
    hidden, reset = normal(2, TOKENS, DIM).float(), torch.zeros(2, TOKENS, dtype=torch.bool)
    reset[1, 7] = True
    for flags in ({}, {"reset": reset}):
        output, state = layer(hidden, **flags)
        expected, plain_state = plain(hidden, **flags)
        assert torch.equal(output, expected)
        assert torch.equal(layer(hidden, state)[0], plain(hidden, plain_state)[0])
    assert layer.state_bytes(9) == plain.state_bytes(9)


def test_hippo_tokens_leave_the_parameters_of_mac_as_they_are() -> None:
    with_tokens, without = dict(layer_of().mac.named_parameters()), dict(layer_of(hippo_tokens=0).mac.named_parameters())
    assert with_tokens.keys() == without.keys()
    assert all(torch.equal(with_tokens[name], without[name]) for name in without)


@pytest.mark.parametrize("size", [2, 6, 16])
def test_the_tokens_before_a_segment_are_the_integrals_over_all_segments_before_it(size: int) -> None:
    hippo = layer_of(hippo_tokens=size).double().hippo
    assert hippo is not None
    hidden = normal(2, TOKENS, DIM)
    tokens, state = hippo(hidden, None, None, mask=None, reset=None)
    signal = hippo.features(hidden).detach().numpy()
    for row in range(2):
        for segment in range(TOKENS // SEGMENT + 1):
            past = np.zeros((size, 32)) if segment == 0 else coefficients(signal[row, : segment * SEGMENT], size)
            raw = torch.from_numpy(past) @ hippo.expand.weight.T + hippo.orders.weight
            expected = raw / raw.square().mean(-1, keepdim=True).sqrt()
            torch.testing.assert_close(tokens[row, segment], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(state.coefficients[row], torch.from_numpy(coefficients(signal[row], size)), rtol=0, atol=1e-12)


def test_a_document_that_is_twice_as_slow_has_the_same_tokens() -> None:
    hippo, slow = (HippoTokens(DIM, tokens=8, width=3, segment=segment).double() for segment in (SEGMENT, 2 * SEGMENT))
    slow.load_state_dict(hippo.state_dict())
    hidden = normal(1, TOKENS, DIM)
    tokens, _ = hippo(hidden, None, None, mask=None, reset=None)
    slow_tokens, _ = slow(hidden.repeat_interleave(2, dim=1), None, None, mask=None, reset=None)
    torch.testing.assert_close(slow_tokens, tokens, rtol=0, atol=1e-12)


def turn(x: Tensor, place: int) -> Tensor:
    """Returns heads `[H, K]` turned to their place: channels i and i + K/2 are a complex number."""
    half = WIDTH // 2
    angle = torch.tensor([place * 10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angle)
    return torch.cat([turned.real, turned.imag], dim=1)


@pytest.mark.parametrize("full", [False, True], ids=["causal", "full segments"])
def test_a_segment_attends_to_the_tokens_before_it_two_at_a_place(full: bool) -> None:
    torch.manual_seed(0)
    mac = TitansMAC(DIM, heads=HEADS, segment=SEGMENT, persistent=0, full_segments=full).double()
    for parameter in mac.parameters():
        nn.init.normal_(parameter, std=0.5)
    hidden, context = normal(SEGMENT, DIM), normal(7, DIM)[:6]
    query, asked = (mac.queries.weight @ hidden.T).T.unflatten(-1, (2, HEADS, WIDTH)).unbind(1)
    asked = F.normalize(F.silu(asked), dim=-1)
    # A linear memory before the first token recalls zero.
    recalled = torch.zeros(SEGMENT, DIM, dtype=torch.float64)
    seen = [(i % 3, context[i]) for i in range(6)] + [(3 + j, x) for j in range(SEGMENT) for x in (recalled[j], hidden[j])]
    attended = []
    for i in range(SEGMENT):
        near = [(place, mac.key_value.weight @ x) for place, x in seen if full or place <= 3 + i]
        keys = torch.stack([turn(kv.view(2, HEADS, WIDTH)[0], place) for place, kv in near])
        values = torch.stack([kv.view(2, HEADS, WIDTH)[1] for _, kv in near])
        weights = ((keys * turn(query[i], 3 + i)).sum(-1) / WIDTH**0.5).softmax(0)
        attended.append(mac.attended.weight @ (weights[..., None] * values).sum(0).flatten())
    attended = torch.stack(attended)[None]
    written = normalise(mac.write_norm, attended)
    remembered, _ = mac.lmm.write_then_read(written, None, mask=None, reset=None) if full else mac.lmm(written)
    expected = mac.gate(attended, remembered)
    torch.testing.assert_close(mac(hidden[None], context=context[None, None])[0], expected, rtol=1e-9, atol=1e-11)


def test_the_past_of_other_segments_reaches_a_token_by_its_coefficients_alone() -> None:
    layer = layer_of(momentum=False).double()
    # With nothing written, MAC sees its own segment and no other.
    nn.init.zeros_(layer.mac.lmm.qkv.weight)
    hidden = normal(1, TOKENS, DIM)
    changed = hidden.clone()
    changed[:, 2] += 1.0
    assert (layer(changed)[0] != layer(hidden)[0])[:, 2:].any(-1).all()
    layer.hippo = None
    assert torch.equal(layer(changed)[0][:, SEGMENT:], layer(hidden)[0][:, SEGMENT:])


def test_the_state_is_that_of_mac_and_two_sets_of_coefficients_whatever_the_length() -> None:
    layer, plain = layer_of(hippo_tokens=6, hippo_width=3), layer_of(hippo_tokens=0)
    for tokens in (1, SEGMENT, 500):
        _, state = layer(normal(1, tokens, DIM).float())
        assert held_bytes(state) == layer.state_bytes(tokens) == plain.state_bytes(tokens) + 2 * 6 * 3 * 4 + 8


def isochores(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Returns bases `[rows, tokens, 4]`, one-hot A, C, G, T, and whether each is G or C; every 64 tokens have a share of their own."""
    generator = torch.Generator().manual_seed(0)
    share = 0.2 + 0.6 * torch.rand(rows, tokens // 64, generator=generator).repeat_interleave(64, dim=1)
    is_gc, is_second = (torch.rand(rows, tokens, generator=generator) < chance for chance in (share, 0.5))
    base = torch.where(is_gc, 1 + is_second.long(), 3 * is_second.long())
    return F.one_hot(base, 4).float(), is_gc.float()


def explained(features: Tensor, target: Tensor) -> float:
    """Returns R2 of linear regression on the second half of the rows, fitted on the first."""
    features = F.pad(features, (1, 0), value=1.0).double()
    half = len(features) // 2
    weights = torch.linalg.lstsq(features[:half], target[:half, None].double()).solution
    error = target[half:] - (features[half:] @ weights)[:, 0]
    return 1 - (error.var() / target[half:].var()).item()


@pytest.mark.parametrize("size", [8, 16])
def test_a_linear_probe_reads_gc_of_past_windows_down_to_the_resolution_of_the_coefficients(size: int) -> None:
    tokens = 2048
    bases, is_gc = isochores(1600, tokens)
    torch.manual_seed(0)
    hippo = HippoTokens(4, tokens=size, width=4, segment=128)
    with torch.no_grad():
        _, state = hippo(bases, None, None, mask=None, reset=None)
    found = {}
    for share in (8, 4, 2, 1, 0.25):
        width = int(share * tokens / size)
        places = [int((tokens - width) * place) for place in (0.25, 0.4, 0.6, 0.75)]
        targets = [is_gc[:, place : place + width].mean(1) for place in places]
        found[share] = float(np.mean([explained(state.coefficients.flatten(1), target) for target in targets]))
    # N coefficients resolve N/2 waves, each of which is two windows of 1/N of the history.
    assert min(found[8], found[4]) > 0.9
    assert found[2] > 0.85
    assert 0.5 < found[1] < 0.8
    assert found[0.25] < 0.45


def test_outputs_stay_bounded_over_65536_tokens_at_the_start_of_training() -> None:
    torch.manual_seed(0)
    layer = build_mixer("titans_hippo_mac", 16, heads=2)
    generator = torch.Generator().manual_seed(0)
    period = torch.randn(1, 171, 16, generator=generator).repeat(1, 384, 1)[:, :65_536]
    hidden = torch.cat([torch.ones(1, 65_536, 16), torch.randn(1, 65_536, 16, generator=generator), period])
    with torch.no_grad():
        output, (_, hippo) = layer(hidden)
    late, early = (output[:, part].square().mean((1, 2)).sqrt() for part in (slice(-8192, None), slice(8192)))
    assert output.isfinite().all()
    assert (late < 2 * early).all(), (early, late)
    # No more than the root mean square of what was seen, by Parseval.
    seen = layer.hippo.features(hidden).square().mean(1).sqrt()
    assert (hippo.coefficients.square().sum(1).sqrt() < 1.001 * seen).all()


def test_a_bidirectional_layer_sees_both_sides() -> None:
    layer = BothDirections(layer_of(), DIM).double()
    hidden = normal(1, TOKENS, DIM)
    output, _ = layer(hidden)
    changed = hidden.clone()
    changed[:, 12] += 1.0
    assert (layer(changed)[0] != output).any(-1).all()


def test_an_odd_number_of_hippo_tokens_is_refused() -> None:
    with pytest.raises(GenomemError, match="titans_hippo_mac: hippo_tokens 5 is odd, and two share a place; choose an even number"):
        layer_of(hippo_tokens=5)
