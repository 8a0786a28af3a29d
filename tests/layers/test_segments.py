"""Segments against a loop over tokens."""

from __future__ import annotations

import pytest
import torch

from genomem.layers.segments import Segment, cut_into_segments

TOKENS = 11


def by_a_loop(real: list[bool], reset: list[bool], position: int, size: int) -> tuple[list[tuple[int, int, bool, bool]], int]:
    """Returns of each real token its number, its place, and whether it begins a segment and a document; and the last position."""
    tokens = []
    for t in range(len(real)):
        if real[t]:
            position = 0 if reset[t] or position == size else position
            tokens.append((t, position, position == 0, reset[t]))
            position += 1
    return tokens, position % size


@pytest.mark.parametrize("size", [1, 3, 4, 20])
@pytest.mark.parametrize("share_real", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("share_reset", [0.0, 0.3])
@pytest.mark.parametrize("fresh", [True, False])
def test_segments_are_those_of_a_loop(size: int, share_real: float, share_reset: float, fresh: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(4, TOKENS, generator=generator) < share_real
    reset = torch.rand(4, TOKENS, generator=generator) < share_reset
    position = torch.zeros(4, dtype=torch.int64) if fresh else torch.arange(4) % size
    inputs = torch.arange(1, 4 * TOKENS + 1).view(4, TOKENS)
    layout = cut_into_segments(inputs, None if fresh else position, real, reset, size)
    laid = torch.cat([segment.inputs for segment in layout.segments], dim=1)
    assert layout.slot is not None
    assert torch.equal(laid.gather(1, layout.slot)[real], inputs[real])
    for b in range(4):
        tokens = []
        for segment in layout.segments:
            assert segment.mask is not None and segment.reset is not None and segment.begins is not None
            assert segment.inputs.shape[1] == min(size, TOKENS)
            for i in segment.mask[b].nonzero().flatten().tolist():
                token = int(segment.inputs[b, i]) - 1 - b * TOKENS
                tokens.append((token, int(segment.place[b, i]), bool(segment.begins[b]) and i == 0, bool(segment.reset[b, i])))
        expected, last = by_a_loop(real[b].tolist(), reset[b].tolist(), int(position[b]), size)
        assert tokens == expected
        assert layout.position[b] == last


def test_whole_rows_from_a_fresh_start_are_plain_pieces() -> None:
    inputs = torch.randn(2, TOKENS, 3)
    layout = cut_into_segments(inputs, None, None, None, 4)
    assert [segment.inputs.shape[1] for segment in layout.segments] == [4, 4, 3]
    assert all(segment.mask is segment.reset is segment.begins is None for segment in layout.segments)
    assert layout.slot is None
    assert layout.position.tolist() == [3, 3]


def test_what_is_made_of_tokens_goes_into_their_places() -> None:
    place, mask = torch.tensor([[2, 3, 3], [0, 1, 2]]), torch.tensor([[True, True, False], [True, False, False]])
    segment = Segment(torch.zeros(2, 3), place, mask)
    slots, new = torch.zeros(2, 1, 4), torch.tensor([[[1.0, 2.0, 9.0]], [[3.0, 9.0, 9.0]]])
    assert segment.put(new, slots).tolist() == [[[0, 0, 1, 2]], [[3, 0, 0, 0]]]
