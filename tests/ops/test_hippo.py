"""HiPPO-LegS in chunks and token by token against its definition, and the closed forms that its state must have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from genomem.ops import hippo, reference
from genomem.ops.hippo import chunked_legs, legs_basis, legs_cells, legs_flow, reconstruct, recurrent_legs
from genomem.ops.hippo_matrices import generalised_bilinear, hippo_system, zero_order_hold

Past = tuple[Tensor, Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def a_past(positions: Sequence[int], size: int, channels: int = 2) -> Past:
    return normal(len(positions), size, channels, seed=5), torch.tensor(tuple(positions))


def after(signal: Tensor, size: int) -> Tensor:
    """Returns the coefficients `[N]` of one channel `[T]` after its last token."""
    return chunked_legs(signal[None, :, None], size=size, segment=256)[1].coefficients[0, :, 0]


def held(signal: Tensor, size: int) -> Tensor:
    """Returns what the coefficients hold of one channel `[T]` in the middle of each token, `[T]`."""
    places = (torch.arange(len(signal), dtype=torch.float64) + 0.5) / len(signal)
    return reconstruct(after(signal, size)[:, None], places)[:, 0]


def largest(x: Tensor) -> float:
    return x.abs().max().item()


def segment_ends(tokens: int, segment: int) -> Tensor:
    return torch.tensor([min(end, tokens) for end in range(segment, tokens + segment, segment)]) - 1


FACTORS = {
    "length": (1, 2, 7, 8, 9, 40),
    "segment": (1, 3, 8, 64),
    "size": (1, 2, 3, 8),
    "past": (None, (0, 0), (17, 17), (0, 900), (5, 4)),
    "channels": (1, 3),
}


def test_any_two_of_length_segment_size_past_and_channels_equal_the_definition(choice) -> None:
    past = None if choice["past"] is None else a_past(choice["past"], choice["size"], choice["channels"])
    signal = normal(2, choice["length"], choice["channels"])
    expected = with_gradients(lambda *inputs: reference.legs(*inputs, size=choice["size"]), signal, past)
    every = with_gradients(lambda *inputs: recurrent_legs(*inputs, size=choice["size"])[0], signal, past)
    for one, other in zip(every, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)

    ends = segment_ends(choice["length"], choice["segment"])
    expected = with_gradients(lambda *inputs: reference.legs(*inputs, size=choice["size"])[:, ends], signal, past)
    chunked = with_gradients(lambda *inputs: chunked_legs(*inputs, size=choice["size"], segment=choice["segment"])[0], signal, past)
    for one, other in zip(chunked, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def with_gradients(form, signal: Tensor, past: Past | None) -> list[Tensor]:
    """Returns the coefficients and the gradients of a random weighting of them for the signal and the past."""
    leaves = [signal.clone().requires_grad_()]
    if past is not None:
        leaves.append(past[0].clone().requires_grad_())
    found = form(leaves[0], None if past is None else (leaves[1], past[1]))
    return [found, *torch.autograd.grad((found * normal(*found.shape, seed=9)).sum(), leaves)]


@pytest.mark.parametrize("form", [lambda *x: chunked_legs(*x, size=4, segment=3)[0], lambda *x: recurrent_legs(*x, size=4)[0]])
@pytest.mark.parametrize("positions", [[6, 6], [6, 1]])
def test_gradients_are_those_of_small_differences(form, positions: list[int]) -> None:
    coefficients, position = a_past(positions, 4)
    inputs = (normal(2, 7, 2).requires_grad_(), coefficients.requires_grad_())
    assert torch.autograd.gradcheck(lambda signal, past: form(signal, (past, position)), inputs)


@pytest.mark.parametrize("splits", [(64, 320), (64, 128, 128, 192), (0, 448)], ids=str)
@pytest.mark.parametrize("past", [None, [100, 3]], ids=str)
def test_splits_at_borders_of_segments_equal_the_whole(splits: tuple[int, ...], past: list[int] | None) -> None:
    state = None if past is None else a_past(past, 16)
    signal = normal(2, 500, 2)
    whole, last = chunked_legs(signal, state, size=16, segment=64)
    parts = []
    for start, end in zip((0, *splits), (*splits, 500), strict=True):
        found, state = chunked_legs(signal[:, start:end], state, size=16, segment=64)
        parts.append(found)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(state[0], last.coefficients, rtol=0, atol=1e-14)
    assert state[1].tolist() == last.position.tolist() == [500 + start for start in past or [0, 0]]


@pytest.mark.parametrize("split", [1, 63, 65, 499])
def test_the_state_does_not_depend_on_where_the_signal_is_cut(split: int) -> None:
    signal = normal(2, 500, 2)
    expected = chunked_legs(signal, size=16, segment=64)[1].coefficients
    for form in (lambda *x: chunked_legs(*x, size=16, segment=64), lambda *x: recurrent_legs(*x, size=16)):
        state = form(signal[:, split:], form(signal[:, :split], None)[1])[1]
        torch.testing.assert_close(state.coefficients, expected, rtol=0, atol=1e-13)


def test_rows_of_different_positions_are_what_they_are_alone() -> None:
    signal, state = normal(3, 200, 2), a_past([1000, 0, 31], 16)
    together, last = chunked_legs(signal, state, size=16, segment=64)
    for row in range(3):
        alone, end = chunked_legs(signal[row : row + 1], (state[0][row : row + 1], state[1][row : row + 1]), size=16, segment=64)
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(last.coefficients[row], end.coefficients[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", [lambda *x: chunked_legs(*x, size=4, segment=8), lambda *x: recurrent_legs(*x, size=4)])
@pytest.mark.parametrize("state", [None, a_past([3, 3], 4), a_past([3, 8], 4)], ids=["fresh", "alike", "different"])
def test_no_tokens_leave_the_state_as_it_is(form, state: Past | None) -> None:
    found, last = form(normal(2, 0, 2), state)
    assert found.shape == (2, 0, 4, 2)
    expected = (torch.zeros(2, 4, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)) if state is None else state
    assert all(torch.equal(one, other) for one, other in zip(last, expected, strict=True))


def test_blocks_of_operators_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = normal(1, 1000, 2)
    whole = chunked_legs(signal, size=16, segment=64)[0]
    monkeypatch.setattr(hippo, "KEPT_BYTES", 8 * 3 * (2 * 16**2 * 8))
    torch.testing.assert_close(chunked_legs(signal, size=16, segment=64)[0], whole, rtol=0, atol=0)


def test_operators_are_kept_until_they_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    monkeypatch.setattr(hippo, "legs_flow", lambda ratio, size: built.append(size) or legs_flow(ratio, size))
    counts = []
    for _ in range(2):
        hippo.forget_operators()
        for _ in range(2):
            chunked_legs(normal(2, 500, 2), size=16, segment=50)
            counts.append(len(built))
    assert counts == [1, 1, 2, 2]


def test_operators_kept_from_inference_mode_serve_a_call_with_gradients() -> None:
    signal = normal(1, 37, 2)
    with torch.inference_mode():
        expected = chunked_legs(signal, size=7, segment=11)[0].clone()
        recurrent_legs(signal, size=7)
    for form in (lambda x: chunked_legs(x, size=7, segment=11), lambda x: recurrent_legs(x, size=7)):
        leaf = signal.clone().requires_grad_()
        found, state = form(leaf)
        state.coefficients.square().sum().backward()
        torch.testing.assert_close(found[:, -1], expected[:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coefficients_are_float32_also_under_autocast(dtype: torch.dtype) -> None:
    signal = normal(2, 300, 2).to(dtype)
    expected = chunked_legs(signal.double(), size=16, segment=64)[0]
    with torch.autocast("cpu", torch.bfloat16):
        chunked, state = chunked_legs(signal, size=16, segment=64)
        recurrent = recurrent_legs(signal, size=16)[0]
    assert chunked.dtype == recurrent.dtype == state.coefficients.dtype == torch.float32
    torch.testing.assert_close(chunked.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(recurrent[:, segment_ends(300, 64)].double(), expected, rtol=0, atol=2e-6)


def test_float32_keeps_its_digits_over_100_000_tokens() -> None:
    signal = normal(1, 100_000, 1)
    expected = legs_cells(0, 100_000, 256) @ signal[0]
    exact = chunked_legs(signal, size=256, segment=512)[1].coefficients[0]
    single = chunked_legs(signal.float(), size=256, segment=512)[1].coefficients[0]
    assert largest(exact - expected) < 1e-13
    assert (single - exact).norm() < 2e-6 * exact.norm()


@pytest.mark.parametrize(("options", "message"), [({"size": 0, "segment": 8}, "size is 0"), ({"size": 8, "segment": 0}, "segment is 0")])
def test_sizes_under_one_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_legs(normal(1, 4, 2), **options)


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"are \[2, 4, 2\]; they must be \[2, 8, 2\]"):
        recurrent_legs(normal(2, 4, 2), a_past([1, 1], 4), size=8)


@pytest.mark.parametrize("size", [1, 2, 8, 16])
@pytest.mark.parametrize("ratio", [0.001, 0.3, 0.9, 0.9999])
def test_the_flow_is_the_exponential_of_the_matrix(size: int, ratio: float) -> None:
    A, _ = hippo_system("legs", size)
    flow = legs_flow(torch.tensor(ratio), size)
    expected = torch.linalg.matrix_exp(-math.log(torch.tensor(ratio).item()) * A)
    torch.testing.assert_close(flow, expected, rtol=0, atol=2e-14)


@pytest.mark.parametrize("size", [64, 256])
def test_the_flow_is_the_projection_by_gauss_legendre_sums(size: int) -> None:
    nodes, weights = gauss_legendre(size)
    basis = legs_basis(nodes, size)
    for ratio in torch.tensor([1e-6, 0.3, 0.9, 1 - 1e-6], dtype=torch.float64):
        expected = ratio * (legs_basis(ratio * nodes, size) * weights) @ basis.mT
        assert largest(legs_flow(ratio, size) - expected) < 1e-14 * size


def gauss_legendre(size: int) -> tuple[Tensor, Tensor]:
    """Returns nodes and weights on [0, 1], from the eigenvalues of the Jacobi matrix (Golub and Welsch)."""
    n = torch.arange(1, size, dtype=torch.float64)
    off = n / (4 * n**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(off.diag(1) + off.diag(-1))
    return (nodes + 1) / 2, vectors[0] ** 2


def test_flows_follow_one_another() -> None:
    first, second, both = legs_flow(torch.tensor([0.6, 0.5, 0.3], dtype=torch.float64), 64)
    assert largest(first @ second - both) < 2e-14


def test_the_flow_never_grows() -> None:
    ratios = torch.tensor([0.01, 0.3, 0.9, 0.999], dtype=torch.float64)
    for size, is_tight in ((1, False), (2, False), (16, True), (64, True)):
        norms = torch.linalg.matrix_norm(legs_flow(ratios, size), 2) / ratios.sqrt()
        assert norms.max() < 1 + 1e-12
        assert not is_tight or norms[1:].min() > 1 - 1e-6


def test_the_flow_of_no_past_is_zero_and_of_no_time_the_identity() -> None:
    flows = legs_flow(torch.tensor([[0.0, 1.0]]), 32)
    assert flows.shape == (1, 2, 32, 32)
    assert largest(flows[0, 0]) == 0
    torch.testing.assert_close(flows[0, 1], torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_basis_is_orthonormal() -> None:
    nodes, weights = gauss_legendre(64)
    basis = legs_basis(nodes, 64)
    torch.testing.assert_close((basis * weights) @ basis.mT, torch.eye(64, dtype=torch.float64), rtol=0, atol=5e-13)


def test_the_first_coefficient_is_the_running_mean() -> None:
    signal = normal(1, 500, 2)
    mean = signal.cumsum(1) / torch.arange(1, 501)[:, None]
    torch.testing.assert_close(recurrent_legs(signal, size=8)[0][:, :, 0], mean, rtol=0, atol=1e-14)


def test_a_constant_is_its_first_coefficient_alone() -> None:
    expected = torch.zeros(64, dtype=torch.float64)
    expected[0] = 3.0
    torch.testing.assert_close(after(torch.full((10_000,), 3.0, dtype=torch.float64), 64), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("degree", [1, 5, 15])
def test_a_polynomial_of_lower_degree_is_held_whole(degree: int) -> None:
    """A token is the mean of the polynomial over its cell, so the state differs from the polynomial's by the steps of a staircase."""
    exact = normal(16, seed=degree) * (torch.arange(16) <= degree)
    errors = []
    for tokens in (1000, 4000):
        borders = torch.arange(tokens + 1, dtype=torch.float64) / tokens
        cells = (hippo.legs_integrals(borders, 16).diff(dim=1) * tokens).mT @ exact
        errors.append(largest(after(cells, 16) - exact))
    assert errors[0] < 1e-3 * degree**2
    assert errors[1] < 1.1 * errors[0] / 16


