"""Bidirectional models: both strands alike, both directions seen, left told from right, padding invisible."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.config import CNN as CNNConfig
from genomem.config import MIXER_OPTIONS, SequenceModel
from genomem.data.tokenizer import COMPLEMENT, MASK, VOCAB_SIZE, A, C, G
from genomem.errors import GenomemError
from genomem.models import LanguageModel, MaskedLanguageModel, build_classifier, build_model, count_parameters

BATCH, TOKENS, DIM = 3, 14, 16
SMALL = {"heads": 2, "chunk_size": 4, "segment": 5, "window": 16, "kernel": 15, "persistent": 2}
EXACT = {"rtol": 0, "atol": 1e-12}


def layer(mixer: str, **options: Any) -> dict[str, Any]:
    """Returns a layer whose mixer is small and sees the whole test sequence."""
    allowed = MIXER_OPTIONS[mixer].model_fields
    return {"mixer": mixer, **{key: value for key, value in SMALL.items() if key in allowed}, **options}


def config(*layers: dict[str, Any], bidirectional: bool = True, **options: Any) -> SequenceModel:
    return SequenceModel.model_validate({"dim": DIM, "layers": list(layers), "bidirectional": bidirectional, "stem_kernel": 4, **options})


MODELS = {
    **{mixer: config(layer(mixer)) for mixer in MIXER_OPTIONS},
    "deep memory": config(layer("titans_lmm", depth=2, gradient_block=4)),
    "full segments": config(layer("titans_mac", full_segments=True)),
    "full segments, deep memory": config(layer("titans_mac", full_segments=True, depth=2, gradient_block=4)),
    "no stem, no MLP": config(layer("causal_conv"), stem_kernel=1, mlp_ratio=0),
    "every mixer": config(*map(layer, MIXER_OPTIONS)),
}


def make(name: str) -> MaskedLanguageModel:
    """Returns a model in float64 whose logits are of the order of one."""
    torch.manual_seed(0)
    model = build_model(MODELS[name], VOCAB_SIZE, complement=COMPLEMENT)
    assert isinstance(model, MaskedLanguageModel)
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.head.bias)
    return model.double().eval()


def make_classifier(name: str, pooling: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build_classifier(MODELS[name], VOCAB_SIZE, 3, length=TOKENS, pooling=pooling, complement=COMPLEMENT, **options)
    nn.init.normal_(model.head.weight)
    return model.double().eval()


def reverse_complement(tokens: Tensor) -> Tensor:
    return torch.tensor(COMPLEMENT)[tokens].flip(1)


@pytest.fixture
def tokens() -> Tensor:
    """Every token of the vocabulary, specials among them."""
    return torch.randint(VOCAB_SIZE, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def holes() -> Tensor:
    """Padding at both ends and inside."""
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[0, [0, 1, 6, 13]] = mask[1, 9:] = mask[2, :12] = False
    return mask


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_the_other_strand_are_the_logits_reversed_and_complemented(
    name: str, padded: bool, tokens: Tensor, holes: Tensor
) -> None:
    model, mask = make(name), holes if padded else None
    logits = model(tokens, mask=mask)
    other = model(reverse_complement(tokens), mask=None if mask is None else mask.flip(1))
    real = torch.ones_like(holes) if mask is None else mask
    expected = logits.flip(1)[..., list(COMPLEMENT)]
    torch.testing.assert_close(other[real.flip(1)], expected[real.flip(1)], **EXACT)
    assert logits[real].std() > 0.3
    assert (other - logits)[real & real.flip(1)].abs().max() > 0.1


@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
@pytest.mark.parametrize("name", MODELS)
def test_a_class_is_the_same_on_both_strands(name: str, pooling: str, tokens: Tensor) -> None:
    mask = torch.arange(TOKENS) < torch.tensor([[TOKENS], [6], [1]])
    other = tokens.clone()
    for row, length in enumerate((TOKENS, 6, 1)):
        other[row, :length] = reverse_complement(tokens[row : row + 1, :length])[0]
    model = make_classifier(name, pooling)
    torch.testing.assert_close(model(other, mask), model(tokens, mask), **EXACT)
    stranded = make_classifier(name, pooling, stranded=True)
    assert (stranded(other, mask) - stranded(tokens, mask)).abs().max() > 1e-3
    assert list(stranded.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_every_prediction_depends_on_every_token(name: str, tokens: Tensor) -> None:
    model = make(name)
    logits = model(tokens)
    for place in range(TOKENS):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCAB_SIZE
        assert ((model(changed) - logits).abs().amax(-1) > 0).all(), place


@pytest.mark.parametrize("mixer", MIXER_OPTIONS)
def test_without_the_key_a_model_is_causal(mixer: str, tokens: Tensor) -> None:
    model = build_model(config(layer(mixer), bidirectional=False), VOCAB_SIZE, complement=COMPLEMENT).eval()
    assert isinstance(model, LanguageModel)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB_SIZE
    assert torch.equal(model(tokens)[0][:, :9], model(changed)[0][:, :9])


@pytest.mark.parametrize("name", MODELS)
def test_padding_anywhere_changes_nothing(name: str, tokens: Tensor, holes: Tensor) -> None:
    model = make(name)
    padded = model(tokens, mask=holes)
    for row in range(BATCH):
        alone = model(tokens[row][holes[row]][None])
        torch.testing.assert_close(padded[row][holes[row]][None], alone, rtol=0, atol=1e-10)
    other_padding = torch.where(holes, tokens, (tokens + 5) % VOCAB_SIZE)
    torch.testing.assert_close(model(other_padding, mask=holes)[holes], padded[holes], **EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_and_its_reversal_are_not_alike(name: str, tokens: Tensor) -> None:
    backbone = make(name).backbone
    assert (backbone(tokens.flip(1)) - backbone(tokens).flip(1)).abs().max() > 1e-2


def test_left_is_told_from_right() -> None:
    # The base in the middle repeats its left neighbour. A model to which both directions are one is wrong where the neighbours differ.
    torch.manual_seed(0)
    model = build_model(config(layer("causal_conv", kernel=3), stem_kernel=1), VOCAB_SIZE, complement=COMPLEMENT)
    windows = torch.tensor([[left, MASK, right] for left in (A, C) for right in (A, C)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = F.cross_entropy(model(windows)[:, 1], windows[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss / math.log(2) < 0.05


@pytest.mark.parametrize("name", ["titans_lmm", "attention"])
def test_a_masked_task_is_learnt(name: str) -> None:
    # Each sequence is one word of four bases again and again: a masked base stands elsewhere in it, four places to the left or right.
    torch.manual_seed(0)
    model = build_model(MODELS[name], VOCAB_SIZE, complement=COMPLEMENT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(150):
        words = torch.randint(A, G + 2, (32, 4), generator=draw)
        targets = words.repeat(1, 4)[:, :TOKENS]
        chosen = torch.zeros_like(targets, dtype=torch.bool)
        chosen[:, torch.randint(TOKENS, (1,), generator=draw)] = True
        logits = model(targets.masked_fill(chosen, MASK))
        loss = F.cross_entropy(logits[chosen], targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / math.log(2))
    assert losses[0] > 1.9
    assert sum(losses[-10:]) / 10 < 0.5


@pytest.mark.parametrize("name", ["full segments", "titans_mac"])
def test_one_masked_batch_is_learnt_by_heart(name: str, tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = build_model(MODELS[name], VOCAB_SIZE, complement=COMPLEMENT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    chosen[:, [2, 6, 11]] = True
    losses = []
    for _ in range(80):
        loss = F.cross_entropy(model(tokens.masked_fill(chosen, MASK))[chosen], tokens[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / math.log(2))
    assert losses[0] > 2
    assert losses[-1] < 0.05


def test_full_segments_in_a_causal_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers\.1\.full_segments: tokens would see those behind them; it needs `bidirectional: true`"):
        config(layer("attention"), layer("titans_mac", full_segments=True), bidirectional=False)


@pytest.mark.parametrize("name", MODELS)
def test_directions_and_strands_share_their_weights(name: str) -> None:
    causal = build_model(MODELS[name].model_copy(update={"bidirectional": False}), VOCAB_SIZE)
    scales = len(MODELS[name].layers) + (MODELS[name].stem_kernel > 1)
    assert count_parameters(make(name)) == count_parameters(causal) + scales * DIM


def test_a_classifier_takes_the_backbone_of_the_masked_model() -> None:
    backbone = make("every mixer").backbone.state_dict()
    assert "complement" not in backbone
    make_classifier("every mixer", "mean").backbone.load_state_dict(backbone)


@pytest.mark.parametrize("name", MODELS)
def test_depth_does_not_change_the_scale_of_the_hidden_states(name: str, tokens: Tensor) -> None:
    scales = []
    for repeat in (1, 8):
        torch.manual_seed(0)
        model = build_model(MODELS[name].model_copy(update={"repeat": repeat}), VOCAB_SIZE, complement=COMPLEMENT)
        model.backbone.norm.register_forward_pre_hook(lambda norm, hidden: scales.append(hidden[0].std().item()))
        model(tokens)
    assert 0.7 < scales[1] / scales[0] < 1.5


@pytest.mark.parametrize("held", ["state", "reset"])
def test_state_and_resets_are_refused(held: str) -> None:
    mixer = make("attention").backbone.blocks[0].mixer
    with pytest.raises(ValueError, match="takes neither a state nor resets"):
        mixer(torch.zeros(BATCH, TOKENS, DIM, dtype=torch.float64), **{held: torch.zeros(BATCH, TOKENS, dtype=torch.bool)})


@pytest.mark.parametrize("table", [(), COMPLEMENT[:-1], (*range(1, VOCAB_SIZE), 0)], ids=["none", "short", "no involution"])
def test_a_complement_that_is_none_is_refused(table: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="complement: must map 16 tokens onto themselves"):
        build_model(MODELS["attention"], VOCAB_SIZE, complement=table)
    with pytest.raises(ValueError, match="complement: must map 16 tokens onto themselves"):
        build_classifier(MODELS["attention"], VOCAB_SIZE, 2, length=10, complement=table)


def test_a_cnn_is_no_masked_model_either() -> None:
    with pytest.raises(GenomemError, match="architecture cnn classifies only"):
        build_model(CNNConfig(), VOCAB_SIZE, complement=COMPLEMENT)
