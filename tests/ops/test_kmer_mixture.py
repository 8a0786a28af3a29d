"""Backing off, evidence and mixing, against loops over plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genomem.ops.kmer_mixture import back_off, evidence, mix


@pytest.fixture
def counts() -> Tensor:
    return torch.randint(0, 4, (3, 5, 4), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)


STRENGTHS = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5], dtype=torch.float64)


def test_each_column_backs_off_to_the_one_before_it(counts: Tensor, network: Tensor) -> None:
    found = back_off(counts, STRENGTHS, network)
    for row in range(3):
        below = network[row].exp().tolist()
        for column, strength in enumerate(STRENGTHS.tolist()):
            seen = counts[row, column].tolist()
            below = [(seen[base] + strength * below[base]) / (sum(seen) + strength) for base in range(4)]
            torch.testing.assert_close(found[row, column].exp(), torch.tensor(below, dtype=torch.float64), rtol=1e-12, atol=0)


def test_without_counts_all_columns_say_what_the_network_says_and_their_strengths_stay(network: Tensor) -> None:
    strengths = STRENGTHS.clone().requires_grad_()
    found = back_off(torch.zeros(3, 5, 4), strengths, network)
    torch.testing.assert_close(found, network[:, None].expand(3, 5, 4))
    found[..., 0].sum().backward()
    assert torch.equal(strengths.grad, torch.zeros(5, dtype=torch.float64))


def test_a_base_without_any_probability_leaves_gradients_finite() -> None:
    network = torch.tensor([0.0, 0.0, 0.0, 500.0], requires_grad=True)
    counts = torch.tensor([[0, 0, 0, 9]])
    experts = back_off(counts, torch.tensor([0.5]), network.log_softmax(-1))
    mix(experts, torch.ones(1))[0].backward()
    assert experts.isfinite().all()
    assert network.grad is not None
    assert network.grad.isfinite().all()


def test_evidence_is_what_was_seen_and_how_sure_it_is(counts: Tensor, network: Tensor) -> None:
    experts = back_off(counts, STRENGTHS, network)
    found = evidence(counts, experts)
    for row in range(3):
        for column in range(5):
            p = experts[row, column].exp().tolist()
            entropy = -sum(x * math.log(x, 4) for x in p)
            expected = [math.log1p(counts[row, column].sum()), max(p), entropy]
            torch.testing.assert_close(found[row, column], torch.tensor(expected, dtype=torch.float64))


def test_a_mixture_can_be_surer_than_its_experts() -> None:
    experts = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    assert mix(experts, torch.ones(2, dtype=torch.float64)).exp()[0] == pytest.approx(0.49 / 0.52)


@pytest.mark.parametrize("chosen", [0, 3])
def test_a_weight_of_one_alone_is_that_expert(chosen: int, counts: Tensor, network: Tensor) -> None:
    experts = back_off(counts, STRENGTHS, network)
    weights = torch.zeros(3, 5, dtype=torch.float64)
    weights[:, chosen] = 1
    torch.testing.assert_close(mix(experts, weights), experts[:, chosen])


def test_gradients(counts: Tensor, network: Tensor) -> None:
    def mixed(strengths: Tensor, base: Tensor, weights: Tensor) -> Tensor:
        return mix(back_off(counts, strengths, base.log_softmax(-1)), weights)

    inputs = (STRENGTHS.clone(), network, torch.randn(3, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(mixed, tuple(part.requires_grad_() for part in inputs))
