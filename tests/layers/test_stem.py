"""The stem against its definition as nested loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.layers.stem import Stem

VOCABULARY, DIM, TOKENS = 6, 5, 13
NOTHING = torch.zeros(2, TOKENS, dtype=torch.bool)


def flags(*places: tuple[int, int]) -> Tensor:
    mask = NOTHING.clone()
    for place in places:
        mask[place] = True
    return mask


PADDING = ~flags((0, 0), (0, 1), (0, 6), (1, 5), (1, 11), (1, 12))
BORDERS = flags((0, 0), (0, 4), (0, 5), (1, 0), (1, 9), (1, 12))


def by_loops(stem: Stem, tokens: Tensor, mask: Tensor, reset: Tensor) -> Tensor:
    """The embedding plus `out(gelu(bias + sum of the row of each tap's token))`; right at real tokens only."""
    rows = torch.stack([stem.embedding.weight[token] for token in tokens.flatten().tolist()]).unflatten(0, tokens.shape)
    output = rows.clone()
    for b in range(tokens.shape[0]):
        document: list[int] = []
        for t in range(tokens.shape[1]):
            if not mask[b, t]:
                continue
            document = ([] if reset[b, t] else document) + [int(tokens[b, t])]
            motifs = stem.bias.clone()
            for tap, token in enumerate(reversed(document[-stem.kernel :])):
                motifs = motifs + stem.motifs[tap * VOCABULARY + token]
            output[b, t] = output[b, t] + stem.out.weight @ F.gelu(motifs)
    return output


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def build(kernel: int) -> Stem:
    torch.manual_seed(0)
    stem = Stem(VOCABULARY, DIM, kernel).double()
    if kernel > 1:
        torch.nn.init.normal_(stem.bias)
    return stem


@pytest.mark.parametrize("kernel", [2, 4, 20])
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("reset", [None, BORDERS], ids=["one document", "packed"])
@pytest.mark.parametrize("borders", [(), (0, 1, 2, 6, 6, 12), tuple(range(TOKENS))], ids=["one call", "parts", "single tokens"])
def test_equals_the_loops(kernel: int, mask: Tensor | None, reset: Tensor | None, borders: tuple[int, ...], tokens: Tensor) -> None:
    stem = build(kernel)
    pieces, history = [], None
    for start, end in zip((0, *borders), (*borders, TOKENS), strict=True):
        part_mask, part_reset = (None if flag is None else flag[:, start:end] for flag in (mask, reset))
        piece, history = stem(tokens[:, start:end], history, mask=part_mask, reset=part_reset)
        pieces.append(piece)
    real = ~NOTHING if mask is None else mask
    expected = by_loops(stem, tokens, real, NOTHING if reset is None else reset)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], expected[real])
    _, at_once = stem(tokens, mask=mask, reset=reset)
    assert torch.equal(history, at_once)


def test_kernel_one_is_a_plain_embedding(tokens: Tensor) -> None:
    stem = build(1)
    hidden, history = stem(tokens, mask=PADDING, reset=BORDERS)
    assert torch.equal(hidden, stem.embedding.weight[tokens])
    assert history.shape == (2, 0)
    assert [name for name, _ in stem.named_parameters()] == ["embedding.weight"]


def test_no_token_is_affected_by_later_ones(tokens: Tensor) -> None:
    stem = build(4)
    hidden, _ = stem(tokens)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    assert torch.equal(stem(changed)[0][:, :7], hidden[:, :7])
    assert not torch.equal(stem(changed)[0][:, 7:11], hidden[:, 7:11])
    assert torch.equal(stem(changed)[0][:, 11:], hidden[:, 11:])


def test_gradients_reach_every_parameter_but_not_the_row_of_no_token(tokens: Tensor) -> None:
    stem = build(3)
    stem(tokens)[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in stem.parameters())
    assert not stem.motifs.grad[-1].any()
    assert not stem.motifs[-1].any()
