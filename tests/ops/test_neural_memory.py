"""The chunked and the recurrent deep memory against the sequential definition, in outputs, states and all gradients."""

import pytest
import torch
import torch.nn.functional as F

from genomem.ops import neural_memory, reference
from genomem.ops.linear_memory import chunked_linear_memory
from genomem.ops.neural_memory import NeuralMemoryState, chunked_neural_memory, recurrent_neural_memory

FORMS = {"chunked": chunked_neural_memory, "recurrent": recurrent_neural_memory}
# The largest error of a tensor over its largest element, in double precision.
RELATIVE_ERROR = 1e-11
TOKENS = ("query", "key", "value", "step_size", "momentum", "forget")
CARRIED = ("carried weights", "carried surprise", "carried block_weights")


def _inputs(length, *, widths=(3, 5, 3), gain=True, carried=3, batch=2, heads=2, seed=0):
    """Returns the inputs by name; weights are tuples, `carried` is how many of the first three parts of a state there are."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    gate = lambda: torch.rand(batch, length, heads, dtype=torch.float64, generator=generator)  # noqa: E731
    unit = lambda: F.normalize(normal(batch, length, heads, widths[0]), dim=-1)  # noqa: E731

    def fast(*leading):
        matrices = [normal(*leading, heads, *shape) / shape[0] ** 0.5 for shape in zip(widths, widths[1:], strict=False)]
        return (*matrices, 1 + 0.2 * normal(*leading, heads, widths[-1])) if gain else tuple(matrices)

    inputs = {"query": unit(), "key": unit(), "value": normal(batch, length, heads, widths[-1])}
    inputs |= {"step_size": 0.2 * gate(), "momentum": gate(), "forget": 0.2 * gate(), "weights": fast()}
    parts = fast(batch), tuple(0.1 * part for part in fast(batch)), fast(batch)
    return inputs | dict(zip(CARRIED[:carried], parts, strict=False))


def _run(form, inputs, *, position=0, gain=True, **options):
    """Calls a form of the memory; a state of three parts is at some position of its block."""
    inputs = dict(inputs)
    weights, state = inputs.pop("weights"), tuple(inputs.pop(name) for name in CARRIED if name in inputs)
    tokens = [inputs.pop(name) for name in TOKENS[:3]]
    if len(state) == 3:
        position = position if isinstance(position, torch.Tensor) else torch.full(tokens[0].shape[:1], position)
        state = NeuralMemoryState(*state, position)
    weights, gain = (weights[:-1], weights[-1]) if gain else (weights, None)
    return form(*tokens, weights=weights, gain=gain, state=state or None, **inputs, **options)


def _named(inputs):
    """Returns the tensors of the inputs by name, those of tuples one by one."""
    for name, part in inputs.items():
        if isinstance(part, tuple):
            yield from ((f"{name} {layer}", tensor) for layer, tensor in enumerate(part))
        elif part is not None:
            yield name, part


def _map(inputs, function):
    each = lambda part: tuple(map(function, part)) if isinstance(part, tuple) else None if part is None else function(part)  # noqa: E731
    return {name: each(part) for name, part in inputs.items()}


def _results(output, state):
    yield "output", output
    yield from _named(dict(zip(("weights after", "surprise after", "block_weights after", "position after"), state, strict=True)))


def _assert_close(actual, expected, name=""):
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE_ERROR * scale, msg=lambda text: f"{name}: {text}")


def _assert_all_close(actual, expected):
    """Compares tensors by name."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        _assert_close(actual[name], value, name)


def _with_gradients(form, inputs, **options):
    """Returns output, states and the gradients of a random weighting of them with respect to all inputs."""
    leaves = _map(inputs, lambda part: part.detach().clone().requires_grad_())
    results = dict(_results(*_run(form, leaves, **options)))
    generator = torch.Generator().manual_seed(9)
    weighted = [part * torch.randn(part.shape, dtype=torch.float64, generator=generator) for part in results.values()]
    names, tensors = zip(*_named(leaves), strict=True)
    grads = torch.autograd.grad(sum(part.sum() for part in weighted), tensors, allow_unused=True)
    grads = (torch.zeros_like(tensor) if grad is None else grad for grad, tensor in zip(grads, tensors, strict=True))
    return results | {f"d {name}": grad for name, grad in zip(names, grads, strict=True)}


