"""The sequential definition against the update written out by hand, and against finite differences."""

import copy

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
@pytest.mark.parametrize("gradient_block", [1, 2, 3])
@pytest.mark.parametrize("decay_first", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_equations_by_hand(objective, read, gradient_block, decay_first, per_channel):
    query, key, value, theta, eta, alpha = _inputs(7)
    alpha = torch.stack([alpha, alpha**2, 1 - alpha], dim=-1) if per_channel else alpha
    options = {"objective": objective, "read": read, "gradient_block": gradient_block, "decay_first": decay_first}
    output, (memory, surprise) = reference.linear_memory(query, key, value, step_size=theta, momentum=eta, forget=alpha, **options)
    for b in range(2):
        W, S = torch.zeros(3, 2).double(), torch.zeros(3, 2).double()
        for t in range(7):
            q, k, v, keep = query[b, t, 0], key[b, t, 0], value[b, t, 0], 1 - alpha[b, t].reshape(-1, 1)
            before = W
            if t % gradient_block == 0:
                start = W
            error = k @ (keep * start if decay_first else start) - v if objective == "squared" else -v
            S = eta[b, t] * S - theta[b, t] * torch.outer(k, error)
            W = keep * W + S
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


def _network_inputs(length, widths=(3, 5, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    gates = {name: torch.rand(2, length, 1, dtype=torch.float64, generator=generator) for name in ("step_size", "momentum", "forget")}
    weights = tuple(normal(1, *shape) for shape in zip(widths, widths[1:], strict=False))
    tokens = {"query": normal(2, length, 1, widths[0]), "key": normal(2, length, 1, widths[0]), "value": normal(2, length, 1, widths[-1])}
    return tokens | gates | {"weights": weights, "gain": normal(1, widths[-1])}


class _Network(torch.nn.Module):
    """The memory of one head as a module, to be trained by an optimizer."""

    def __init__(self, weights, gain, residual):
        super().__init__()
        self.linears = torch.nn.ModuleList(torch.nn.Linear(*weight.shape[1:], bias=False, dtype=torch.float64) for weight in weights)
        self.norm = torch.nn.Identity() if gain is None else torch.nn.LayerNorm(gain.shape[-1], bias=False, dtype=torch.float64)
        self.residual = residual
        with torch.no_grad():
            for parameter, weight in zip(self.parameters(), [*weights, *([] if gain is None else [gain])], strict=True):
                parameter.copy_(weight[0].mT if weight.dim() == 3 else weight[0])

    def forward(self, x):
        y = self.linears[0](x)
        for linear in self.linears[1:]:
            y = linear(torch.nn.GELU()(y))
        return self.norm(y) + (x if self.residual else 0)


@pytest.mark.parametrize("widths", [(3, 3), (3, 5, 3), (3, 5, 4, 3)], ids=["L=1", "L=2", "L=3"])
@pytest.mark.parametrize("has_gain", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("gradient_block", [1, 3])
@pytest.mark.parametrize("read", ["after", "before"])
def test_neural_memory_is_what_an_optimizer_does(widths, has_gain, residual, gradient_block, read):
    constant = torch.ones(2, 5, 1).double()
    inputs = _network_inputs(5, widths) | {"step_size": 0.1 * constant, "momentum": 0.7 * constant} | ({} if has_gain else {"gain": None})
    output, (weights, *_) = reference.neural_memory(**inputs, gradient_block=gradient_block, residual=residual, read=read)
    for b in range(2):
        live = _Network(inputs["weights"], inputs["gain"], residual)
        descent = torch.optim.SGD(live.parameters(), lr=0.1, momentum=0.7)
        for t in range(5):
            if t % gradient_block == 0:
                at_block_start = copy.deepcopy(live)
            read_before = live(inputs["query"][b, t, 0])
            loss = torch.nn.MSELoss(reduction="sum")(at_block_start(inputs["key"][b, t, 0]), inputs["value"][b, t, 0]) / 2
            gradient = torch.autograd.grad(loss, list(at_block_start.parameters()))
            with torch.no_grad():
                for parameter, part in zip(live.parameters(), gradient, strict=True):
                    parameter.mul_(1 - inputs["forget"][b, t, 0])
                    parameter.grad = part
            descent.step()
            expected = live(inputs["query"][b, t, 0]) if read == "after" else read_before
            torch.testing.assert_close(output[b, t, 0], expected)
        for parameter, weight in zip(live.parameters(), weights, strict=True):
            torch.testing.assert_close(weight[b, 0].mT if weight.dim() == 4 else weight[b, 0], parameter.data)


def test_one_matrix_of_zeros_and_blocks_of_one_token_are_the_linear_memory():
    query, key, value, theta, eta, alpha = _inputs(5)
    gates = {"step_size": theta, "momentum": eta, "forget": alpha}
    weights = (torch.zeros(1, 3, 2).double(),)
    output, (memory, surprise, *_) = reference.neural_memory(query, key, value, weights=weights, residual=False, gradient_block=1, **gates)
    expected, (expected_memory, expected_surprise) = reference.linear_memory(query, key, value, **gates)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close((*memory, *surprise), (expected_memory, expected_surprise))


def test_gradients_of_the_neural_memory_by_finite_differences():
    inputs = _network_inputs(3)
    weights = inputs.pop("weights")
    names = list(inputs)

    def read(*tensors):
        named = dict(zip(names, tensors[: len(names)], strict=True))
        output, (memory, surprise, block_start, _) = reference.neural_memory(**named, weights=tensors[len(names) :], gradient_block=2)
        return output, *memory, *surprise, *block_start

    # The fast mode compares one random projection of the Jacobian and not each entry.
    assert torch.autograd.gradcheck(read, [part.requires_grad_() for part in (*inputs.values(), *weights)], fast_mode=True)


def _slice(inputs, part):
    return {name: value if name in ("weights", "gain") else value[:, part] for name, value in inputs.items()}


def test_padding_and_resets_of_the_neural_memory():
    inputs = _network_inputs(7)
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool().expand(2, 7)
    # The second reset stands on padding, and says nothing.
    reset = torch.tensor([0, 0, 0, 1, 1, 0, 0]).bool().expand(2, 7)
    output, state = reference.neural_memory(**inputs, mask=mask, reset=reset, gradient_block=2)
    expected, expected_state = reference.neural_memory(**_slice(inputs, [3, 5, 6]), gradient_block=2)
    torch.testing.assert_close(output[:, [3, 5, 6]], expected)
    torch.testing.assert_close(state, expected_state)
    assert output[:, [2, 4]].eq(0).all()


@pytest.mark.parametrize("split", [0, 1, 2, 3, 5])
def test_a_split_of_the_neural_memory(split):
    inputs = _network_inputs(5)
    output, state = reference.neural_memory(**inputs, gradient_block=3)
    head, middle = reference.neural_memory(**_slice(inputs, slice(split)), gradient_block=3)
    tail, end = reference.neural_memory(**_slice(inputs, slice(split, None)), gradient_block=3, state=middle)
    torch.testing.assert_close((torch.cat([head, tail], dim=1), end), (output, state), rtol=0, atol=0)


def test_a_pair_is_the_start_of_a_block():
    inputs = _network_inputs(4)
    _, (memory, surprise, block_start, position) = reference.neural_memory(**inputs, gradient_block=3)
    assert position.tolist() == [1, 1]
    actual, _ = reference.neural_memory(**inputs, gradient_block=3, state=(memory, surprise))
    expected, _ = reference.neural_memory(**inputs, gradient_block=3, state=(memory, surprise, block_start, 0 * position))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
