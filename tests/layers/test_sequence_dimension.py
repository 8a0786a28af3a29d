"""The sequence-dimension layer: what a column depends on, how far a token sees, what the layer holds, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers import build_mixer
from genomem.layers import sequence_dimension as module
from genomem.layers.attention import Attention
from genomem.layers.mixer import held_bytes
from genomem.layers.sequence_dimension import SequenceDimension
from genomem.models import count_parameters

TOKENS, DIM, KERNEL = 42, 8, 5


@pytest.fixture
def layer() -> SequenceDimension:
    torch.manual_seed(0)
    return SequenceDimension(DIM, heads=2, slots=3, block=4, kernel=KERNEL).double()


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(1, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.mark.parametrize("token", [0, 3, 4, 5, 40])
def test_a_column_is_a_function_of_the_last_tokens_alone(layer: SequenceDimension, hidden: Tensor, token: int) -> None:
    columns, _ = layer.columns(hidden)
    (jacobian,) = torch.autograd.grad(columns[0, token], hidden, torch.randn_like(columns[0, token]))
    reached = jacobian[0].abs().sum(-1) != 0
    expected = torch.zeros(TOKENS, dtype=torch.bool)
    expected[max(0, token - KERNEL + 1) : token + 1] = True
    assert torch.equal(reached, expected)


def test_the_same_bases_have_the_same_column_wherever_they_stand(layer: SequenceDimension, hidden: Tensor) -> None:
    copied = hidden.detach().clone()
    copied[:, 30:37] = copied[:, 10:17]
    columns, _ = layer.columns(copied)
    torch.testing.assert_close(columns[:, 34:37], columns[:, 14:17], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(columns[:, 33], columns[:, 13])


def test_the_encoder_is_not_linear(layer: SequenceDimension, hidden: Tensor) -> None:
    """Of a linear one, the direction of a column would not change with the scale of the inputs."""
    columns, _ = layer.columns(hidden)
    assert not torch.allclose(layer.columns(3 * hidden)[0], columns, rtol=0.01)


def test_no_token_sees_a_later_one_and_each_sees_all_before(layer: SequenceDimension, hidden: Tensor) -> None:
    output, _ = layer(hidden)
    (gradient,) = torch.autograd.grad(output[0, 40].sum(), hidden)
    reached = gradient[0].abs().sum(-1) != 0
    assert torch.equal(reached, torch.arange(TOKENS) <= 40)


def test_shares_are_those_that_the_state_adds_up(layer: SequenceDimension, hidden: Tensor) -> None:
    _, state = layer(hidden)
    columns, _ = layer.columns(hidden)
    full = TOKENS - TOKENS % 4
    shares = layer.shares(columns)[:, :full]
    torch.testing.assert_close(state.fold.sums[..., -1], shares.sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        state.fold.sums[..., :-1], torch.einsum("bthm,bthk->bhmk", shares, columns[:, :full]), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(state.fold.block[:, : TOKENS % 4], columns[:, full:], rtol=1e-10, atol=1e-12)


def test_forgetting_halves_the_mass_that_a_rate_of_a_half_says(hidden: Tensor) -> None:
    layer = SequenceDimension(DIM, heads=2, slots=3, block=4, forget=True).double()
    torch.nn.init.zeros_(layer.forget)
    _, state = layer(hidden)
    expected = sum(4 * 0.5**age for age in range(TOKENS // 4))
    torch.testing.assert_close(state.fold.sums[..., -1].sum(-1), torch.full((1, 2), expected, dtype=torch.float64), rtol=1e-10, atol=0)


def test_the_state_is_the_same_size_after_any_number_of_tokens(layer: SequenceDimension) -> None:
    sizes = set()
    with torch.no_grad():
        for tokens in (1, 4, 63, 5000):
            _, state = layer(torch.randn(1, tokens, DIM, dtype=torch.float64))
            sizes.add(held_bytes(state))
    assert sizes == {layer.state_bytes(1)}


def test_token_by_token_equals_the_blocks(layer: SequenceDimension, hidden: Tensor) -> None:
    whole, _ = layer(hidden)
    state, outputs = None, []
    for token in hidden.split(1, dim=1):
        output, state = layer(token, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_pieces_of_a_long_sequence_equal_the_whole(
    layer: SequenceDimension, hidden: Tensor, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    drawn = {"mask": torch.rand(1, TOKENS, generator=generator) > 0.2, "reset": torch.rand(1, TOKENS, generator=generator) > 0.9}
    flags = drawn if packed else {}

    def run() -> list[Tensor]:
        output, state = layer(hidden, **flags)
        return [output, state.fold.sums, *torch.autograd.grad(output.square().sum(), [hidden, *layer.parameters()])]

    whole, mixed = run(), []
    monkeypatch.setattr(module, "PIECE_ELEMENTS", 9 * DIM)
    monkeypatch.setattr(layer, "_mix", lambda part, *rest: (mixed.append(part.shape[1]), SequenceDimension._mix(layer, part, *rest))[1])
    for one, other in zip(run(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert mixed == [8] * 5 + [2]


def test_it_has_three_quarters_of_the_matrices_of_attention() -> None:
    ours, attention = (
        sum(m.weight.numel() for m in kind(128).modules() if isinstance(m, nn.Linear)) for kind in (SequenceDimension, Attention)
    )
    assert ours / attention == 0.75
    assert count_parameters(SequenceDimension(128)) < count_parameters(Attention(128))


def test_under_autocast_outputs_are_close_and_gradients_finite() -> None:
    torch.manual_seed(0)
    layer, hidden = SequenceDimension(32, heads=2, slots=8, block=16), torch.randn(2, 200, 32, requires_grad=True)
    exact, _ = layer(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, state = layer(hidden)
    rounded.float().square().sum().backward()
    assert state.fold.sums.dtype == torch.float32
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [hidden, *layer.parameters()])


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(GenomemError, match="sequence_dimension: dim 9 is not a multiple of heads = 2; change dim or heads"):
        build_mixer("sequence_dimension", 9, heads=2)
