"""A linear memory whose documents start at a learned matrix, against the definition, document by document."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.config import SequenceModel
from genomem.errors import GenomemError
from genomem.layers import build_mixer
from genomem.ops import reference
from genomem.ops.linear_memory import chunked_linear_memory, recurrent_linear_memory

BATCH, TOKENS, HEADS, KEY, VALUE = 2, 19, 2, 5, 3
FORMS = {"chunked": chunked_linear_memory, "recurrent": recurrent_linear_memory}
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
MOMENTUM, CHANNELS = {"momentum": True}, {"per_channel": True}


def leaves(*, momentum: bool = False, per_channel: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Returns the inputs of the memory and a start, all to be differentiated."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, TOKENS, HEADS)
    query, key = torch.randn(2, *shape, KEY, generator=generator, dtype=torch.float64)
    gates = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    inputs = {"query": query, "key": F.normalize(key, dim=-1), "step_size": gates[0], "forget": gates[1]}
    inputs["value"] = torch.randn(*shape, VALUE, generator=generator, dtype=torch.float64)
    inputs["start"] = torch.randn(HEADS, KEY, VALUE, generator=generator, dtype=torch.float64)
    if momentum:
        inputs["momentum"] = gates[2]
    if per_channel:
        inputs["forget"] = torch.rand(*shape, KEY, generator=generator, dtype=torch.float64)
    return {name: part.to(dtype).requires_grad_() for name, part in inputs.items()}


def flags(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Returns a mask and resets, some of them on padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(BATCH, TOKENS, generator=generator) > 0.2, torch.rand(BATCH, TOKENS, generator=generator) > 0.7


def by_documents(inputs: dict[str, Tensor], mask: Tensor, reset: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Runs the definition on each document alone, from the start; returns the output and the last memory of each row."""
    start = (inputs["start"][None], None)
    outputs, ends = [], []
    for row in range(BATCH):
        documents: list[list[int]] = [[]]
        for t in mask[row].nonzero().flatten().tolist():
            if reset[row, t] and documents[-1]:
                documents.append([])
            documents[-1].append(t)
        output = torch.zeros(TOKENS, HEADS, VALUE, dtype=torch.float64)
        for document in documents:
            tokens = {name: part[row : row + 1, document] for name, part in inputs.items() if name != "start"}
            read, (memory, _) = reference.linear_memory(**tokens, state=start, **options)
            output = output.index_add(0, torch.tensor(document), read[0])
        outputs.append(output)
        ends.append(memory[0])
    return torch.stack(outputs), torch.stack(ends)


def with_gradients(inputs: dict[str, Tensor], output: Tensor, memory: Tensor) -> list[Tensor]:
    """Returns both, and the gradients of a random weighting of them."""
    generator = torch.Generator().manual_seed(2)
    loss = sum((part * torch.randn(part.shape, dtype=torch.float64, generator=generator)).sum() for part in (output, memory))
    return [output, memory, *torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True, allow_unused=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [{}, MOMENTUM, CHANNELS, MOMENTUM | CHANNELS], ids=["plain", "momentum", "channels", "both"])
@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("rule", [{}, {"decay_first": True, "read": "before"}, {"objective": "dot", "read": "before"}], ids=str)
def test_every_document_starts_there(form: str, shape: dict[str, bool], block: int, rule: dict[str, Any]) -> None:
    inputs, (mask, reset) = leaves(**shape), flags()
    expected = with_gradients(inputs, *by_documents(inputs, mask, reset, gradient_block=block, **rule))
    sizes = [{"chunk_size": size} for size in (1, 4, 64)] if form == "chunked" else [{}]
    for size in sizes:
        output, state = FORMS[form](**inputs, mask=mask, reset=reset, gradient_block=block, **rule, **size)
        for name, part, other in zip(("output", "memory", *inputs), with_gradients(inputs, output, state[0]), expected, strict=True):
            torch.testing.assert_close(part, other, **TIGHT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 3])
def test_a_carried_memory_goes_on_and_later_documents_start_afresh(form: str, block: int) -> None:
    inputs, (mask, reset) = leaves(momentum=True), flags()
    whole, _ = FORMS[form](**inputs, mask=mask, reset=reset, gradient_block=block)
    start, state, pieces = inputs.pop("start"), None, []
    for first, end in ((0, 0), (0, 4), (4, 5), (5, TOKENS)):
        part = {name: tokens[:, first:end] for name, tokens in inputs.items()}
        piece, state = FORMS[form](
            **part, start=start, state=state, mask=mask[:, first:end], reset=reset[:, first:end], gradient_block=block
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **TIGHT)


def test_a_start_of_zero_is_none() -> None:
    inputs, (mask, reset) = leaves(momentum=True), flags()
    start = inputs.pop("start")
    for resets in (None, reset):
        plain, _ = chunked_linear_memory(**inputs, mask=mask, reset=resets)
        torch.testing.assert_close(
            chunked_linear_memory(**inputs, start=torch.zeros_like(start), mask=mask, reset=resets)[0], plain, **TIGHT
        )


def test_a_start_behind_a_reset_is_as_exact_as_one_in_front_in_low_precision() -> None:
    inputs = leaves(momentum=True, dtype=torch.float32)
    inputs |= {name: inputs[name].bfloat16() for name in ("query", "key", "value")}
    reset = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    reset[:, 0] = True
    front, (memory, _) = chunked_linear_memory(**inputs)
    behind, (written, _) = chunked_linear_memory(**inputs, reset=reset)
    assert behind.dtype == torch.bfloat16
    torch.testing.assert_close(written, memory, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(behind, front)


@pytest.mark.parametrize("mixer", ["titans_lmm", "titans_mac", "titans_mag", "titans_mal"])
def test_before_training_a_learned_start_changes_nothing(mixer: str) -> None:
    hidden, outputs = torch.randn(2, 40, 8), []
    for learned_start in (None, False, True):
        torch.manual_seed(0)
        outputs.append(build_mixer(mixer, 8, heads=2, learned_start=learned_start)(hidden)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("mixer", ["titans_lmm", "titans_mac", "titans_mag", "titans_mal"])
def test_a_deep_memory_has_a_learned_start_always(mixer: str) -> None:
    hidden, outputs = torch.randn(2, 9, 8), []
    for learned_start in (None, True):
        torch.manual_seed(0)
        outputs.append(build_mixer(mixer, 8, heads=2, depth=2, learned_start=learned_start)(hidden)[0])
    assert torch.equal(*outputs)
    with pytest.raises(GenomemError, match="learned_start is false, but a memory of depth 2 has no gradient at zero"):
        build_mixer(mixer, 8, heads=2, depth=2, learned_start=False)
    with pytest.raises(ValueError, match="learned_start: a memory of depth 2 has no gradient at zero; leave the key out"):
        SequenceModel.model_validate({"layers": [{"mixer": mixer, "depth": 2, "learned_start": False}]})