def _assert_same(form, inputs, **options):
    _assert_all_close(_with_gradients(form, inputs, **options), _with_gradients(reference.neural_memory, inputs, **options))


def _flags(length, share, seed, batch=2):
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("gradient_block", [1, 3, 8, 64])
def test_any_length_and_gradient_block_equal_the_definition(length, gradient_block):
    position = torch.tensor([0, gradient_block - 1])
    _assert_same(chunked_neural_memory, _inputs(length, heads=1), gradient_block=gradient_block, position=position)


FACTORS = {
    "length": (1, 2, 63, 64, 65, 1000),
    "gradient_block": (1, 8, 64),
    "widths": ((3, 3), (3, 5, 3), (3, 5, 4, 3)),
    "gain": (True, False),
    "split": ("none", "inside", "border"),
    "momentum": (True, False),
    "forget": (True, False),
    "carried": (0, 2, 3),
    "mask": (True, False),
    "reset": (True, False),
}


def _in_two(split):
    """Returns the chunked form, called for the tokens before the split and again for those after it."""

    def form(query, key, value, *, mask=None, reset=None, step_size, momentum, forget, **options):
        tokens = dict(zip((*TOKENS, "mask", "reset"), (query, key, value, step_size, momentum, forget, mask, reset), strict=True))
        outputs = []
        for part in (slice(split), slice(split, None)):
            cut = {name: None if x is None else x[:, part] for name, x in tokens.items()}
            output, options["state"] = chunked_neural_memory(**cut, **options)
            outputs.append(output)
        return torch.cat(outputs, dim=1), options["state"]

    return form


