"""The chunked and the recurrent linear memory against the sequential definition, in outputs, states and all gradients."""

import pytest
import torch
import torch.nn.functional as F

from genomem.ops import linear_memory, linear_memory_blocks, reference
from genomem.ops.linear_memory import chunked_linear_memory, recurrent_linear_memory

FORMS = {"chunked": chunked_linear_memory, "recurrent": recurrent_linear_memory}
# The largest error of a tensor over its largest element, in double precision.
RELATIVE_ERROR = 1e-11


def _assert_close(actual, expected, name=""):
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE_ERROR * scale, msg=lambda text: f"{name}: {text}")


def _inputs(length, *, batch=2, heads=2, key_width=5, value_width=3, dtype=torch.float64, seed=0, per_channel=False):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    gate = lambda: torch.rand(batch, length, heads, dtype=torch.float64, generator=generator)  # noqa: E731
    unit = lambda: F.normalize(normal(batch, length, heads, key_width), dim=-1)  # noqa: E731
    inputs = {"query": unit(), "key": unit(), "value": normal(batch, length, heads, value_width)}
    inputs |= {"step_size": gate(), "momentum": gate(), "forget": 0.2 * gate()}
    if per_channel:
        inputs["forget"] = torch.rand(batch, length, heads, key_width, dtype=torch.float64, generator=generator)
    inputs |= {"W": normal(batch, heads, key_width, value_width), "S": normal(batch, heads, key_width, value_width)}
    return {name: part.to(dtype) for name, part in inputs.items()}


def _run(form, inputs, **options):
    named = {name: inputs.get(name) for name in ("step_size", "momentum", "forget")}
    return form(inputs["query"], inputs["key"], inputs["value"], **named, state=(inputs.get("W"), inputs.get("S")), **options)


def _with_gradients(form, inputs, **options):
    """Returns output, states and the gradients of a random weighting of them with respect to all inputs."""
    leaves = {name: part.detach().clone().requires_grad_() for name, part in inputs.items() if part is not None}
    output, (memory, surprise, *_) = _run(form, leaves, **options)
    results = [output, memory] + ([surprise] if "momentum" in leaves else [])
    generator = torch.Generator().manual_seed(9)
    loss = sum((part * torch.randn(part.shape, dtype=torch.float64, generator=generator)).sum() for part in results)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    results += [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves.values(), strict=True)]
    return dict(zip(["output", "W", "S"][: len(results) - len(leaves)] + [f"d {name}" for name in leaves], results, strict=True))


def _assert_same(form, inputs, options=None, **only):
    """Compares with the definition; `only` holds what the definition has no word for, such as several chunk sizes."""
    expected = _with_gradients(reference.linear_memory, inputs, **(options or {}))
    sizes = only.get("chunk_size")
    for each in [only] if not isinstance(sizes, tuple) else [{"chunk_size": size} for size in sizes]:
        actual = _with_gradients(form, inputs, **(options or {}), **each)
        for name, value in expected.items():
            _assert_close(actual[name], value, name)


