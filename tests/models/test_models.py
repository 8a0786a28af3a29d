"""Models: sizes, states, padding, and whether they learn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.config import CNN as CNNConfig
from genomem.config import MIXER_OPTIONS, SequenceModel
from genomem.errors import GenomemError
from genomem.models import CNN, SequenceClassifier, build_classifier, build_model, count_parameters

VOCABULARY = 12


def config(*layers: str | dict, **options: object) -> SequenceModel:
    return SequenceModel.model_validate({"dim": 16, "layers": list(layers), **options})


SMALL = {
    "titans_lmm": config({"mixer": "titans_lmm", "heads": 2, "chunk_size": 8}, stem_kernel=3),
    "titans_mac": config({"mixer": "titans_mac", "heads": 2, "segment": 5, "persistent": 3}),
    "titans_mag": config({"mixer": "titans_mag", "heads": 2, "window": 6, "depth": 2, "hidden_ratio": 2, "gradient_block": 4}),
    "titans_mal": config({"mixer": "titans_mal", "heads": 2, "window": 6, "persistent": 2}),
    "attention": config({"mixer": "attention", "heads": 2}),
    "causal_conv": config({"mixer": "causal_conv", "kernel": 5}, repeat=2),
    "linear_attention": config({"mixer": "linear_attention", "heads": 2}),
    "retnet": config({"mixer": "retnet", "heads": 2}),
    "gla": config({"mixer": "gla", "heads": 2}),
    "mamba2": config({"mixer": "mamba2", "heads": 2, "state_size": 4}),
    "deltanet": config({"mixer": "deltanet", "heads": 2}),
    "gated_deltanet": config({"mixer": "gated_deltanet", "heads": 2}),
    "gated_deltanet_h2": config({"mixer": "gated_deltanet_h2", "heads": 2, "window": 6, "state_size": 4}),
    "ttt_linear": config({"mixer": "ttt_linear", "heads": 2, "gradient_block": 4}),
    "ttt_mlp": config({"mixer": "ttt_mlp", "heads": 2, "gradient_block": 4}),
    "sequence_dimension": config({"mixer": "sequence_dimension", "heads": 2, "slots": 3, "block": 5}),
    "mamba": config({"mixer": "mamba", "state_size": 4}),
    "samba": config({"mixer": "samba", "heads": 2, "window": 6, "state_size": 4}),
    "hyena": config({"mixer": "hyena", "longest_bp": 40}, stem_kernel=3),
    "rmt": config({"mixer": "rmt", "heads": 2, "segment": 5, "memory_tokens": 3}),
    "lstm": config("lstm"),
    "block_sparse_attention": config({"mixer": "block_sparse_attention", "heads": 2, "block": 4, "selected": 2}),
    "hippo_ssm": config({"mixer": "hippo_ssm", "state_size": 4, "longest_bp": 100}),
    "titans_hippo_mac": config({"mixer": "titans_hippo_mac", "heads": 2, "segment": 5, "hippo_tokens": 4, "hippo_width": 3}),
    "hybrid": config("causal_conv", {"mixer": "titans_lmm", "heads": 2}, {"mixer": "attention", "window": 6}, stem_kernel=4),
}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (3, 23), generator=torch.Generator().manual_seed(0))


def test_every_mixer_stands_in_a_small_model() -> None:
    assert {layer.mixer for model in SMALL.values() for layer in model.layers} == set(MIXER_OPTIONS)


def test_parameter_count_by_hand() -> None:
    model = config({"mixer": "titans_lmm", "heads": 2, "conv_kernel": 4}, "attention", repeat=3, stem_kernel=5, mlp_ratio=1.5)
    dim, hidden = 16, 24
    stem = VOCABULARY * dim + (5 * VOCABULARY + 1) * dim + dim + dim * dim  # embedding, tables, bias, out
    gates = dim * 6 + 6 + 2  # step, momentum and forgetting of two heads, and their bounds on momentum
    titans = dim * 3 * dim + 4 * 3 * dim + gates + dim // 2 + dim * dim + dim * dim  # qkv, taps, gates, norm, output gate, out
    attention = dim * 3 * dim + dim * dim
    around = 2 * dim + dim * 2 * hidden + hidden * dim  # two norms and the gated MLP
    body = stem + 3 * (titans + attention + 2 * around) + dim
    assert count_parameters(build_model(model, VOCABULARY)) == body + dim * VOCABULARY + VOCABULARY
    assert count_parameters(build_classifier(model, VOCABULARY, 3, length=100)) == body + dim * 3 + 3


def test_mlp_ratio_zero_leaves_the_mlp_out() -> None:
    names = [name for name, _ in build_model(config("attention", mlp_ratio=0), VOCABULARY).named_parameters()]
    assert not any("mlp" in name for name in names)


def test_the_cnn_has_the_size_that_tables_quote() -> None:
    assert count_parameters(build_classifier(CNNConfig(), 5, 2, length=1024)) == 264_010


def test_a_bare_cnn_is_no_language_model() -> None:
    with pytest.raises(GenomemError, match="architecture cnn classifies only"):
        build_model(CNNConfig(), VOCABULARY)


def test_the_cnn_is_never_built_for_less_than_it_can_read() -> None:
    model = build_classifier(CNNConfig(), VOCABULARY, 2, length=10)
    assert model.length == 64
    assert model(torch.zeros(2, 64, dtype=torch.int64), torch.ones(2, 64, dtype=torch.bool)).shape == (2, 2)
    with pytest.raises(GenomemError, match="shorter than 64"):
        CNN(VOCABULARY, 2, 63)


@pytest.mark.parametrize("name", SMALL)
def test_streaming_equals_the_whole(name: str, tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = build_model(SMALL[name], VOCABULARY).double().eval()
    reset = torch.zeros_like(tokens, dtype=torch.bool)
    reset[0, 5] = reset[1, 12] = True
    whole, _ = model(tokens, reset=reset)
    pieces, state = [], None
    for start, end in ((0, 1), (1, 2), (2, 14), (14, 14), (14, 23)):
        piece, state = model(tokens[:, start:end], state, reset=reset[:, start:end])
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(whole[0, 5:], model(tokens)[0][0, 5:])


@pytest.mark.parametrize("name", SMALL)
def test_a_language_model_is_causal(name: str, tokens: Tensor) -> None:
    model = build_model(SMALL[name], VOCABULARY).eval()
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCABULARY
    assert torch.equal(model(tokens)[0][:, :9], model(changed)[0][:, :9])


@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
@pytest.mark.parametrize("name", SMALL)
def test_a_classifier_does_not_see_padding(name: str, pooling: str, tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(SMALL[name], VOCABULARY, 3, pooling=pooling, dropout=0.5).double().eval()
    lengths = torch.tensor([23, 7, 1])
    mask = torch.arange(23) < lengths[:, None]
    together = model(tokens, mask)
    other_padding = torch.where(mask, tokens, torch.zeros_like(tokens))
    torch.testing.assert_close(model(other_padding, mask), together, rtol=1e-10, atol=1e-12)
    for row, length in enumerate(lengths.tolist()):
        alone = model(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
def test_a_classifier_sees_only_what_differs_between_sequences(pooling: str, tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(SMALL["hybrid"], VOCABULARY, 3, pooling=pooling, dropout=0.0).double()
    torch.nn.init.normal_(model.head.weight)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    logits = model(tokens, mask)
    torch.testing.assert_close(logits.mean(0), model.head.bias, rtol=0, atol=1e-9)
    assert logits.std(0).min() > 0.1
    assert count_parameters(model) == count_parameters(model.backbone) + count_parameters(model.head)


def test_dropout_acts_in_training_only(tokens: Tensor) -> None:
    model = build_model(config("attention", dropout=0.5), VOCABULARY)
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("name", SMALL)
def test_depth_does_not_change_the_scale_of_the_first_prediction(name: str, tokens: Tensor) -> None:
    deep, losses = SMALL[name].model_copy(update={"repeat": 6}), []
    # What all tokens have in common moves the loss of one draw by some hundredths either way.
    for seed in range(4):
        torch.manual_seed(seed)
        logits, _ = build_model(deep, VOCABULARY)(tokens)
        losses.append(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item())
    assert abs(sum(losses) / 4 - math.log(VOCABULARY)) < 0.05


@pytest.mark.parametrize("name", SMALL)
def test_one_batch_is_learnt_by_heart(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(SMALL[name], VOCABULARY)
    # Every token occurs once in a row, so the token before tells the next.
    batch = torch.stack([torch.randperm(VOCABULARY), torch.arange(VOCABULARY)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(120):
        logits, _ = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_the_cnn_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    model = build_classifier(CNNConfig(), VOCABULARY, 2, length=64)
    batch, labels = torch.randint(VOCABULARY, (8, 64)), torch.tensor([0, 1] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(model(batch, torch.ones_like(batch, dtype=torch.bool)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