def test_any_two_of_length_block_network_split_gates_state_padding_and_documents(choice):
    length, block = choice["length"], choice["gradient_block"]
    # The definition is slow and goes through rows one by one.
    batch = 1 if length == 1000 else 2
    inputs = _inputs(length, widths=choice["widths"], gain=choice["gain"], carried=choice["carried"], batch=batch, heads=1)
    inputs["step_size"] = (1 - inputs["momentum"]) * inputs["step_size"] / block
    inputs |= {name: None for name in ("momentum", "forget") if not choice[name]}
    flags = {"mask": ~_flags(length, 0.3, seed=2, batch=batch), "reset": _flags(length, 0.1, seed=3, batch=batch)}
    options = {name: flag for name, flag in flags.items() if choice[name]} | {"gain": choice["gain"], "gradient_block": block}
    # Inside is an odd place, so inside every block of more than one token; at the border, before padding moves it.
    split = {"none": None, "inside": length // 2 | 1, "border": (length // 2 // block or length // block) * block}[choice["split"]]
    form = chunked_neural_memory if split is None else _in_two(split)
    _assert_same(form, inputs, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("widths", [(3, 3), (3, 5, 3), (3, 5, 4, 3)], ids=["L=1", "L=2", "L=3"])
@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("read", ["after", "before"])
def test_every_network_equals_the_definition(form, widths, gain, residual, read):
    inputs = _inputs(7, widths=widths, gain=gain)
    _assert_same(FORMS[form], inputs, gain=gain, residual=residual, read=read, gradient_block=3, position=2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("widths", [(2, 4), (4, 5, 2)], ids=["L=1", "L=2"])
def test_keys_and_values_of_different_widths(form, widths):
    _assert_same(FORMS[form], _inputs(5, widths=widths), residual=False, gradient_block=2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("momentum", ["some", 0.0, 1.0, None])
@pytest.mark.parametrize("forget", ["some", 0.0, 1.0, None])
@pytest.mark.parametrize("masked", [False, True])
def test_gates_at_their_limits(form, momentum, forget, masked):
    inputs = _inputs(8, heads=1)
    inputs["step_size"][:, ::4] = 0.0
    for name, limit in (("momentum", momentum), ("forget", forget)):
        if limit is None:
            inputs[name] = None
        elif limit != "some":
            inputs[name][:, ::3] = limit
    options = {"mask": ~_flags(8, 0.3, seed=1)} if masked else {}
    _assert_same(FORMS[form], inputs, gradient_block=5, position=1, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("carried", [0, 2, 3])
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("flags", ["", "mask", "reset", "mask reset"])
def test_states_padding_and_documents_equal_the_definition(form, carried, momentum, read, flags):
    inputs = _inputs(9, carried=carried, heads=1)
    if not momentum:
        inputs["momentum"] = None
    options = {name: flag for name, flag in (("mask", ~_flags(9, 0.3, seed=2)), ("reset", _flags(9, 0.3, seed=3))) if name in flags}
    _assert_same(FORMS[form], inputs, gradient_block=4, position=torch.tensor([1, 3]), read=read, **options)


def test_a_pair_without_surprise_is_a_state_that_never_had_momentum():
    inputs = _inputs(6, carried=2) | {"carried surprise": None}
    _assert_same(chunked_neural_memory, inputs, gradient_block=4)
    zeros = {"carried surprise": tuple(torch.zeros_like(part) for part in inputs["carried weights"])}
    torch.testing.assert_close(_run(chunked_neural_memory, inputs), _run(chunked_neural_memory, inputs | zeros), rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_long_gradient_blocks_are_computed_in_chunks(monkeypatch, chunk):
    monkeypatch.setattr(neural_memory, "_CHUNK_TOKENS", chunk)
    options = {"mask": ~_flags(23, 0.2, seed=4), "reset": _flags(23, 0.1, seed=5)}
    _assert_same(chunked_neural_memory, _inputs(23, heads=1), gradient_block=7, position=torch.tensor([2, 6]), **options)


def _cut(inputs, part):
    return {name: value[:, part] if name in TOKENS and value is not None else value for name, value in inputs.items()}


def _carry(inputs, state):
    return inputs | dict(zip(CARRIED, state[:3], strict=True))


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("split", [0, 1, 7, 8, 9, 20])
@pytest.mark.parametrize("momentum", [True, False])
def test_a_split_with_carried_state_equals_the_whole(first, second, split, momentum):
    inputs = _inputs(20, carried=0)
    if not momentum:
        inputs["momentum"] = None
    mask, reset = ~_flags(20, 0.2, seed=6), _flags(20, 0.1, seed=7)
    whole, end = _run(chunked_neural_memory, inputs, gradient_block=8, mask=mask, reset=reset)
    options = {"gradient_block": 8, "mask": mask[:, :split], "reset": reset[:, :split]}
    head, state = _run(FORMS[first], _cut(inputs, slice(split)), **options)
    options = {"gradient_block": 8, "mask": mask[:, split:], "reset": reset[:, split:], "position": state.position}
    tail, after = _run(FORMS[second], _carry(_cut(inputs, slice(split, None)), state), **options)
    _assert_all_close(dict(_results(torch.cat([head, tail], dim=1), after)), dict(_results(whole, end)))


@pytest.mark.parametrize("split", [3, 8, 11])
def test_gradients_through_the_carried_state_equal_those_of_the_whole(split):
    expected = _with_gradients(chunked_neural_memory, _inputs(16), gradient_block=8, position=3)
    _assert_all_close(_with_gradients(_in_two(split), _inputs(16), gradient_block=8, position=3), expected)


@pytest.mark.parametrize("form", FORMS)
def test_padding_anywhere_equals_the_compacted_sequence(form):
    inputs, mask = _inputs(30, batch=1), ~_flags(30, 0.5, seed=8, batch=1)
    mask[:, 8:18] = False
    spoilt = _map(_cut(inputs, slice(None)), torch.clone)
    for name in TOKENS:
        spoilt[name][~mask] = torch.nan
    output, state = _run(FORMS[form], spoilt, mask=mask, gradient_block=8, position=5)
    expected = _run(FORMS[form], _cut(inputs, mask[0]), gradient_block=8, position=5)
    _assert_all_close(dict(_results(output[:, mask[0]], state)), dict(_results(*expected)))
    assert output[:, ~mask[0]].eq(0).all()


@pytest.mark.parametrize("form", FORMS)
def test_only_padding_leaves_the_state_as_it_is(form):
    inputs = _inputs(5)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    output, state = _run(FORMS[form], inputs, mask=nothing, reset=~nothing, gradient_block=4, position=2)
    assert output.eq(0).all()
    expected = *(inputs[name] for name in CARRIED), torch.tensor([2, 2])
    torch.testing.assert_close(tuple(state), expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("read", ["after", "before"])
def test_a_reset_equals_a_fresh_start(form, read):
    inputs, starts = _inputs(20, batch=1), [2, 5, 13]
    reset = torch.zeros(1, 20, dtype=torch.bool)
    reset[:, starts] = True
    output, state = _run(FORMS[form], inputs, reset=reset, read=read, gradient_block=8, position=3)
    for start, stop in zip(starts, [*starts[1:], 20], strict=True):
        document = {name: part for name, part in _cut(inputs, slice(start, stop)).items() if name not in CARRIED}
        expected, expected_state = _run(FORMS[form], document, read=read, gradient_block=8)
        _assert_close(output[:, start:stop], expected)
    _assert_all_close(dict(_results(output[:, start:], state)), dict(_results(expected, expected_state)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changed", [0, 7, 8, 13, 19])
def test_outputs_before_a_token_do_not_depend_on_it(form, changed):
    inputs = _inputs(20)
    other = _map(inputs, torch.clone)
    for name in TOKENS:
        other[name][:, changed] *= 0.5
    first, second = (_run(FORMS[form], part, gradient_block=8)[0] for part in (inputs, other))
    assert torch.equal(first[:, :changed], second[:, :changed])
    assert not torch.equal(first[:, changed], second[:, changed])


def test_reads_before_the_update_do_not_depend_on_the_own_value():
    inputs = _inputs(12)
    other = _map(inputs, torch.clone)
    other["value"][:, 9] += 1.0
    first, second = (_run(chunked_neural_memory, part, gradient_block=4, read="before")[0] for part in (inputs, other))
    assert torch.equal(first[:, :10], second[:, :10])
    assert not torch.equal(first[:, 10], second[:, 10])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gradient_block", [1, 4])
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("read", ["after", "before"])
def test_one_matrix_of_zeros_is_the_linear_memory(form, gradient_block, momentum, read):
    inputs = _inputs(19, widths=(4, 3), gain=False, carried=0)
    query, key, value, *gates = (inputs[name] for name in TOKENS)
    options = dict(zip(TOKENS[3:], gates, strict=True)) | ({} if momentum else {"momentum": None})
    options |= {"mask": ~_flags(19, 0.2, seed=6), "reset": _flags(19, 0.1, seed=7)}
    options |= {"read": read, "gradient_block": gradient_block}
    weights = (torch.zeros_like(inputs["weights"][0]),)
    output, state = FORMS[form](query, key, value, weights=weights, residual=False, **options)
    expected, (expected_memory, expected_surprise, *_) = chunked_linear_memory(query, key, value, **options)
    _assert_close(output, expected)
    _assert_close(state.weights[0], expected_memory)
    assert (state.surprise is None) == (not momentum)
    if state.surprise is not None:
        _assert_close(state.surprise[0], expected_surprise)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_low_precision_inputs(form, dtype, tolerance):
    inputs = _map(_inputs(70, widths=(8, 16, 8), carried=2), torch.Tensor.float)
    # Larger steps make the memory chaotic, and rounding grows from block to block.
    inputs["step_size"] *= (1 - inputs["momentum"]) / 16
    inputs |= {name: inputs[name].to(dtype) for name in TOKENS[:3]}
    options = {"gradient_block": 16, "reset": _flags(70, 0.05, seed=1)}
    actual = _with_gradients(FORMS[form], inputs, **options)
    expected = _with_gradients(FORMS[form], _map(inputs, torch.Tensor.double), **options)
    assert actual["output"].dtype == actual["d key"].dtype == dtype
    assert {part.dtype for name, part in actual.items() if "after" in name} == {torch.float32, torch.int64}
    for name, part in expected.items():
        error = (actual[name].double() - part).norm() / part.double().norm()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


def test_autocast_leaves_the_memory_in_float32():
    inputs = _map(_inputs(20), torch.Tensor.float)
    plain = _with_gradients(chunked_neural_memory, inputs, gradient_block=8)

    def under_autocast(*args, **options):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return chunked_neural_memory(*args, **options)

    forward_only = _with_gradients(under_autocast, inputs, gradient_block=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backward_too = _with_gradients(chunked_neural_memory, inputs, gradient_block=8)
    torch.testing.assert_close(forward_only, plain, rtol=0, atol=0)
    torch.testing.assert_close(backward_too, plain, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("gain", "step"), [(None, 0.9), (torch.ones(1, 16), 0.1)], ids=["no norm", "norm"])
def test_one_key_for_ever_stays_bounded(momentum, gain, step):
    length, block = 20_000, 64
    generator = torch.Generator().manual_seed(0)
    key = F.normalize(torch.randn(1, 1, 1, 16, generator=generator), dim=-1).expand(1, length, 1, 16)
    value = torch.randn(1, length, 1, 16, generator=generator)
    gate = torch.full((1, length, 1), momentum)
    weights = torch.randn(1, 16, 64, generator=generator) / 4, torch.randn(1, 64, 16, generator=generator) / 8
    options = {"weights": weights, "gain": gain, "step_size": (1 - gate) * step / block, "momentum": gate}
    with torch.no_grad():
        output, state = chunked_neural_memory(key, key, value, gradient_block=block, **options)
    assert output.isfinite().all()
    assert output.abs().max() < 20
    assert max(part.abs().max() for part in (*state.weights, *state.surprise)) < 20


@pytest.mark.parametrize("momentum", [0.0, 1e-45, 1e-30, 1.0])
@pytest.mark.parametrize("forget", [0.0, 1e-30, 1.0 - 2**-24, 1.0])
@pytest.mark.parametrize("step_size", [0.0, 1e-30, 0.01])
def test_extreme_gates_are_finite(momentum, forget, step_size):
    inputs = _map(_inputs(12, batch=1, heads=1), torch.Tensor.float)
    for name, gate in (("momentum", momentum), ("forget", forget), ("step_size", step_size)):
        inputs[name] = torch.full((1, 12, 1), gate)
    for name, part in _with_gradients(chunked_neural_memory, inputs, gradient_block=8).items():
        assert part.isfinite().all(), name


def test_a_carried_state_does_not_change_with_the_learnt_weights():
    inputs = _inputs(3, batch=1, carried=0) | {"momentum": None}
    _, state = _run(chunked_neural_memory, inputs, gradient_block=8)
    before = [part.clone() for part in (*state.weights, *state.block_weights)]
    for part in inputs["weights"]:
        part.zero_()
    assert all(torch.equal(old, new) for old, new in zip(before, (*state.weights, *state.block_weights), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("options", "message"),
    [({"read": "later"}, "read is 'later'"), ({"gradient_block": 0}, "gradient_block is 0")],
    ids=["read", "gradient_block"],
)
def test_unknown_options_are_named(form, options, message):
    with pytest.raises(ValueError, match=message):
        _run(FORMS[form], _inputs(3), **options)


@pytest.mark.parametrize("form", FORMS)
def test_a_residual_between_different_widths_is_named(form):
    with pytest.raises(ValueError, match="residual needs keys as wide as values; they are 3 and 4 wide"):
        _run(FORMS[form], _inputs(3, widths=(3, 4)))


def test_a_memory_without_weights_is_named():
    inputs = _inputs(3, gain=False, carried=0) | {"weights": ()}
    with pytest.raises(ValueError, match="weights is empty"):
        _run(chunked_neural_memory, inputs, gain=False)
