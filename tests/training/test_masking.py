"""Masked batches: the right shares, nothing shown that is to be predicted, one batch a seed and step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from genomem.data import tokenizer
from genomem.training.masking import masked_batch

TOKENS = 400


def draw(windows: np.ndarray, **options: Any) -> Any:
    return masked_batch(windows, **{"fraction": 0.15, "repeat_weight": 0.1, "seed": (0, 0, 1)} | options)


def random_windows(count: int, letters: str = "ACGT") -> np.ndarray:
    return np.random.default_rng(0).choice(np.frombuffer(letters.encode(), np.uint8), (count, TOKENS))


def test_shares_are_those_of_bert() -> None:
    windows = random_windows(200)
    batch = draw(windows)
    true = torch.from_numpy(tokenizer.encode(windows).astype(np.int64))
    chosen = batch.weights > 0
    assert torch.equal(chosen.sum(1), torch.full((200,), 60))
    assert torch.equal(batch.tokens[~chosen], true[~chosen])
    read, stood = batch.tokens[chosen], true[chosen]
    masked, same = read == tokenizer.MASK, read == stood
    # 12,000 draws: six standard errors are at most 0.022. A random base is the true one in a quarter of the cases.
    assert masked.double().mean() == pytest.approx(0.8, abs=0.022)
    assert same.double().mean() == pytest.approx(0.1 + 0.1 / 4, abs=0.02)
    replaced = read[~masked & ~same]
    assert set(replaced.tolist()) == {tokenizer.A, tokenizer.C, tokenizer.G, tokenizer.T}
    assert torch.equal(batch.targets[chosen], stood - tokenizer.A)
    assert not batch.targets[~chosen].any()
    assert chosen.double().mean(0).max() < 0.31  # no place is preferred: six standard errors above 0.15


def test_n_is_never_chosen_and_repeats_weigh_less() -> None:
    windows = random_windows(30, "ACGTNNacgt")
    batch = draw(windows)
    chosen = (batch.weights > 0).numpy()
    is_base = windows != ord("N")
    assert not (chosen & ~is_base).any()
    assert np.array_equal(chosen.sum(1), np.round(0.15 * is_base.sum(1)))
    lower = tokenizer.is_soft_masked(windows)
    assert set(batch.weights.numpy()[chosen & lower].tolist()) == {np.float32(0.1)}
    assert set(batch.weights.numpy()[chosen & ~lower].tolist()) == {1.0}
    assert (batch.tokens.numpy()[~is_base] == tokenizer.N).all()


def test_nothing_that_is_read_tells_a_hidden_base() -> None:
    windows = random_windows(20)
    batch = draw(windows)
    hidden = (batch.tokens == tokenizer.MASK).numpy()
    others = tokenizer.reverse_complement(windows)[:, ::-1]
    assert not (others == windows).any()
    changed = draw(np.where(hidden, others, windows))
    assert torch.equal(changed.tokens, batch.tokens)
    assert torch.equal(changed.weights, batch.weights)
    assert (changed.targets != batch.targets).numpy()[hidden].all()
    assert hidden.any()


def test_the_same_seed_draws_the_same_batch_and_another_one_another() -> None:
    windows = random_windows(4)
    first, again, step, seed = (draw(windows, seed=seed).tokens for seed in ((0, 5, 1), (0, 5, 1), (0, 6, 1), (1, 5, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, step)
    assert not torch.equal(first, seed)
    assert not torch.equal(first[0] == tokenizer.MASK, first[1] == tokenizer.MASK)


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.5, 200), (0.999, 400)])
def test_the_share_is_the_one_asked_for_and_never_nothing(fraction: float, count: int) -> None:
    assert (draw(random_windows(3), fraction=fraction).weights.sum(1) == count).all()


def test_a_window_of_n_has_nothing_to_predict() -> None:
    batch = draw(random_windows(2, "N"))
    assert batch.weights.sum() == 0
    assert (batch.tokens == tokenizer.N).all()
