"""The sequential definition against the update written out by hand, and against finite differences."""

import pytest
import torch

from genomem.ops import reference


def _inputs(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    gate = lambda: torch.rand(2, length, 1, dtype=torch.float64, generator=generator)  # noqa: E731
    return normal(2, length, 1, 3), normal(2, length, 1, 3), normal(2, length, 1, 2), gate(), gate(), gate()


@pytest.mark.parametrize("objective", ["squared", "dot"])
@pytest.mark.parametrize("read", ["after", "before"])
def test_equations_by_hand(objective, read):
    query, key, value, theta, eta, alpha = _inputs(4)
    output, (memory, surprise) = reference.linear_memory(
        query, key, value, step_size=theta, momentum=eta, forget=alpha, objective=objective, read=read
    )
    for b in range(2):
        W, S = torch.zeros(3, 2).double(), torch.zeros(3, 2).double()
        for t in range(4):
            q, k, v = query[b, t, 0], key[b, t, 0], value[b, t, 0]
            before = W
            error = k @ W - v if objective == "squared" else -v
            S = eta[b, t] * S - theta[b, t] * torch.outer(k, error)
            W = (1 - alpha[b, t]) * W + S
            torch.testing.assert_close(output[b, t, 0], q @ (W if read == "after" else before))
        torch.testing.assert_close(memory[b, 0], W)
        torch.testing.assert_close(surprise[b, 0], S)


def test_decay_first_without_momentum_is_gated_delta_net():
    query, key, value, theta, _, alpha = _inputs(5)
    output, _ = reference.linear_memory(query, key, value, step_size=theta, forget=alpha, decay_first=True)
    W = torch.zeros(2, 3, 2).double()
    for t in range(5):
        k, v, a, beta = key[:, t, 0], value[:, t, 0], 1 - alpha[:, t, 0, None, None], theta[:, t, 0, None, None]
        erase = torch.eye(3).double() - beta * k[:, :, None] * k[:, None, :]
        W = a * erase @ W + beta * k[:, :, None] * v[:, None, :]
        torch.testing.assert_close(output[:, t, 0], torch.einsum("bk,bkv->bv", query[:, t, 0], W))


def test_gradients_by_finite_differences():
    inputs = [part.requires_grad_() for part in _inputs(3)]

    def read(query, key, value, theta, eta, alpha):
        output, (memory, surprise) = reference.linear_memory(query, key, value, step_size=theta, momentum=eta, forget=alpha)
        return output, memory, surprise

    assert torch.autograd.gradcheck(read, inputs)


def test_padding_and_resets():
    query, key, value, theta, eta, alpha = _inputs(6)
    mask = torch.tensor([1, 1, 0, 1, 0, 1]).bool().expand(2, 6)
    reset = torch.tensor([0, 0, 0, 1, 0, 0]).bool().expand(2, 6)
    output, (memory, _) = reference.linear_memory(query, key, value, step_size=theta, momentum=eta, forget=alpha, mask=mask, reset=reset)
    kept = [part[:, [3, 5]] for part in (query, key, value, theta, eta, alpha)]
    expected, (expected_memory, _) = reference.linear_memory(*kept[:3], step_size=kept[3], momentum=kept[4], forget=kept[5])
    torch.testing.assert_close(output[:, [3, 5]], expected)
    torch.testing.assert_close(memory, expected_memory)
    assert output[:, [2, 4]].eq(0).all()


def test_empty_sequence_keeps_the_state():
    query, key, value, theta, eta, alpha = _inputs(0)
    state = torch.ones(2, 1, 3, 2).double(), torch.ones(2, 1, 3, 2).double()
    output, after = reference.linear_memory(query, key, value, step_size=theta, momentum=eta, forget=alpha, state=state)
    assert output.shape == (2, 0, 1, 2)
    assert all(torch.equal(old, new) for old, new in zip(state, after, strict=True))