def _borders(length, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {"mask": torch.rand(2, length, generator=generator) > 0.3, "reset": torch.rand(2, length, generator=generator) > 0.85}


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_any_length_equals_the_definition(length):
    _assert_same(chunked_linear_memory, _inputs(length, batch=1))


FACTORS = {
    "length": (1, 2, 63, 64, 65, 1000),
    "chunk_size": (1, 16, 64),
    "gradient_block": (1, 8, "chunk"),
    "split": ("none", "inside", "border"),
    "momentum": (True, False),
    "forget": ("head", "channel", "none"),
    "state": (True, False),
    "mask": (True, False),
    "reset": (True, False),
}


def _in_two(split):
    """Returns the chunked form, called for the tokens before the split and again for those after it."""

    def form(*sequences, state, mask=None, reset=None, step_size, momentum, forget, **options):
        tokens = dict(zip(("query", "key", "value"), sequences, strict=True))
        tokens |= {"step_size": step_size, "momentum": momentum, "forget": forget, "mask": mask, "reset": reset}
        outputs = []
        for part in (slice(split), slice(split, None)):
            cut = {name: None if x is None else x[:, part] for name, x in tokens.items()}
            output, state = chunked_linear_memory(**cut, state=state, **options)
            outputs.append(output)
        return torch.cat(outputs, dim=1), state

    return form


def test_any_two_of_length_chunk_block_split_gates_state_padding_and_documents(choice):
    length, chunk = choice["length"], choice["chunk_size"]
    block = chunk if choice["gradient_block"] == "chunk" else choice["gradient_block"]
    inputs = _inputs(length, heads=1, key_width=4, per_channel=choice["forget"] == "channel")
    inputs |= {"momentum": None} if not choice["momentum"] else {"step_size": (1 - inputs["momentum"]) * inputs["step_size"]}
    inputs |= {"W": None, "S": None} if not choice["state"] else {}
    inputs |= {"forget": None} if choice["forget"] == "none" else {}
    options = {name: flag for name, flag in _borders(length).items() if choice[name]} | {"gradient_block": block}
    # Inside is an odd place, so inside every block of more than one token; at the border, before padding moves it.
    split = {"none": 0, "inside": length // 2 | 1, "border": (length // 2 // block or length // block) * block}[choice["split"]]
    form = chunked_linear_memory if choice["split"] == "none" else _in_two(split)
    _assert_same(form, inputs, options, chunk_size=chunk)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("objective", ["squared", "dot"])
@pytest.mark.parametrize("decay_first", [False, True])
@pytest.mark.parametrize("read", ["after", "before"])
def test_every_setting_equals_the_definition(form, objective, decay_first, read):
    only = {"chunk_size": 4} if form == "chunked" else {}
    _assert_same(FORMS[form], _inputs(11), {"objective": objective, "decay_first": decay_first, "read": read}, **only)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("momentum", ["some", 0.0, 1.0, None])
@pytest.mark.parametrize("forget", ["some", 0.0, 1.0, None])
@pytest.mark.parametrize("masked", [False, True])
def test_gates_at_their_limits(form, momentum, forget, masked):
    inputs = _inputs(13)
    for name, limit in (("momentum", momentum), ("forget", forget)):
        if limit is None:
            inputs[name] = None
        elif limit != "some":
            inputs[name][:, ::3] = limit
    only = {"chunk_size": 6} if form == "chunked" else {}
    options = {"mask": torch.rand(2, 13, generator=torch.Generator().manual_seed(1)) > 0.4} if masked else {}
    _assert_same(FORMS[form], inputs, options, **only)


def test_zero_momentum_is_no_momentum():
    inputs = _inputs(40)
    output, (memory, surprise) = _run(chunked_linear_memory, inputs | {"momentum": None}, chunk_size=16)
    expected, (expected_memory, _) = _run(chunked_linear_memory, inputs | {"momentum": torch.zeros(2, 40, 2).double()}, chunk_size=16)
    _assert_close(output, expected)
    _assert_close(memory, expected_memory)
    assert surprise is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", [1, 15, 16, 17, 39])
@pytest.mark.parametrize("momentum", [True, False])
def test_a_split_with_carried_state_equals_the_whole(form, split, momentum):
    inputs, only = _inputs(40), {"chunk_size": 16} if form == "chunked" else {}
    if not momentum:
        inputs["momentum"] = None
    whole, end = _run(FORMS[form], inputs, **only)
    tokens = {name: part for name, part in inputs.items() if name not in ("W", "S") and part is not None}
    first, (memory, surprise) = _run(FORMS[form], {**inputs, **{name: part[:, :split] for name, part in tokens.items()}}, **only)
    second, after = _run(FORMS[form], {name: part[:, split:] for name, part in tokens.items()} | {"W": memory, "S": surprise}, **only)
    _assert_close(torch.cat([first, second], dim=1), whole)
    assert [part is None for part in after] == [part is None for part in end] == [False, not momentum]
    for part, expected in zip(after, end, strict=True):
        if part is not None:
            _assert_close(part, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay_first", [False, True])
def test_padding_anywhere_equals_the_compacted_sequence(form, decay_first):
    inputs, only = _inputs(50, batch=1), {"chunk_size": 16} if form == "chunked" else {}
    mask = torch.rand(1, 50, generator=torch.Generator().manual_seed(2)) > 0.5
    mask[:, 16:32] = False
    output, state = _run(FORMS[form], inputs, mask=mask, decay_first=decay_first, **only)
    compact = {name: part if name in ("W", "S") else part[:, mask[0]] for name, part in inputs.items()}
    expected, expected_state = _run(reference.linear_memory, compact, decay_first=decay_first)
    _assert_close(output[:, mask[0]], expected)
    assert output[:, ~mask[0]].eq(0).all()
    for part, other in zip(state, expected_state, strict=True):
        _assert_close(part, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("read", ["after", "before"])
def test_a_reset_equals_a_fresh_start(form, momentum, read):
    inputs, only = _inputs(40, batch=1), {"chunk_size": 16} if form == "chunked" else {}
    if not momentum:
        inputs["momentum"] = None
    starts = [0, 5, 16, 30]
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[:, starts] = True
    output, (memory, _) = _run(FORMS[form], inputs, reset=reset, read=read, **only)
    tokens = {name: part for name, part in inputs.items() if name not in ("W", "S") and part is not None}
    for start, stop in zip(starts, [*starts[1:], 40], strict=True):
        document = {name: part[:, start:stop] for name, part in tokens.items()}
        expected, (expected_memory, _) = _run(reference.linear_memory, document, read=read)
        _assert_close(output[:, start:stop], expected)
    _assert_close(memory, expected_memory)


@pytest.mark.parametrize("read", ["after", "before"])
def test_gradients_through_padding_and_resets(read):
    generator = torch.Generator().manual_seed(3)
    mask, reset = torch.rand(2, 29, generator=generator) > 0.3, torch.rand(2, 29, generator=generator) > 0.8
    _assert_same(chunked_linear_memory, _inputs(29), {"mask": mask, "reset": reset, "read": read}, chunk_size=8)
    _assert_same(chunked_linear_memory, _inputs(29) | {"forget": None}, {"mask": mask, "reset": reset, "read": read}, chunk_size=8)


def test_many_spans_equal_one(monkeypatch):
    inputs = _inputs(50)
    whole = _with_gradients(chunked_linear_memory, inputs, chunk_size=8)
    monkeypatch.setattr(linear_memory, "_SPAN_ELEMENTS", {"cpu": 1})
    for name, part in _with_gradients(chunked_linear_memory, inputs, chunk_size=8).items():
        _assert_close(part, whole[name])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
def test_low_precision_inputs(dtype, tolerance):
    inputs = _inputs(130, dtype=torch.float32)
    inputs |= {name: inputs[name].to(dtype) for name in ("query", "key", "value")}
    actual = _with_gradients(chunked_linear_memory, inputs)
    expected = _with_gradients(reference.linear_memory, {name: part.double() for name, part in inputs.items()})
    assert actual["output"].dtype == actual["d key"].dtype == dtype
    assert actual["W"].dtype == actual["S"].dtype == actual["d momentum"].dtype == torch.float32
    for name, part in expected.items():
        error = (actual[name].double() - part).norm() / part.norm()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


def test_autocast_leaves_gates_solve_and_state_in_float32():
    inputs = _inputs(70, dtype=torch.float32)
    plain, _ = _run(chunked_linear_memory, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = _with_gradients(chunked_linear_memory, inputs)
    torch.testing.assert_close(cast["output"], plain)
    torch.testing.assert_close(cast["d key"], _with_gradients(chunked_linear_memory, inputs)["d key"])


@pytest.mark.parametrize("period", [1, 6])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_repeated_keys_stay_bounded(period, momentum):
    length = 8192
    inputs = _inputs(length, batch=1, heads=1, key_width=16, dtype=torch.float32) | {"W": None, "S": None, "forget": None}
    inputs["key"] = inputs["key"][:, :period].repeat(1, length // period + 1, 1, 1)[:, :length]
    inputs |= {
        "query": inputs["key"],
        "momentum": torch.full((1, length, 1), momentum),
        "step_size": torch.full((1, length, 1), 1 - momentum),
    }
    output, (memory, _) = _run(chunked_linear_memory, inputs)
    assert output.isfinite().all()
    assert output.abs().max() < 20
    assert memory.abs().max() < 20


@pytest.mark.parametrize("forgets", [True, False], ids=["Gated DeltaNet", "DeltaNet"])
@pytest.mark.parametrize("no_momentum", [None, torch.zeros(2, 30, 2, dtype=torch.float64)], ids=["none", "zero"])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_without_momentum_and_decay_first_it_is_gated_delta_net_and_without_forgetting_delta_net(forgets, no_momentum, chunk_size):
    """The gated delta rule of arXiv 2412.06464, its state values by keys: S = S alpha (I - beta k k^T) + beta v k^T."""
    inputs = _inputs(30) | {"momentum": no_momentum, "W": None, "S": None} | ({} if forgets else {"forget": None})
    output, (memory, _) = _run(chunked_linear_memory, inputs, decay_first=True, chunk_size=chunk_size)
    state = torch.zeros(2, 2, 3, 5, dtype=torch.float64)
    expected = []
    for t in range(30):
        query, key, value = (inputs[name][:, t, :, :, None] for name in ("query", "key", "value"))
        beta, alpha = inputs["step_size"][:, t, :, None, None], 1 - inputs["forget"][:, t, :, None, None] if forgets else 1.0
        state = alpha * state @ (torch.eye(5) - beta * key @ key.mT) + beta * value @ key.mT
        expected.append((state @ query)[..., 0])
    _assert_close(output, torch.stack(expected, dim=1))
    _assert_close(memory, state.mT)


@pytest.mark.parametrize("momentum", [0.0, 1e-45, 1e-30, 1.0])
@pytest.mark.parametrize("forget", [0.0, 1e-30, 1.0 - 2**-24, 1.0])
@pytest.mark.parametrize("step_size", [0.0, 1e-30, 1.0])
def test_extreme_gates_are_finite(momentum, forget, step_size):
    inputs = _inputs(70, batch=1, heads=1, dtype=torch.float32)
    for name, gate in (("momentum", momentum), ("forget", forget), ("step_size", step_size)):
        inputs[name] = torch.full((1, 70, 1), gate)
    for name, part in _with_gradients(chunked_linear_memory, inputs).items():
        assert part.isfinite().all(), name


def test_reads_are_causal():
    inputs = _inputs(40)
    changed = {name: part.clone() for name, part in inputs.items()}
    for name in ("query", "key", "value", "step_size", "momentum", "forget"):
        changed[name][:, 21] *= 0.5
    first, second = (_run(chunked_linear_memory, part, chunk_size=16)[0] for part in (inputs, changed))
    assert torch.equal(first[:, :21], second[:, :21])
    assert not torch.equal(first[:, 21], second[:, 21])


BLOCKS = [(3, False), (8, False), (64, False), (1, True), (3, True)]


RULES = {
    "plain": ((), "squared", False, "after"),
    "mask": (("mask",), "squared", False, "before"),
    "reset": (("reset",), "squared", True, "after"),
    "both": (("mask", "reset"), "squared", True, "before"),
    "dot": (("mask", "reset"), "dot", False, "after"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("block", "per_channel"), BLOCKS, ids=str)
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_gradient_blocks_and_gates_a_channel_equal_the_definition(form, block, per_channel, momentum, rule):
    inputs = _inputs(13, per_channel=per_channel) | ({} if momentum else {"momentum": None})
    flags, objective, decay_first, read = RULES[rule]
    options = {"objective": objective, "decay_first": decay_first, "read": read, "gradient_block": block}
    options |= {name: flag for name, flag in _borders(13).items() if name in flags}
    _assert_same(FORMS[form], inputs, options, **({"chunk_size": (1, 5, 64)} if form == "chunked" else {}))


@pytest.mark.parametrize("length", [0, 1, 8, 60])
@pytest.mark.parametrize(("block", "per_channel"), [(8, False), (1, True)], ids=str)
def test_gradient_blocks_of_any_length(length, block, per_channel):
    _assert_same(chunked_linear_memory, _inputs(length, batch=1, per_channel=per_channel), {"gradient_block": block}, chunk_size=16)


@pytest.mark.parametrize("forget", [None, 0.0, 1.0])
@pytest.mark.parametrize("momentum", [None, 0.0, 1.0])
@pytest.mark.parametrize(("block", "per_channel"), [(4, False), (1, True)], ids=str)
def test_gradient_blocks_with_gates_at_their_limits(forget, momentum, block, per_channel):
    inputs = _inputs(13, per_channel=per_channel)
    for name, limit in (("momentum", momentum), ("forget", forget)):
        if limit is None:
            inputs[name] = None
        else:
            inputs[name][:, ::3] = limit
    _assert_same(chunked_linear_memory, inputs, {"gradient_block": block}, chunk_size=6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("splits", [(1,), (7, 9), (8, 16), (0, 3, 3, 25), tuple(range(30))], ids=str)
@pytest.mark.parametrize(("block", "per_channel"), [(8, False), (3, True), (1, True)], ids=str)
@pytest.mark.parametrize("flags", [False, True])
def test_a_split_inside_a_gradient_block_carries_its_start(form, splits, block, per_channel, flags):
    inputs, options = _inputs(30, per_channel=per_channel), {"gradient_block": block} | ({"chunk_size": 6} if form == "chunked" else {})
    borders = _borders(30) if flags else {}
    whole, end = _run(FORMS[form], inputs, **options, **borders)
    tokens = {name: part for name, part in inputs.items() if name not in ("W", "S")}
    pieces, state = [], (inputs["W"], inputs["S"])
    for start, stop in zip((0, *splits), (*splits, 30), strict=True):
        part, part_borders = ({name: x[:, start:stop] for name, x in group.items()} for group in (tokens, borders))
        query, key, value = (part.pop(name) for name in ("query", "key", "value"))
        piece, state = FORMS[form](query, key, value, **part, state=state, **options, **part_borders)
        pieces.append(piece)
    _assert_close(torch.cat(pieces, dim=1), whole)
    for actual, expected in zip(state[:2], end[:2], strict=True):
        _assert_close(actual, expected)
    assert (len(state) == 2) is (block == 1)


def test_padding_says_nothing_about_documents():
    inputs, borders = _inputs(30), _borders(30)
    for form in FORMS.values():
        ignored, _ = _run(form, inputs, mask=borders["mask"], reset=borders["reset"] & borders["mask"])
        _assert_close(_run(form, inputs, **borders)[0], ignored)


def test_equal_gates_in_all_channels_are_one_gate_a_head():
    inputs = _inputs(40)
    expected = _with_gradients(chunked_linear_memory, inputs, chunk_size=16)
    spread = {"forget": inputs["forget"][..., None].expand(-1, -1, -1, 5).clone()}
    actual = _with_gradients(chunked_linear_memory, inputs | spread, chunk_size=16)
    actual["d forget"] = actual["d forget"].sum(-1)
    for name, part in expected.items():
        _assert_close(actual[name], part)


@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_without_momentum_and_forgetting_a_gradient_block_is_ttt_linear(chunk_size):
    """TTT-Linear (arXiv 2407.04620) without its LayerNorm and its residual target: gradients at the start of a mini-batch."""
    inputs, block = _inputs(21, batch=1, heads=1) | {"momentum": None, "forget": None, "W": None, "S": None}, 8
    output, (end, *_) = _run(chunked_linear_memory, inputs, gradient_block=block, chunk_size=chunk_size)
    learner = torch.nn.Linear(5, 3, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(learner.weight)
    weights, expected = learner.weight.detach().clone(), []
    for t in range(21):
        query, key, value, step = (inputs[name][0, t, 0] for name in ("query", "key", "value", "step_size"))
        if t % block == 0:
            learner.weight.data.copy_(weights)
        loss = torch.nn.MSELoss(reduction="sum")(learner(key), value) / 2
        weights = weights - step * torch.autograd.grad(loss, learner.weight)[0]
        expected.append(weights @ query)
    _assert_close(output[0, :, 0], torch.stack(expected))
    _assert_close(end[0, 0], weights.mT)


def test_a_gate_a_channel_on_plain_outer_products_is_gated_linear_attention():
    inputs = _inputs(30, batch=1, heads=1, per_channel=True) | {"momentum": None, "W": None, "S": None}
    output, _ = _run(chunked_linear_memory, inputs, objective="dot", chunk_size=8)
    state = torch.zeros(5, 3).double()
    for t in range(30):
        query, key, value, step, forget = (inputs[name][0, t, 0] for name in ("query", "key", "value", "step_size", "forget"))
        state = (1 - forget)[:, None] * state + step * key[:, None] * value[None, :]
        _assert_close(output[0, t, 0], query @ state)


def test_many_spans_of_gradient_blocks_equal_one(monkeypatch):
    inputs = _inputs(50)
    whole = _with_gradients(chunked_linear_memory, inputs, chunk_size=8, gradient_block=4)
    monkeypatch.setattr(linear_memory_blocks, "_SPAN_ELEMENTS", {"cpu": 1})
    for name, part in _with_gradients(chunked_linear_memory, inputs, chunk_size=8, gradient_block=4).items():
        _assert_close(part, whole[name])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize(("block", "per_channel"), [(8, False), (1, True)], ids=str)
def test_gradient_blocks_in_low_precision(dtype, tolerance, block, per_channel):
    inputs = _inputs(70, dtype=torch.float32, per_channel=per_channel)
    inputs["step_size"] = inputs["step_size"] / block
    inputs |= {name: inputs[name].to(dtype) for name in ("query", "key", "value")}
    actual = _with_gradients(chunked_linear_memory, inputs, gradient_block=block)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_run(chunked_linear_memory, inputs, gradient_block=block)[0], actual["output"])
    expected = _with_gradients(reference.linear_memory, {name: part.double() for name, part in inputs.items()}, gradient_block=block)
    assert actual["output"].dtype == actual["d key"].dtype == dtype
    assert actual["W"].dtype == actual["d momentum"].dtype == torch.float32
    for name, part in expected.items():
        error = (actual[name].double() - part).norm() / part.norm()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("option", [{"objective": "cosine"}, {"read": "later"}, {"chunk_size": 0}, {"gradient_block": 0}])
def test_unknown_options_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        _run(chunked_linear_memory, _inputs(3), **option)