def test_a_signal_at_another_speed_leaves_the_same_state() -> None:
    signal = normal(1000)
    torch.testing.assert_close(after(signal.repeat_interleave(7), 32), after(signal, 32), rtol=0, atol=1e-14)


@pytest.mark.parametrize("tokens", [100, 1000, 10_000])
def test_what_a_token_weighs_falls_as_one_over_the_length_and_no_faster(tokens: int) -> None:
    size = 64
    signal = torch.zeros(1, tokens, 1, dtype=torch.float64, requires_grad=True)
    state = chunked_legs(signal, size=size, segment=64)[1].coefficients[0, :, 0]
    rows = torch.stack([torch.autograd.grad(state[n], signal, retain_graph=True)[0][0, :, 0] for n in range(size)])
    weight = tokens * rows.norm(dim=0)
    for share in (0.3, 0.5, 0.8):
        theory = math.sqrt(2 * size / (math.pi * math.sqrt(1 - (2 * share - 1) ** 2)))
        near = slice(int(tokens * (share - 0.02)), int(tokens * (share + 0.02)) + 1)
        assert weight[near].mean().item() == pytest.approx(theory, rel=0.03)
    assert weight.max() <= size + 1e-9


def smooth(tokens: int) -> Tensor:
    t = (torch.arange(tokens, dtype=torch.float64) + 0.5) / tokens
    return torch.sin(2 * math.pi * 2 * t) + 0.5 * torch.cos(2 * math.pi * 5 * t + 1)


