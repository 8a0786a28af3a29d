"""The selective scan in chunks against its definition, and the definition against a closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genomem.ops import reference, selective_scan
from genomem.ops.selective_scan import selective_scan as chunked_scan

BATCH, CHANNELS, SIZE = 2, 3, 4
# The largest error of a tensor over its largest element, in double precision.
RELATIVE_ERROR = 1e-10


@pytest.fixture(params=["token by token", "chunks", "chunks of one"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Spans of 40 tokens; on every device token by token, or in chunks side by side, as on a GPU."""
    monkeypatch.setattr(selective_scan, "_SPAN_ELEMENTS", {"cuda": 40 * BATCH * CHANNELS * SIZE})
    monkeypatch.setattr(selective_scan, "_CHUNK", {"token by token": {}, "chunks": {"cpu": 8}, "chunks of one": {"cpu": 1}}[request.param])
    return request.param


def make_inputs(tokens: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {"x": normal(BATCH, tokens, CHANNELS), "delta": normal(BATCH, tokens, CHANNELS).exp(), "A": -normal(CHANNELS, SIZE).exp()}
    return inputs | {
        "B": normal(BATCH, tokens, SIZE),
        "C": normal(BATCH, tokens, SIZE),
        "state": normal(BATCH, CHANNELS, SIZE),
    }


def make_flags(tokens: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    drawn = torch.rand(2, BATCH, tokens, generator=generator)
    return {"mask": drawn[0] > 0.3, "reset": drawn[1] > 0.8}


def with_gradients(scan: Any, inputs: dict[str, Tensor], **flags: Tensor) -> dict[str, Tensor]:
    leaves = {name: part.clone().requires_grad_() for name, part in inputs.items()}
    output, state = scan(**leaves, **flags)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in (output, state)]
    loss = sum((part.double() * weight).sum() for part, weight in zip((output, state), weights, strict=True))
    grads = torch.autograd.grad(loss, leaves.values(), materialize_grads=True)
    return {"output": output, "state after": state} | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], relative_error: float = RELATIVE_ERROR) -> None:
    for name, part in expected.items():
        scale = part.abs().max().item() if part.numel() else 0.0
        torch.testing.assert_close(
            actual[name].double(), part.double(), rtol=0, atol=relative_error * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("tokens", [0, 1, 7, 63, 64, 65])
@pytest.mark.parametrize("flags", [(), ("mask",), ("reset",), ("mask", "reset")], ids=" and ".join)
def test_outputs_states_and_gradients_equal_the_definition(form: str, tokens: int, flags: tuple[str, ...]) -> None:
    inputs = make_inputs(tokens)
    given = {name: flag for name, flag in make_flags(tokens).items() if name in flags}
    assert_same(with_gradients(chunked_scan, inputs, **given), with_gradients(reference.selective_scan, inputs, **given))


def test_a_thousand_tokens_equal_the_definition(form: str) -> None:
    inputs, flags = make_inputs(1000), make_flags(1000)
    flags["reset"] &= torch.arange(1000) % 50 == 0
    assert_same(with_gradients(chunked_scan, inputs, **flags), with_gradients(reference.selective_scan, inputs, **flags))


@pytest.mark.parametrize("borders", [(0,), (64,), (1, 1, 40), tuple(range(1, 64))], ids=str)
def test_parts_with_the_state_carried_equal_the_whole(form: str, borders: tuple[int, ...]) -> None:
    inputs, flags = make_inputs(64), make_flags(64)
    whole, last = chunked_scan(**inputs, **flags)
    pieces, state = [], inputs["state"]
    for start, end in zip((0, *borders), (*borders, 64), strict=True):
        part = {name: inputs[name] if name == "A" else inputs[name][:, start:end] for name in ("x", "delta", "A", "B", "C")}
        piece, state = chunked_scan(**part, state=state, **{name: flag[:, start:end] for name, flag in flags.items()})
        pieces.append(piece)
    assert_same({"y": torch.cat(pieces, dim=1), "state": state}, {"y": whole, "state": last})


def test_without_a_state_it_starts_at_zero(form: str) -> None:
    inputs = make_inputs(20)
    zeros = torch.zeros_like(inputs.pop("state"))
    fresh, at_zero = (chunked_scan(**inputs, state=state) for state in (None, zeros))
    assert all(torch.equal(one, other) for one, other in zip(fresh, at_zero, strict=True))
    assert_same({"y": fresh[0]}, {"y": reference.selective_scan(**inputs)[0]})


def test_the_definition_is_a_weighted_sum_of_the_past() -> None:
    inputs = make_inputs(12) | {"state": None}
    output, _ = reference.selective_scan(**inputs)
    x, delta, A, B, C = (inputs[name] for name in ("x", "delta", "A", "B", "C"))
    elapsed = delta.cumsum(1)
    since = elapsed[:, :, None] - elapsed[:, None]
    weights = torch.einsum("btn,bstne,bsn->btse", C, (since[..., None, :] * A.mT).exp().transpose(1, 2), B)
    causal = torch.ones(12, 12, dtype=torch.float64).tril()
    assert_same({"y": output}, {"y": torch.einsum("btse,bse,bse,ts->bte", weights, delta, x, causal)})


def test_the_definition_solves_the_differential_equation() -> None:
    """With a step cut into ever smaller ones, h' = A h + B x with constant B and x has h(t) = (exp(A t) - 1) / A B x."""
    steps, time = 20_000, 1.5
    A = torch.tensor([[-0.7]], dtype=torch.float64)
    ones = torch.ones(1, steps, 1, dtype=torch.float64)
    _, state = chunked_scan(2 * ones, ones * time / steps, A, 3 * ones, ones)
    torch.testing.assert_close(state.squeeze(), 6 * torch.expm1(A.squeeze() * time) / A.squeeze(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("step", [0.0, 1e-30, 1e4])
def test_decays_of_one_and_of_zero_are_exact(form: str, step: float) -> None:
    inputs = make_inputs(30)
    inputs["delta"][:, ::3] = step
    actual = with_gradients(chunked_scan, inputs)
    assert all(part.isfinite().all() for part in actual.values())
    assert_same(actual, with_gradients(reference.selective_scan, inputs))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_low_precision(form: str, dtype: torch.dtype, tolerance: float) -> None:
    inputs = make_inputs(100, torch.float32)
    inputs |= {name: inputs[name].to(dtype) for name in ("x", "B", "C")}
    actual = with_gradients(chunked_scan, inputs)
    assert actual["output"].dtype == actual["d B"].dtype == dtype
    assert actual["state after"].dtype == actual["d A"].dtype == torch.float32
    expected = with_gradients(reference.selective_scan, {name: part.double() for name, part in inputs.items()})
    assert_same(actual, expected, relative_error=tolerance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunked_scan(**inputs)[0], actual["output"])


def test_padding_may_hold_anything(form: str) -> None:
    inputs, mask = make_inputs(30), make_flags(30)["mask"]
    output, state = chunked_scan(**inputs, mask=mask)
    spoilt = {name: part.clone() for name, part in inputs.items()}
    for name in ("x", "delta", "B", "C"):
        spoilt[name][~mask] = 50.0
    again, state_again = chunked_scan(**spoilt, mask=mask)
    assert torch.equal(again, output)
    assert torch.equal(state_again, state)


def test_memory_does_not_grow_with_the_states_of_all_tokens() -> None:
    tokens, channels, size = 4096, 64, 16
    x = torch.randn(1, tokens, channels, requires_grad=True)
    written, read = torch.randn(2, 1, tokens, size).unbind(0)
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        output, _ = chunked_scan(x, torch.rand(1, tokens, channels), -torch.rand(channels, size), written, read)
        output.sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert largest < tokens * channels * size * 4 / 2
