"""The HiPPO matrices: eigenvalues, symmetry, what their states hold, their steps, and the poles of diagonal layers."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from genomem.ops.hippo import legs_basis, legs_cells, legs_flow
from genomem.ops.hippo_matrices import SYSTEMS, generalised_bilinear, hippo_system, low_rank_part, s4d_poles, zero_order_hold

SIZES = (1, 2, 5, 64, 256)


def response(name: str, size: int, moment: float) -> Tensor:
    """Returns what the state holds of an impulse so long ago."""
    A, B = hippo_system(name, size)
    return torch.linalg.matrix_exp(moment * A) @ B


def transfer(name: str, size: int, frequency: complex) -> Tensor:
    """Returns ``(s I - A)^-1 B`` at s."""
    A, B = hippo_system(name, size)
    return torch.linalg.solve(frequency * torch.eye(size, dtype=torch.complex128) - A, B.to(torch.complex128))


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_the_eigenvalues_of_legs_are_the_negative_whole_numbers(size: int) -> None:
    A, _ = hippo_system("legs", size)
    assert torch.equal(A, A.tril())
    assert torch.equal(A.diagonal(), -torch.arange(1, size + 1, dtype=torch.float64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "rank", "real_part"), [("legs", 1, -0.5), ("legt", 2, 0.0), ("lagt", 1, 0.0), ("fout", 1, 0.0)])
def test_a_system_is_skew_symmetric_but_for_its_low_rank_part(name: str, rank: int, real_part: float, size: int) -> None:
    A, B = hippo_system(name, size)
    P = low_rank_part(name, size)
    assert P.shape == (rank, size)
    assert B.shape == (size,)
    skew = A + P.mT @ P - real_part * eye(size)
    torch.testing.assert_close(skew, -skew.mT, rtol=0, atol=1e-13 * max(1, size // 16))


def test_an_unknown_system_names_the_known() -> None:
    with pytest.raises(ValueError, match="'legz'; it must be one of 'legs', 'legt', 'lagt', 'fout'"):
        hippo_system("legz", 4)


@pytest.mark.parametrize("moment", [0.0, 0.1, 1.0, 3.0])
def test_legs_as_it_stands_holds_a_past_that_decays_exponentially(moment: float) -> None:
    share = math.exp(-moment)
    expected = share * legs_basis(torch.tensor([share], dtype=torch.float64), 16)[:, 0]
    torch.testing.assert_close(response("legs", 16, moment), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("frequency", [0.5j, 3j, 0.2 + 1j])
def test_legt_delays_by_its_window(frequency: complex) -> None:
    """Read at the old end of the window, the state is the input one window ago: ``exp(-s)``, as a Padé approximant."""
    old_end = legs_basis(torch.zeros(1), 12)[:, 0].to(torch.complex128)
    assert old_end @ transfer("legt", 12, frequency) == pytest.approx(cmath.exp(-frequency), abs=1e-9)


@pytest.mark.parametrize("frequency", [0.5j, 3j, 0.2 + 1j])
def test_legt_reads_the_input_of_now_at_the_young_end(frequency: complex) -> None:
    young_end = legs_basis(torch.ones(1), 24)[:, 0].to(torch.complex128)
    assert young_end @ transfer("legt", 24, frequency) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("moment", [0.2, 0.35, 0.5, 0.8])
def test_fout_holds_sines_of_its_window(moment: float) -> None:
    expected = [1.0]
    for wave in (1, 2):
        expected += [math.sqrt(2) * math.cos(2 * math.pi * wave * moment), math.sqrt(2) * math.sin(2 * math.pi * wave * moment)]
    torch.testing.assert_close(response("fout", 129, moment)[:5], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.04)


@pytest.mark.parametrize(("name", "size"), [("fout", 129), ("legt", 64)])
def test_what_is_older_than_the_window_is_forgotten(name: str, size: int) -> None:
    energies = [response(name, size, moment).square().sum().item() for moment in (0.5, 0.9, 1.1, 1.5)]
    assert min(energies[:2]) > 30
    assert max(energies[2:]) < 0.1 * energies[0]


@pytest.mark.parametrize("frequency", [0.0, 0.5j, 1 + 2j])
def test_lagt_holds_laguerre_functions(frequency: complex) -> None:
    n = torch.arange(12)
    expected = torch.tensor(frequency - 0.5, dtype=torch.complex128) ** n / torch.tensor(frequency + 0.5, dtype=torch.complex128) ** (n + 1)
    torch.testing.assert_close(transfer("lagt", 12, frequency), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_bilinear_step_solves_its_equation(alpha: float) -> None:
    A, B = hippo_system("legt", 8)
    state, value, step = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0.7, 0.01
    transition, entry = generalised_bilinear(A, B, step, alpha)
    new = transition @ state + entry * value
    between = (1 - alpha) * state + alpha * new
    torch.testing.assert_close(new - state, step * (A @ between + B * value), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_orders_of_steps_against_the_exact_one(name: str) -> None:
    """The error of the midpoint rule falls by 8 when the step is halved, that of either Euler rule by 4."""
    A, B = hippo_system(name, 6)
    for alpha, factor in ((0.0, 4), (0.5, 8), (1.0, 4)):
        errors = []
        for step in (2e-4, 1e-4):
            pairs = zip(generalised_bilinear(A, B, step, alpha), zero_order_hold(A, B, step), strict=True)
            errors.append(sum((one - other).abs().max().item() for one, other in pairs))
        assert errors[0] / errors[1] == pytest.approx(factor, rel=0.05)


def test_two_exact_steps_are_one_of_both_times() -> None:
    A, B = hippo_system("lagt", 8)
    transition, entry = zero_order_hold(A, B, 0.3)
    twice, both = zero_order_hold(A, B, 0.6)
    torch.testing.assert_close(transition @ transition, twice, rtol=0, atol=1e-14)
    torch.testing.assert_close(transition @ entry + entry, both, rtol=0, atol=1e-14)


def test_an_input_without_dynamics_is_summed() -> None:
    """A is singular here."""
    transition, entry = zero_order_hold(torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), 0.25)
    assert torch.equal(transition, eye(3))
    torch.testing.assert_close(entry, torch.full((3,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("time", [1, 10, 1000])
def test_the_exact_step_of_legs_over_the_whole_past_is_the_closed_form(time: int) -> None:
    transition, entry = zero_order_hold(*hippo_system("legs", 16), math.log((time + 1) / time))
    torch.testing.assert_close(transition, legs_flow(torch.tensor(time / (time + 1), dtype=torch.float64), 16), rtol=0, atol=1e-13)
    torch.testing.assert_close(entry, legs_cells(time, time + 1, 16)[:, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["legs", "inv", "lin", "real"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_poles_are_stable_different_and_rise(kind: str, dtype: torch.dtype) -> None:
    poles = s4d_poles(kind, 32, dtype=dtype)
    assert poles.shape == (32,)
    assert poles.dtype == dtype
    assert (poles.real < 0).all()
    assert (poles.abs().diff() > 0).all()
    assert (poles.imag >= 0).all()


def test_poles_of_legs_are_half_of_the_eigenvalues_of_its_normal_part() -> None:
    A, _ = hippo_system("legs", 64)
    P = low_rank_part("legs", 64)
    values = torch.linalg.eigvals(A + P.mT @ P)
    poles = s4d_poles("legs", 32, dtype=torch.complex128)
    both = torch.cat([poles, poles.conj()])
    assert (values[:, None] - both).abs().amin(0).max() < 1e-9
    assert poles[-1].imag.item() == pytest.approx(1303.27, abs=0.005)
    # The highest tends to (2N)^2 / pi.
    assert poles[-1].imag.item() == pytest.approx(64**2 / math.pi, rel=1e-3)


def test_poles_in_closed_form() -> None:
    inverse, linear, real = (s4d_poles(kind, 4, dtype=torch.complex128) for kind in ("inv", "lin", "real"))
    assert inverse.imag.tolist() == pytest.approx([8 / math.pi * (8 / odd - 1) for odd in (7, 5, 3, 1)])
    assert linear.imag.tolist() == pytest.approx([0, math.pi, 2 * math.pi, 3 * math.pi])
    assert inverse.real.tolist() == linear.real.tolist() == [-0.5] * 4
    assert real.tolist() == [-1, -2, -3, -4]


def test_an_unknown_kind_of_poles_names_the_known() -> None:
    with pytest.raises(ValueError, match="'log'; it must be 'legs', 'inv', 'lin' or 'real'"):
        s4d_poles("log", 4)