def test_what_is_held_of_a_smooth_signal_improves_faster_than_any_power() -> None:
    signal = smooth(2000)
    errors = [(held(signal, size) - signal).square().mean().item() for size in (12, 16, 24, 32)]
    assert errors[0] > 1e-3
    assert errors[2] < 1e-5 * errors[0]
    assert errors[3] < 1e-6


def test_steps_of_higher_order_are_nearer_to_the_exact_projection() -> None:
    """The step from time t to t + 1 takes 1 / (t + 1), and for the exact one ln((t + 1) / t), which starts from one token."""
    size, signal = 32, smooth(2000)
    A, B = hippo_system("legs", size)
    exact, errors = after(signal, size), {}
    for name, alpha in (("backward", 1.0), ("bilinear", 0.5), ("exact", None)):
        state = torch.zeros(size, dtype=torch.float64)
        state[0] = signal[0]
        for t, value in enumerate(signal[1:].tolist(), start=1):
            step = zero_order_hold(A, B, math.log((t + 1) / t)) if alpha is None else generalised_bilinear(A, B, 1 / (t + 1), alpha)
            state = step[0] @ state + step[1] * value
        errors[name] = ((state - exact).norm() / exact.norm()).item()
    assert errors["exact"] < 1e-10
    assert 1e-4 < errors["bilinear"] < 0.5 * errors["backward"] < 0.05


