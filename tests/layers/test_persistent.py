"""Learned tokens before every document: where they are put, and that the layer sees nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genomem.layers.persistent import mix_behind
from genomem.ops.ragged import insert_before, take_slots


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_tokens_are_inserted_as_by_a_loop(count: int, share: float) -> None:
    places = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) < share
    source, slot = insert_before(places, count)
    x = torch.arange(1, 22.0).view(3, 7)
    new = -torch.arange(1.0, count + 1).expand(3, count)
    rows = []
    for b in range(3):
        row: list[float] = []
        for t in range(7):
            row += new[b].tolist() * bool(places[b, t])
            assert slot[b, t] == len(row)
            row.append(x[b, t].item())
        rows.append(row)
    longest = max(map(len, rows))
    expected = torch.tensor([row + [0.0] * (longest - len(row)) for row in rows])
    assert torch.equal(take_slots(torch.cat([x, new], dim=1), source), expected)


class Totals:
    """A layer that adds up each document; it notes how many tokens it was shown."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def __call__(self, hidden: Tensor, state: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        self.shown.append(hidden.shape[1])
        total = torch.zeros_like(hidden[:, :0].sum(1)) if state is None else state
        outputs = [hidden[:, :0]]
        for t in range(hidden.shape[1]):
            real = torch.ones_like(total) if mask is None else mask[:, t, None].to(total)
            if reset is not None:
                total = torch.where(reset[:, t, None], 0.0, total)
            total = total + real * hidden[:, t]
            outputs.append((real * total)[:, None])
        return torch.cat(outputs, dim=1), total


def test_every_document_starts_behind_the_tokens_once_and_a_carried_one_does_not() -> None:
    tokens = torch.tensor([[100.0], [1000.0]])
    layer = Totals()
    first, state = mix_behind(tokens, layer, torch.ones(2, 3, 1), None, None, None)
    assert first[..., 0].tolist() == [[1101, 1102, 1103]] * 2
    carried, state = mix_behind(tokens, layer, torch.ones(2, 2, 1), state, None, None)
    assert carried[..., 0].tolist() == [[1104, 1105]] * 2
    mask = torch.tensor([[True, True, False, True], [False, True, True, True]])
    reset = torch.tensor([[False, False, True, True], [True, True, False, True]])  # those on padding say nothing
    packed, _ = mix_behind(tokens, layer, torch.ones(2, 4, 1), state, mask, reset)
    assert packed[..., 0].tolist() == [[1106, 1107, 0, 1101], [0, 1101, 1102, 1101]]
    assert layer.shown == [5, 2, 8]


def test_a_fresh_row_starts_behind_the_tokens_even_if_it_holds_no_token_yet() -> None:
    tokens = torch.tensor([[100.0]])
    for length, mask in ((0, torch.ones(2, 0, dtype=torch.bool)), (2, torch.tensor([[False, False], [False, True]]))):
        layer = Totals()
        _, state = mix_behind(tokens, layer, torch.ones(2, length, 1), None, mask, torch.ones_like(mask))
        assert state[:, 0].tolist() == [100, 100 + mask[1].sum()]
        assert layer.shown == [length + 1]
