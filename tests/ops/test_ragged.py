"""Ragged rows cut into blocks, against a loop over tokens."""

import pytest
import torch

from genomem.ops.ragged import cut_into_blocks, reorder, take_slots


def _lay_out(real, reset, position, size):
    """Returns the token in each slot of one row, which blocks begin, which start a document, and the tokens in the open block."""
    slots, begins, starts = [None] * position, [], []
    if position:
        begins, starts = [False], [False]
    for token in range(len(real)):
        if not real[token]:
            continue
        if reset[token]:
            slots += [None] * (-len(slots) % size)
        if len(slots) % size == 0:
            begins.append(True)
            starts.append(bool(reset[token]))
        slots.append(token)
    return slots + [None] * (-len(slots) % size), begins, starts, len(slots) % size


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("share_real", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("share_reset", [0.0, 0.3])
def test_blocks_are_those_of_a_loop(size, share_real, share_reset):
    generator = torch.Generator().manual_seed(0)
    real, reset = torch.rand(4, 20, generator=generator) < share_real, torch.rand(4, 20, generator=generator) < share_reset
    position = torch.randint(size, (4,), generator=generator)
    blocks = cut_into_blocks(real, reset, position, size)
    for row in range(4):
        slots, begins, starts, open_tokens = _lay_out(real[row], reset[row], int(position[row]), size)
        padded = slots + [None] * (blocks.source.shape[1] - len(slots))
        assert blocks.source[row].tolist() == [20 if token is None else token for token in padded]
        assert blocks.begins[row].tolist() == begins + [False] * (blocks.begins.shape[1] - len(begins))
        assert blocks.starts[row].tolist() == starts + [False] * (blocks.starts.shape[1] - len(starts))
        assert blocks.position[row] == open_tokens
    values = torch.rand(4, 20, 2, generator=generator)
    back = reorder(take_slots(values, blocks.source), blocks.slot)
    assert torch.equal(back[real], values[real])
    assert not take_slots(values, blocks.source)[blocks.source == 20].any()


def test_no_tokens_keep_the_open_block():
    position = torch.tensor([0, 2])
    blocks = cut_into_blocks(torch.ones(2, 0, dtype=torch.bool), None, position, 3)
    assert blocks.source.shape == blocks.slot.shape == (2, 0)
    assert torch.equal(blocks.position, position)