def test_forward_euler_explodes_where_the_exact_flow_cannot() -> None:
    A, B = hippo_system("legs", 64)
    state, value = torch.zeros(64, dtype=torch.float64), smooth(30)
    for t in range(1, 22):
        step = generalised_bilinear(A, B, 1 / t, 0.0)
        state = step[0] @ state + step[1] * value[t - 1]
    assert largest(state) > 1e25
    assert largest(after(value[:21], 64)) < 3


def test_a_million_steps_of_a_band_limited_signal_are_held_with_the_error_of_the_paper() -> None:
    """HiPPO, section 4.3: white noise below 1 Hz, 100 s in steps of 1e-4 s, rms 0.5, N = 256: MSE 0.02, where nothing learnt is 0.25.

    Each wave is lost by what its projection lacks; over the 100 waves of such a signal that comes to 0.0197.
    """
    tokens, waves, signals = 1_000_000, 100, 16
    spectrum = torch.zeros(signals, tokens // 2 + 1, dtype=torch.complex64)
    spectrum[:, 1 : waves + 1] = torch.complex(normal(signals, waves), normal(signals, waves, seed=1))
    signal = torch.fft.irfft(spectrum, tokens).mT
    signal *= 0.5 / signal.square().mean(0).sqrt()
    state = chunked_legs(signal[None], size=256, segment=512)[1].coefficients[0]
    middles = torch.arange(50, tokens, 100)
    found = reconstruct(state, (middles + 0.5) / tokens)
    errors = (found - signal[middles]).square().mean(0)
    assert errors.mean().item() == pytest.approx(0.0197, abs=0.003)
    # What is lost is what the coefficients lack of the power of the signal.
    torch.testing.assert_close(errors, 0.25 - state.square().sum(0), rtol=0.05, atol=0)
