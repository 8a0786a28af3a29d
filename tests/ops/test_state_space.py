"""The forms of the diagonal state space against the recurrence token by token, in outputs, states and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genomem.ops import reference
from genomem.ops.scan import first_order_scan
from genomem.ops.state_space import chunked_state_space, convolved_state_space, recurrent_state_space

BATCH, CHANNELS, STATES = 2, 3, 4
FORMS = {"chunked": chunked_state_space, "recurrent": recurrent_state_space, "convolved": convolved_state_space}
EVERYWHERE = ["chunked", "recurrent"]
# The largest error of a tensor over its largest element, in double precision.
RELATIVE_ERROR = 1e-11


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inputs(length: int, *, is_fresh: bool = False) -> dict[str, Tensor]:
    """States that last from two tokens to thousands, and turn from slowly to several times a token."""
    rate = torch.logspace(-4, -0.3, CHANNELS * STATES, dtype=torch.float64).view(STATES, CHANNELS).t()
    frequency = 3.0 * torch.arange(STATES, dtype=torch.float64) * torch.ones(CHANNELS, 1, dtype=torch.float64)
    found = {"signal": normal(BATCH, length, CHANNELS, seed=0), "poles": torch.complex(-rate, frequency)}
    found["weights"] = normal(CHANNELS, STATES, seed=1, dtype=torch.complex128)
    return found if is_fresh else found | {"state": normal(BATCH, CHANNELS, STATES, seed=2, dtype=torch.complex128)}


def with_gradients(form: Any, given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Returns output and state, and the gradients of a random weighting of them."""
    leaves = {name: part.clone().requires_grad_() for name, part in given.items()}
    output, state = form(**leaves, **options)
    parts = torch.view_as_real(state)
    loss = (output * normal(*output.shape, seed=3)).sum() + (parts * normal(*parts.shape, seed=4)).sum()
    # A fresh start over no tokens depends on nothing.
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else [None] * len(leaves)
    zeros = (torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves.values(), strict=True))
    return {"output": output, "state": state} | {f"d {name}": grad for name, grad in zip(leaves, zeros, strict=True)}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        largest = value.abs().max().item() if value.numel() else 0.0
        error = (actual[name] - value).abs().max().item() if value.numel() else 0.0
        assert error <= RELATIVE_ERROR * largest, (name, error, largest)
        assert (actual[name].shape, actual[name].dtype) == (value.shape, value.dtype)


def borders(length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    draw = lambda share: torch.rand(BATCH, length, generator=generator) < share  # noqa: E731
    return {"mask": draw(0.7), "reset": draw(0.1)}


def in_two(form: Any, split: int) -> Any:
    """Returns the form, called for the tokens before the split and again for those after it."""

    def run(signal: Tensor, poles: Tensor, weights: Tensor, state: Tensor | None = None, **flags: Tensor) -> tuple[Tensor, Tensor]:
        first, state = form(signal[:, :split], poles, weights, state, **{name: flag[:, :split] for name, flag in flags.items()})
        second, state = form(signal[:, split:], poles, weights, state, **{name: flag[:, split:] for name, flag in flags.items()})
        return torch.cat([first, second], dim=1), state

    return run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "carried"])
def test_any_length_equals_the_definition(form: str, length: int, is_fresh: bool) -> None:
    given = inputs(length, is_fresh=is_fresh)
    assert_same(with_gradients(FORMS[form], given), with_gradients(reference.state_space, given))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", [0, 1, 63, 64, 65, 130])
def test_a_split_with_the_state_carried_equals_the_whole(form: str, split: int) -> None:
    given = inputs(130)
    assert_same(with_gradients(in_two(FORMS[form], split), given), with_gradients(reference.state_space, given))


@pytest.mark.parametrize("form", EVERYWHERE)
@pytest.mark.parametrize("only", ["mask", "reset", "both"])
@pytest.mark.parametrize("length", [1, 65, 200])
def test_padding_and_documents_equal_the_definition(form: str, only: str, length: int) -> None:
    given, flags = inputs(length), borders(length)
    flags = flags if only == "both" else {only: flags[only]}
    expected = with_gradients(reference.state_space, given, **flags)
    assert_same(with_gradients(FORMS[form], given, **flags), expected)
    assert_same(with_gradients(in_two(FORMS[form], length // 3), given, **flags), expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64, 300])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    given, flags = inputs(130), borders(130)
    expected = with_gradients(reference.state_space, given, **flags)
    assert_same(with_gradients(chunked_state_space, given, chunk_size=chunk_size, **flags), expected)


@pytest.mark.parametrize("form", EVERYWHERE)
def test_rows_of_nothing_but_padding_keep_their_state(form: str) -> None:
    given = inputs(9)
    output, state = FORMS[form](**given, mask=torch.zeros(BATCH, 9, dtype=torch.bool))
    assert not output.any()
    assert torch.equal(state, given["state"])


@pytest.mark.parametrize("form", EVERYWHERE)
@pytest.mark.parametrize("token", [1, 64, 129])
def test_outputs_before_a_token_do_not_depend_on_it_to_the_bit(form: str, token: int) -> None:
    given = inputs(130)
    changed = given["signal"].clone()
    changed[:, token] += 1e6
    before, after = FORMS[form](**given)[0], FORMS[form](**given | {"signal": changed})[0]
    assert torch.equal(before[:, :token], after[:, :token])
    assert not torch.equal(before[:, token], after[:, token])


def test_one_pole_is_an_exponential_moving_average() -> None:
    tokens = torch.arange(200, dtype=torch.float64)
    poles, weights = torch.tensor([[-0.1 + 0.3j]], dtype=torch.complex128), torch.tensor([[2.0 - 1.0j]], dtype=torch.complex128)
    pulse = (tokens == 0).double()[None, :, None]
    expected = (-0.1 * tokens).exp() * (2 * (0.3 * tokens).cos() + (0.3 * tokens).sin())
    for form in FORMS.values():
        torch.testing.assert_close(form(pulse, poles, weights)[0][0, :, 0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_single_precision_stays_near_the_definition_over_many_tokens(form: str) -> None:
    given = inputs(3000)
    expected = reference.state_space(**given)[0]
    single = {name: part.to(torch.complex64 if part.is_complex() else torch.float32) for name, part in given.items()}
    assert (FORMS[form](**single)[0] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_the_output_has_the_dtype_of_the_signal_and_the_state_that_of_the_poles(form: str) -> None:
    given = {name: part.to(torch.complex64) if part.is_complex() else part.bfloat16() for name, part in inputs(70).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = FORMS[form](**given)
    output, state = FORMS[form](**given)
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.complex64)
    assert torch.equal(mixed, output)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("constant", [True, False])
def test_the_scan_is_a_loop_in_values_and_gradients(dtype: torch.dtype, steps: int, constant: bool) -> None:
    decay, update = normal(1 if constant else steps, 1, 3, seed=0, dtype=dtype), normal(steps, 2, 3, seed=1, dtype=dtype)
    start = normal(2, 1, seed=2, dtype=dtype)
    found, x = first_order_scan(decay, update, start), start
    for t in range(steps):
        x = decay[0 if constant else t] * x + update[t]
        torch.testing.assert_close(found[t], x, rtol=0, atol=1e-12)
    assert found.shape == update.shape
    if steps:
        leaves = tuple(part.requires_grad_() for part in (decay, update, start))
        assert torch.autograd.gradcheck(first_order_scan, leaves)
