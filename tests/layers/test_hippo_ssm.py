"""The gated HiPPO block against its definition, its timescales, and what holds of it in models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.config import SequenceModel
from genomem.layers import build_mixer
from genomem.layers.hippo_ssm import HippoSSM
from genomem.models import build_model
from genomem.models.bidirectional import BothDirections
from genomem.training.optimizer import build_optimizer

DIM, TOKENS = 6, 70


def layer_of(dim: int = DIM, **options: Any) -> HippoSSM:
    torch.manual_seed(0)
    layer = build_mixer("hippo_ssm", dim, **options)
    assert isinstance(layer, HippoSSM)
    return layer


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("initial", ["legs", "lin", "inv", "real"])
@pytest.mark.parametrize("conv_kernel", [1, 3])
def test_the_layer_is_its_definition(initial: str, conv_kernel: int) -> None:
    layer = layer_of(state_size=3, initial=initial, conv_kernel=conv_kernel).double()
    hidden, states = normal(TOKENS, DIM), torch.zeros(DIM, 3, dtype=torch.complex128)
    for parameter in layer.parameters():
        parameter.data += 0.1 * normal(*parameter.shape)
    A, C = torch.complex(-layer.A_log.exp(), layer.A_imag), torch.complex(layer.C[..., 0], layer.C[..., 1])
    kept = (layer.log_dt.exp()[:, None] * A).exp()
    past, expected = [], []
    for x in hidden:
        value, gate = (layer.value_gate.weight @ x).chunk(2)
        past.append(value)
        if layer.convolution is not None:
            value = sum(tap * before for tap, before in zip(layer.convolution.weight, reversed(past), strict=False))
        value = value * value.sigmoid()
        states = kept * states + (kept - 1) / A * value[:, None]
        # The conjugate states add the conjugate of the sum.
        found = (C * states).sum(1) + (C * states).sum(1).conj()
        expected.append(layer.out.weight @ ((found.real + layer.D * value) * F.silu(gate)))
    torch.testing.assert_close(layer(hidden[None])[0][0], torch.stack(expected), rtol=1e-9, atol=1e-11)


def test_channels_start_with_timescales_from_ten_tokens_to_the_longest() -> None:
    steps = layer_of(9, longest_bp=100_000).log_dt.exp()
    torch.testing.assert_close(steps[[0, -1]], torch.tensor([1e-5, 0.1]))
    ratios = steps[1:] / steps[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 10**0.5))


def test_a_signal_that_is_seven_times_as_slow_gives_the_same_at_a_seventh_of_the_step() -> None:
    layer = layer_of(state_size=4, conv_kernel=1).double()
    slow = layer_of(state_size=4, conv_kernel=1).double()
    slow.load_state_dict(layer.state_dict())
    slow.log_dt.data -= math.log(7)
    hidden = normal(1, TOKENS, DIM)
    torch.testing.assert_close(slow(hidden.repeat_interleave(7, dim=1))[0][:, 6::7], layer(hidden)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("initial", ["legs", "lin", "inv", "real"])
def test_poles_stay_stable_whatever_is_learned(initial: str) -> None:
    layer = layer_of(initial=initial)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in (layer.log_dt, layer.A_log, layer.A_imag):
            parameter.data += 3 * torch.randn(parameter.shape, generator=generator)
        assert (layer._poles_and_weights()[0].real < 0).all()


def test_the_slow_channels_remember_and_the_fast_ones_forget() -> None:
    layer = layer_of(longest_bp=10_000)
    layer.D.data.zero_()
    with torch.no_grad():
        poles, _ = layer._poles_and_weights()
        kept = (poles.real.amax(1) * 1000).exp()
    assert kept[0] > 0.9
    assert kept[-1] < 1e-9


def test_outputs_and_states_stay_bounded_over_65536_tokens_at_the_start_of_training() -> None:
    layer, generator = layer_of(16), torch.Generator().manual_seed(0)
    constant, random = torch.ones(1, 65_536, 16), torch.randn(1, 65_536, 16, generator=generator)
    period = torch.randn(1, 171, 16, generator=generator).repeat(1, 384, 1)[:, :65_536]
    hidden = torch.cat([constant, random, period])
    with torch.no_grad():
        output, (_, states) = layer(hidden)
        _, weights = layer._poles_and_weights()
    assert output.isfinite().all()
    assert states.isfinite().all()
    size = output.square().mean((1, 2)).sqrt()
    assert (size < 1).all(), size
    assert ((weights.abs() * states.abs()).amax((1, 2)) < 10).all()
    late, early = (output[:, part].square().mean((1, 2)).sqrt() for part in (slice(-8192, None), slice(8192)))
    assert (late < 3 * early).all(), (early, late)


def test_poles_and_steps_do_not_decay() -> None:
    model = build_model(SequenceModel.model_validate({"dim": 8, "layers": ["hippo_ssm"]}), 5)
    optimizer = build_optimizer(model, learning_rate=0.1, weight_decay=0.3)
    names = {id(parameter): name.rpartition("mixer.")[2] for name, parameter in model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[name] for name in ("A_log", "A_imag", "log_dt", "D")} == dict.fromkeys(("A_log", "A_imag", "log_dt", "D"), 0.0)
    assert decays["C"] == decays["out.weight"] == 0.3


def test_a_bidirectional_layer_sees_both_sides_and_no_padding() -> None:
    layer = BothDirections(layer_of(), DIM).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    hidden, mask = normal(1, 9, DIM), torch.tensor([[True] * 3 + [False] + [True] * 4 + [False]])
    output, _ = layer(hidden, mask=mask)
    changed = hidden.clone()
    changed[:, 5] += 1.0
    assert (layer(changed, mask=mask)[0] != output)[mask].all()
    torch.testing.assert_close(layer(hidden[mask][None])[0], output[mask][None])


def test_a_masked_model_treats_the_strands_alike() -> None:
    torch.manual_seed(0)
    config = SequenceModel.model_validate({"dim": 8, "layers": ["hippo_ssm"], "bidirectional": True})
    complement = torch.tensor([3, 2, 1, 0, 4])
    model = build_model(config, 5, complement=complement.tolist()).double()
    tokens = torch.randint(5, (2, 40), generator=torch.Generator().manual_seed(0))
    other = model(complement[tokens].flip(1))
    torch.testing.assert_close(other.flip(1)[..., complement], model(tokens), rtol=1e-9, atol=1e-11)
