"""The k-mer memory in a model: what it knows, when it knows it, and that any split of a sequence is the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from genomem.config import SequenceModel
from genomem.layers.kmer_memory import KmerMemory
from genomem.models import LanguageModel, build_model, count_parameters
from genomem.ops.kmer_memory import KmerSettings

A, VOCABULARY = 7, 16
BASES = slice(A, A + 4)
SETTINGS = KmerSettings(orders=(2, 4, 14), slot_bits=8, tolerant_orders=(4,))


def memory(**options: bool) -> KmerMemory:
    torch.manual_seed(0)
    return KmerMemory(SETTINGS, bases=BASES, hidden_width=6, gate_width=5, **options)


def language_model(use: str = "both") -> LanguageModel:
    torch.manual_seed(0)
    section = {"orders": [2, 4, 14], "slot_bits": 8, "start": "empty", "use": use}
    config = SequenceModel.model_validate({"dim": 8, "stem_kernel": 3, "layers": ["titans_lmm"], "kmer_memory": section})
    model = build_model(config, VOCABULARY, bases=BASES)
    assert isinstance(model, LanguageModel)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    unit = torch.randint(A, A + 4, (2, 40), generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([unit, unit], dim=1)
    tokens[1, 7] = A + 4
    return tokens


def test_counts_are_of_the_base_after_each_token(tokens: Tensor) -> None:
    counts, _ = memory()(tokens)
    assert counts.shape == (2, 80, 4, 4)
    for token in range(14, 79):
        context = tokens[0, token - 1 : token + 1].tolist()
        seen = np.zeros(4)
        for end in range(1, token):
            if tokens[0, end - 1 : end + 1].tolist() == context:
                seen[tokens[0, end + 1] - A] += 1
        # The other strand is learnt as well: after base i, the complement of base i - 2 follows that of bases i and i - 1.
        for end in range(2, token + 1):
            if [2 * A + 3 - t for t in reversed(tokens[0, end - 1 : end + 1].tolist())] == context:
                seen[3 - (tokens[0, end - 2] - A)] += 1
        np.testing.assert_array_equal(counts[0, token, 0], seen)


def test_the_second_copy_is_known_by_heart(tokens: Tensor) -> None:
    counts, _ = memory()(tokens)
    following = tokens[0, 55:] - A
    assert (counts[0, 54:-1, 2].int().argmax(-1) == following).all()
    assert (counts[0, :40, 2] == 0).all()


@pytest.mark.parametrize("borders", [(1,), (39, 40, 41), (0, 80), tuple(range(5, 80, 5))], ids=str)
def test_any_split_equals_the_whole(borders: tuple[int, ...], tokens: Tensor) -> None:
    model = language_model()
    whole, _ = model(tokens)
    parts, state = [], None
    for start, end in zip((0, *borders), (*borders, 80), strict=True):
        if end > start:
            logits, state = model(tokens[:, start:end], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use", ["output", "features", "both"])
def test_no_token_changes_what_was_said_before_it(use: str, tokens: Tensor) -> None:
    model = language_model(use)
    logits, _ = model(tokens)
    for place in (0, 30, 60, 79):
        other = tokens.clone()
        other[:, place] = A + (other[:, place] - A + 1) % 4
        changed, _ = model(other)
        assert torch.equal(changed[:, :place], logits[:, :place])
        assert not torch.equal(changed[:, place:], logits[:, place:])


def test_rows_of_a_batch_know_nothing_of_each_other(tokens: Tensor) -> None:
    counts, _ = memory()(tokens)
    for row in range(2):
        alone, _ = memory()(tokens[row : row + 1])
        assert torch.equal(alone[0], counts[row])


def test_contexts_end_at_a_reset_and_what_was_learnt_stays(tokens: Tensor) -> None:
    reset = torch.zeros_like(tokens, dtype=torch.bool)
    reset[:, 40] = True
    counts, _ = memory()(tokens, reset=reset)
    assert (counts[0, 39 + 1 : 39 + 14, 2] == 0).all()
    assert (counts[0, 39 + 15 : 79, 2].sum(-1) > 0).all()


def test_what_the_network_gives_to_all_bases_together_stays(tokens: Tensor) -> None:
    layer = memory()
    counts, _ = layer(tokens)
    logits, hidden = torch.randn(2, 80, VOCABULARY), torch.randn(2, 80, 6)
    mixed = layer.mixed(logits, hidden, counts)
    torch.testing.assert_close(mixed[..., BASES].logsumexp(-1), logits[..., BASES].logsumexp(-1))
    assert torch.equal(mixed[..., :A], logits[..., :A])
    assert torch.equal(mixed[..., A + 4 :], logits[..., A + 4 :])
    assert not torch.allclose(mixed, logits)


@pytest.mark.parametrize(("use", "parts"), [("output", (True, False)), ("features", (False, True)), ("both", (True, True))])
def test_what_the_memory_is_used_for(use: str, parts: tuple[bool, bool], tokens: Tensor) -> None:
    model = language_model(use)
    layer = model.kmer_memory
    assert layer is not None
    assert (layer.gate is not None, layer.embed is not None) == parts
    logits, hidden = torch.randn(2, 80, VOCABULARY), torch.randn(2, 80, 8)
    assert torch.equal(layer.mixed(logits, hidden, layer(tokens)[0]), logits) == (use == "features")


def test_the_gate_starts_halfway_between_the_network_and_the_highest_order() -> None:
    gate = memory().gate
    assert gate is not None
    torch.testing.assert_close(gate.out.bias, torch.tensor([0.5, 0, 0, 0.5, 0]))


def test_gradients_reach_every_parameter(tokens: Tensor) -> None:
    model = language_model("both")
    model(tokens)[0][..., BASES].log_softmax(-1)[..., 0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_without_the_setting_a_model_is_what_it_was() -> None:
    plain = SequenceModel.model_validate({"dim": 8, "stem_kernel": 3, "layers": ["titans_lmm"]})
    torch.manual_seed(0)
    model = build_model(plain, VOCABULARY)
    assert count_parameters(model) < count_parameters(language_model("output"))
    assert not any("kmer" in name for name, _ in model.named_parameters())


def test_a_model_with_the_memory_needs_to_know_the_bases() -> None:
    config = SequenceModel.model_validate({"dim": 8, "layers": ["titans_lmm"], "kmer_memory": {}})
    with pytest.raises(ValueError, match="token ids of the four bases"):
        build_model(config, VOCABULARY)


def test_features_of_a_memory_without_them() -> None:
    with pytest.raises(ValueError, match="built without features"):
        memory().features(torch.zeros(1, 1, 4, 4))
