"""Slots and the open block: the definition against closed forms, and the blocks against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops import reference
from genomem.ops import sequence_dimension as module
from genomem.ops.sequence_dimension import chunked_sequence_dimension, slot_shares

HEADS, WIDTH, SLOTS = 2, 5, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(length: int, batch: int = 2) -> dict[str, Tensor]:
    shape = (batch, length, HEADS, WIDTH)
    forget = torch.linspace(0.1, 0.4, HEADS, dtype=torch.float64)
    return {"query": random(*shape, seed=1), "column": random(*shape, seed=2), "directions": random(HEADS, SLOTS, WIDTH), "forget": forget}


def tied_attention(query: Tensor, column: Tensor) -> Tensor:
    """Causal softmax attention whose keys are its values."""
    q, u = query.transpose(1, 2), column.transpose(1, 2)
    scores = q @ u.mT / q.shape[-1] ** 0.5
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ u).transpose(1, 2)


def test_the_definition_is_tied_attention_while_nothing_is_folded() -> None:
    given = inputs(7)
    read, (num, den) = reference.sequence_dimension(given["query"], given["column"], given["directions"], block_size=8)
    torch.testing.assert_close(read, tied_attention(given["query"], given["column"]), **CLOSE)
    assert not num.any()
    assert not den.any()


def test_a_definition_without_preference_sees_the_mean_of_what_is_folded() -> None:
    """With all directions alike every slot is the mean of the folded columns, and all of them together count as those."""
    given, folded = inputs(8, batch=1), 6
    read, (_, den) = reference.sequence_dimension(given["query"], given["column"], torch.zeros(HEADS, SLOTS, WIDTH).double(), block_size=3)
    torch.testing.assert_close(den, torch.full_like(den, folded / SLOTS), **CLOSE)
    for head in range(HEADS):
        q, u = given["query"][0, 7, head], given["column"][0, :, head]
        seen = torch.stack([u[:folded].mean(0), u[6], u[7]])
        weights = torch.tensor([folded, 1.0, 1.0]) * (seen @ q / WIDTH**0.5).exp()
        torch.testing.assert_close(read[0, 7, head], weights @ seen / weights.sum(), **CLOSE)


def test_every_folded_column_has_a_mass_of_one() -> None:
    given = inputs(14)
    _, (_, den) = reference.sequence_dimension(given["query"], given["column"], given["directions"], block_size=4)
    torch.testing.assert_close(den.sum(-1), torch.full((2, HEADS), 12.0, dtype=torch.float64), **CLOSE)


FACTORS = {
    "length": (1, 2, 15, 16, 17, 40),
    "block_size": (1, 4, 16, 64),
    "forget": (True, False),
    "split": (None, 1, 9),
    "mask": (True, False),
    "reset": (True, False),
}


def flags(length: int, choice: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = {"mask": torch.rand(2, length, generator=generator) > 0.3, "reset": torch.rand(2, length, generator=generator) > 0.85}
    return {name: flag for name, flag in drawn.items() if choice[name]}


def in_parts(query: Tensor, column: Tensor, directions: Tensor, split: int | None, options: dict[str, Any]) -> list[Tensor]:
    """Returns the reads, zero at padding, and Num and Den after the last token, of two calls with the state carried."""
    reads, state = [], None
    borders = [0, query.shape[1]] if split is None else [0, min(split, query.shape[1]), query.shape[1]]
    for start, end in zip(borders, borders[1:], strict=False):
        part = {name: value[:, start:end] if name in ("mask", "reset") else value for name, value in options.items()}
        read, state = chunked_sequence_dimension(query[:, start:end], column[:, start:end], directions, state, **part)
        reads.append(read if "mask" not in part else read * part["mask"][..., None, None])
    return [torch.cat(reads, dim=1), state.sums[..., :-1], state.sums[..., -1]]


def test_blocks_equal_the_definition_in_outputs_and_gradients(choice: dict[str, Any]) -> None:
    given = inputs(choice["length"])
    leaves = [given[name].clone().requires_grad_() for name in ("query", "column", "directions", "forget")]
    options = {"block_size": choice["block_size"], **flags(choice["length"], choice)}
    if choice["forget"]:
        options["forget"] = leaves[3]
    read, (num, den) = reference.sequence_dimension(*leaves[:3], **options)
    expected, actual = [read, num, den], in_parts(*leaves[:3], choice["split"], options)

    def gradients(results: list[Tensor]) -> list[Tensor]:
        loss = sum((part * random(*part.shape, seed=5)).sum() for part in results)
        # So that there is a gradient where all is padding.
        return list(torch.autograd.grad(loss + sum(leaf.sum() for leaf in leaves), leaves))

    for one, other in zip([*actual, *gradients(actual)], [*expected, *gradients(expected)], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("block_size", [1, 3, 7, 20])
def test_a_slot_a_column_is_full_attention_for_blocks_of_any_size(block_size: int) -> None:
    query, column = random(2, 20, HEADS, WIDTH), F.normalize(random(1, 20, HEADS, WIDTH, seed=1), dim=-1).expand(2, -1, -1, -1)
    # Each direction is one of the columns, so steep that its slot takes this column and no other.
    directions = 1e5 * column[0].transpose(0, 1)
    torch.testing.assert_close(slot_shares(column[0].transpose(0, 1), directions), torch.eye(20).double().expand(HEADS, -1, -1), **CLOSE)
    read, _ = chunked_sequence_dimension(query, column, directions, block_size=block_size)
    torch.testing.assert_close(read, tied_attention(query, column), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_spare_channels_change_nothing(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(30)
    reset = flags(30, {"mask": False, "reset": packed})
    read, state = chunked_sequence_dimension(**given, block_size=4, **reset)
    monkeypatch.setitem(module._SPARE_CHANNELS, "cpu", 8)
    wide, wide_state = chunked_sequence_dimension(**given, block_size=4, **reset)
    torch.testing.assert_close(wide, read, **CLOSE)
    torch.testing.assert_close(wide_state.sums, state.sums, **CLOSE)


def test_the_sums_of_a_half_precision_layer_are_float32() -> None:
    given = inputs(200)
    exact, _ = chunked_sequence_dimension(**given, block_size=16)
    rounded, state = chunked_sequence_dimension(**{name: x.bfloat16() for name, x in given.items()}, block_size=16)
    assert (rounded.dtype, state.sums.dtype, state.block.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    torch.testing.assert_close(rounded.double(), exact, rtol=0.05, atol=0.05)


def test_a_document_after_a_huge_one_starts_from_nothing() -> None:
    """Sums that a reset subtracted would keep the rounding of what stood before."""
    query, column = random(1, 24, 1, WIDTH).float(), random(1, 24, 1, WIDTH, seed=1).float()
    column[:, :12] *= 1e8
    reset = torch.arange(24)[None] == 12
    directions = random(1, SLOTS, WIDTH).float()
    packed, _ = chunked_sequence_dimension(query, column, directions, block_size=4, reset=reset)
    alone, _ = chunked_sequence_dimension(query[:, 12:], column[:, 12:], directions, block_size=4)
    torch.testing.assert_close(packed[:, 12:], alone)


def test_no_step_holds_a_score_for_every_pair_of_tokens() -> None:
    query, column = torch.randn(2, 1, 4096, 1, 4, requires_grad=True).unbind()
    with torch.profiler.profile(profile_memory=True) as profile:
        chunked_sequence_dimension(query, column, torch.randn(1, 8, 4), block_size=64)[0].sum().backward()
    assert sum(event.self_cpu_memory_usage for event in profile.key_averages() if event.self_cpu_memory_usage > 0) < 4096 * 4096


def recall(pairs: int, slots: int, block_size: int) -> float:
    """Returns how often a read finds the value of its key among so many pairs, all of them stored by a layer without training."""
    generator = torch.Generator().manual_seed(pairs)
    keys, values = (F.normalize(torch.randn(pairs, 16, generator=generator), dim=-1) for _ in range(2))
    column = torch.cat([keys, values], dim=-1).view(1, pairs, 1, 32)
    directions = 100 * F.pad(torch.randn(1, slots, 16, generator=generator), (0, 16))
    _, state = chunked_sequence_dimension(column, column, directions, block_size=block_size)
    found = []
    for place, key in enumerate(keys):
        asked = 200 * F.pad(key, (0, 16)).view(1, 1, 1, 32)
        read, _ = chunked_sequence_dimension(asked, torch.zeros_like(asked), directions, state, block_size=block_size)
        found.append(int((values @ read[0, 0, 0, 16:]).argmax()) == place)
    return sum(found) / pairs


def test_single_pairs_are_lost_once_there_are_many_more_of_them_than_slots() -> None:
    assert recall(96, 32, block_size=97) == 1.0
    few, many = recall(8, 64, block_size=1), recall(256, 8, block_size=1)
    assert few > 0.9
    assert many < 0.2
