"""Unit length against PyTorch's own normalisation and against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genomem.ops.unit_length import query_key_value, unit_length


def test_equals_the_normalisation_of_pytorch_in_value_and_gradient() -> None:
    x = torch.randn(2, 5, 3, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    torch.testing.assert_close(unit_length(x), F.normalize(x, dim=-1), rtol=1e-14, atol=1e-15)
    (grad,), (expected,) = (torch.autograd.grad(f(x), x, upstream) for f in (unit_length, lambda x: F.normalize(x, dim=-1)))
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(unit_length, x[:1, :2])


def test_query_key_and_value_equal_their_definition_in_value_and_gradient() -> None:
    projected = torch.randn(2, 5, 3 * 4 * 7, dtype=torch.float64, requires_grad=True)
    query, key, value = F.silu(projected).unflatten(-1, (3, 4, 7)).unbind(2)
    expected, actual = (F.normalize(query, dim=-1), F.normalize(key, dim=-1), value), query_key_value(projected, 4)
    upstream = [torch.randn_like(part) for part in actual]
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-15)
    (grad,), (definition,) = (torch.autograd.grad(parts, projected, upstream) for parts in (actual, expected))
    torch.testing.assert_close(grad, definition, rtol=1e-12, atol=1e-13)


def test_zero_stays_zero_and_its_gradient_is_finite() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    assert torch.equal(unit_length(x), x)
    (grad,) = torch.autograd.grad(unit_length(x).sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_empty_inputs(shape: tuple[int, ...]) -> None:
    assert unit_length(torch.randn(shape)).shape == shape


def test_bfloat16_stays_bfloat16_under_autocast() -> None:
    x = torch.randn(8, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        unit = unit_length(x)
    assert unit.dtype == torch.bfloat16
    torch.testing.assert_close(unit.float().norm(dim=-1), torch.ones(8), rtol=1e-2, atol=0)
    unit.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
