"""Recall of a repeat: sequences with two copies, what models of known memory pay for them, the table and the interval."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genomem.config import Recall, Study, stage_digest
from genomem.data import tokenizer
from genomem.data.genome import Genome
from genomem.errors import GenomemError
from genomem.evaluation import recall as module
from genomem.evaluation.recall import (
    TABLE_ORDER,
    TABLE_STRENGTH,
    Pieces,
    Score,
    copy_bits,
    draw_pieces,
    evaluate_recall,
    model_bits,
    table_bits,
)
from genomem.layout import Layout
from genomem.models import build_model
from genomem.record import RunRecord
from genomem.training.checkpoint import save_weights
from genomem.training.scoring import window_bits_per_base

MakeStudy = Callable[..., Study]

SETTINGS = Recall(repeat_bp=80, gaps_bp=(0, 30, 120), lead_bp=10, samples=12, seed=3)


def random_bases(length: int, seed: int, letters: str = "ACGTacgt") -> np.ndarray:
    return np.random.default_rng(seed).choice(np.frombuffer(letters.encode(), np.uint8), length)


def with_gap(bases: np.ndarray, start: int, end: int) -> np.ndarray:
    bases[start:end] = ord("N")
    return bases


@pytest.fixture(scope="module")
def chromosomes() -> list[np.ndarray]:
    return [with_gap(random_bases(1500, 0), 400, 420), random_bases(95, 1), random_bases(50, 2), random_bases(900, 4)]


@pytest.fixture(scope="module")
def pieces(chromosomes: list[np.ndarray]) -> Pieces:
    return draw_pieces(chromosomes, SETTINGS)


def copies_from(distance: int) -> Score:
    """Pays nothing for a base that equals the one `distance` before, and 3 bits for any other."""

    def score(sequences: np.ndarray) -> np.ndarray:
        bits = np.full((len(sequences), sequences.shape[1] - 1), 3.0, np.float32)
        bits[:, distance - 1 :][sequences[:, distance:] == sequences[:, :-distance]] = 0
        return bits

    return score


def order_one(sequences: np.ndarray) -> np.ndarray:
    """Pays by the base and the one before it."""
    prices = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    return prices[sequences[:, :-1], sequences[:, 1:]]


def by_place(sequences: np.ndarray) -> np.ndarray:
    """Pays its place for every base: column j is base j + 1."""
    return np.broadcast_to(np.arange(1.0, sequences.shape[1]), (len(sequences), sequences.shape[1] - 1))


@pytest.mark.parametrize("gap", SETTINGS.gaps_bp)
def test_a_sequence_holds_two_copies_and_its_control_another_first_stretch(pieces: Pieces, gap: int) -> None:
    repeat, control = pieces.repeat(gap), pieces.control(gap)
    assert repeat.shape == control.shape == (12, 10 + 80 + gap + 80)
    first, second = slice(10, 90), slice(90 + gap, 170 + gap)
    np.testing.assert_array_equal(repeat[:, first], repeat[:, second])
    for row, other in zip(repeat, control, strict=True):
        assert (row[first] != other[first]).mean() > 0.4
        np.testing.assert_array_equal(np.delete(row, first), np.delete(other, first))
    assert {row.tobytes() for row in control[:, first]} == {row.tobytes() for row in repeat[:, first]}


@pytest.mark.parametrize("seed", range(10))
def test_pieces_are_known_bases_that_lie_apart(chromosomes: list[np.ndarray], seed: int) -> None:
    pieces = draw_pieces(chromosomes, SETTINGS.model_copy(update={"seed": seed}))
    text = "N".join(bases.tobytes().decode() for bases in chromosomes)
    blocks = [text.index(row.tobytes().decode()) for row in np.concatenate([pieces.lead, pieces.stretch], axis=1)]
    fillers = [text.index(row.tobytes().decode()) for row in pieces.filler]
    assert min(np.diff(sorted(blocks))) >= 90
    assert pieces.filler.shape == (12, 120)
    for filler, block, other in zip(fillers, blocks, np.roll(blocks, -1), strict=True):
        assert all(filler + 120 <= start or filler >= start + 90 for start in (block, other))
    assert set(np.unique(np.concatenate([pieces.lead.ravel(), pieces.stretch.ravel(), pieces.filler.ravel()]))) == set(b"ACGTacgt")


def test_the_seed_decides_the_samples(chromosomes: list[np.ndarray], pieces: Pieces) -> None:
    again, other = draw_pieces(chromosomes, SETTINGS), draw_pieces(chromosomes, SETTINGS.model_copy(update={"seed": 4}))
    np.testing.assert_array_equal(again.repeat(120), pieces.repeat(120))
    assert not np.array_equal(other.stretch, pieces.stretch)


def test_other_gaps_keep_the_stretches(chromosomes: list[np.ndarray], pieces: Pieces) -> None:
    longer = draw_pieces(chromosomes, SETTINGS.model_copy(update={"gaps_bp": (200,)}))
    np.testing.assert_array_equal(longer.stretch, pieces.stretch)


def test_chromosomes_are_used_to_their_last_base() -> None:
    settings = SETTINGS.model_copy(update={"samples": 2, "gaps_bp": (0,)})
    bases = random_bases(180, 5)
    pieces = draw_pieces([bases], settings)
    assert sorted(row.tobytes() for row in pieces.stretch) == sorted(bases[start : start + 80].tobytes() for start in (10, 100))
    with pytest.raises(GenomemError, match="hold 1 stretches"):
        draw_pieces([bases[1:]], settings)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": 40}, r"evaluate\.recall\.samples: the test chromosomes hold \d\d stretches of 90 bases .* 40 are asked for; lower it"),
        ({"repeat_bp": 1600}, r"evaluate\.recall\.samples: the test chromosomes hold 0 stretches of 1,610 bases"),
        ({"gaps_bp": (0, 2000)}, r"evaluate\.recall\.gaps_bp: the test chromosomes hold no 2,000 bases .*; lower it"),
        ({"gaps_bp": (0, 1060)}, r"evaluate\.recall\.gaps_bp: the test chromosomes hold no 1,060 bases .*; lower it"),
    ],
    ids=["too many samples", "too long a stretch", "too long a gap", "no place for the gap beside the stretch"],
)
def test_chromosomes_that_are_too_short_are_one_line(chromosomes: list[np.ndarray], change: dict, told: str) -> None:
    with pytest.raises(GenomemError, match=told) as raised:
        draw_pieces(chromosomes, SETTINGS.model_copy(update=change))
    assert "\n" not in str(raised.value)
    assert re.search(r"or hold out more under genomes\.<name>\.test", str(raised.value))


@pytest.mark.parametrize("gap", SETTINGS.gaps_bp)
def test_a_model_that_copies_from_the_distance_of_the_copies_pays_nothing_for_the_second(pieces: Pieces, gap: int) -> None:
    bits = copy_bits(copies_from(80 + gap), pieces, gap)
    assert bits["second"].tolist() == bits["second_after_32"].tolist() == [0.0] * 12
    assert bits["first"].min() > 2.0
    np.testing.assert_array_equal(bits["gain"], bits["control"])
    assert bits["gain"].min() > 2.0


def test_a_model_that_copies_from_elsewhere_gains_nothing(pieces: Pieces) -> None:
    bits = copy_bits(copies_from(81), pieces, 120)
    assert bits["second"].min() > 2.0
    assert abs(bits["gain"].mean()) < 0.2


@pytest.mark.parametrize("gap", SETTINGS.gaps_bp)
def test_a_model_without_memory_gains_exactly_nothing(pieces: Pieces, gap: int) -> None:
    bits = copy_bits(order_one, pieces, gap)
    assert bits["gain"].tolist() == [0.0] * 12
    np.testing.assert_array_equal(bits["first"], bits["second"])
    assert len(set(bits["first"])) == 12


@pytest.mark.parametrize("gap", SETTINGS.gaps_bp)
def test_means_are_over_each_copy_without_its_first_base(pieces: Pieces, gap: int) -> None:
    bits = copy_bits(by_place, pieces, gap)
    start = 90 + gap
    expected = {
        "first": np.arange(11, 90).mean(),
        "second": np.arange(start + 1, start + 80).mean(),
        "second_after_32": np.arange(start + 32, start + 80).mean(),
        "control": np.arange(start + 1, start + 80).mean(),
        "gain": 0.0,
    }
    assert {label: values.tolist() for label, values in bits.items()} == {label: [value] * 12 for label, value in expected.items()}


def test_without_a_lead_in_both_copies_lose_the_base_that_nothing_predicts(chromosomes: list[np.ndarray]) -> None:
    pieces = draw_pieces(chromosomes, SETTINGS.model_copy(update={"lead_bp": 0}))
    bits = copy_bits(by_place, pieces, 30)
    assert bits["first"].tolist() == [np.arange(1, 80).mean()] * 12
    assert bits["second"].tolist() == [np.arange(111, 190).mean()] * 12


def slow_table(text: str) -> list[float]:
    """The table by its definition, with dictionaries."""
    zero, contexts, bits = Counter(), defaultdict(Counter), []
    for place, base in enumerate(text):
        p = (zero[base] + 1) / (place + 4)
        if place >= TABLE_ORDER:
            counts = contexts[text[place - TABLE_ORDER : place]]
            p = (counts[base] + TABLE_STRENGTH * p) / (counts.total() + TABLE_STRENGTH)
            counts[base] += 1
        zero[base] += 1
        bits.append(-math.log2(p))
    return bits[1:]


@pytest.mark.parametrize("length", [1, 2, TABLE_ORDER, TABLE_ORDER + 1, 300])
@pytest.mark.parametrize("letters", ["A", "AC", "ACGTacgt"])
def test_the_table_is_that_of_the_dictionary(length: int, letters: str) -> None:
    sequences = np.stack([random_bases(length, seed, letters) for seed in range(3)])
    expected = [slow_table(row.tobytes().decode().upper()) for row in sequences]
    np.testing.assert_allclose(table_bits(sequences), np.array(expected).reshape(3, length - 1), rtol=1e-12)


def test_the_table_recalls_a_random_repeat_all_but_its_first_bases(pieces: Pieces) -> None:
    bits = {label: values.mean() for label, values in copy_bits(table_bits, pieces, 120).items()}
    assert 1.9 < bits["first"] < 2.3
    assert bits["second_after_32"] == pytest.approx(math.log2(1 + TABLE_STRENGTH * 3 / 4), abs=0.005)
    # The table is sure once a context of its order has gone by: 11 bases of 79 cost two bits.
    assert bits["second"] == pytest.approx(2 * 11 / 79, abs=0.06)
    assert bits["gain"] > 1.6


class Copier(nn.Module):
    """Expects the base that stood `distance` bases before the next one, and any base where nothing stood there."""

    def __init__(self, distance: int) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, tokenizer.VOCAB_SIZE)
        before = tokens[:, : max(0, tokens.shape[1] + 1 - self.distance)]
        logits[:, self.distance - 1 :].scatter_(2, before[..., None], 40.0)
        return logits, None


def recall_study(make_study: MakeStudy, seeds: tuple[int, ...] = (0,), **recall: Any) -> Study:
    windowed = {"attention": {"layers": [{"mixer": "attention", "heads": 2, "window": 16}]}}
    settings = {"repeat_bp": 64, "gaps_bp": [0, 20], "lead_bp": 8, "samples": 6, **recall}
    return make_study(models=windowed, pretrain={"seeds": list(seeds)}, evaluate={"recall": settings})


def use_copiers(monkeypatch: pytest.MonkeyPatch, distances: dict[str, int]) -> None:
    """Lets `load_weights` set the distance that the copier of a seed's folder looks back."""
    model = Copier(1)
    monkeypatch.setattr(module, "build_model", lambda config, vocab_size, **ids: model)
    monkeypatch.setattr(module, "load_weights", lambda folder, model, **origin: setattr(model, "distance", distances[folder.name]))


def read_record(study: Study) -> RunRecord:
    return RunRecord.read(Layout(study).recall("titans"))


def test_the_gain_stands_at_the_distance_that_the_model_remembers(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = recall_study(make_study)
    use_copiers(monkeypatch, {"seed-0": 84})
    evaluate_recall(study, "titans")
    near, far = read_record(study).result["gaps"]
    assert (near["gap_bp"], near["distance_bp"], far["gap_bp"], far["distance_bp"]) == (0, 64, 20, 84)
    assert far["second"] == far["second_after_32"] == 0.0
    assert far["gain"] == pytest.approx(far["control"])
    assert far["interval"][0] > 20
    assert near["second"] > 20
    assert far["table_second"] < 0.7 < 1.5 < far["table_control"]
    assert far["table_gain"] == pytest.approx(far["table_control"] - far["table_second"])


def test_means_over_seeds_and_the_bits_of_each(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = recall_study(make_study, seeds=(3, 1), gaps_bp=[20])
    # The second run remembers nothing as far back as the copies, and guesses.
    use_copiers(monkeypatch, {"seed-3": 84, "seed-1": 10_000})
    evaluate_recall(study, "titans")
    (gap,) = read_record(study).result["gaps"]
    copier, guesser = gap["seeds"]
    assert (copier["seed"], guesser["seed"]) == (3, 1)
    assert (guesser["first"], guesser["second"], guesser["control"], guesser["gain"]) == (2.0, 2.0, 2.0, 0.0)
    assert (copier["second"], gap["second"]) == (0.0, 1.0)
    assert gap["gain"] == pytest.approx(copier["gain"] / 2)
    low, high = gap["interval"]
    assert low == 0.0
    assert high > 0.9 * copier["gain"]


def test_a_model_without_memory_has_no_gain_and_no_interval(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = recall_study(make_study)
    use_copiers(monkeypatch, {"seed-0": 1})
    evaluate_recall(study, "titans")
    for gap in read_record(study).result["gaps"]:
        assert (gap["gain"], gap["interval"]) == (0.0, [0.0, 0.0])
        assert gap["first"] == gap["second"] == gap["control"] > 5


def save_titans(study: Study) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(study.models["titans"], tokenizer.VOCAB_SIZE)
    digest = stage_digest(study, "pretrain", model="titans", seed=0)
    save_weights(Layout(study).pretrained("titans", 0), model, study.models["titans"], digest=digest)
    return model


def test_the_record_of_a_real_model(make_study: MakeStudy) -> None:
    study = recall_study(make_study)
    layout, model, settings = Layout(study), save_titans(study), study.evaluate.recall
    assert settings is not None
    evaluate_recall(study, "titans")
    record = read_record(study)
    assert (record.stage, record.keys) == ("evaluate_recall", {"model": "titans"})
    assert record.digest == stage_digest(study, "evaluate_recall", model="titans")
    genomes = {name: Genome(layout.genome_store(name)) for name in study.genomes}
    assert record.data == {name: genome.sequence_sha256 for name, genome in genomes.items()}
    facts = {"table_order": 12, "repeat_bp": 64, "lead_bp": 8, "samples": 6, "parameters": sum(p.numel() for p in model.parameters())}
    assert {key: value for key, value in record.result.items() if key != "gaps"} == facts
    pieces = draw_pieces([genome.bases("chr4") for genome in genomes.values()], settings)
    sequences = np.concatenate([pieces.repeat(20), pieces.control(20)])
    repeat, control = np.split(window_bits_per_base(model.eval(), sequences, torch.device("cpu")).astype(float), 2)
    expected = {
        "first": repeat[:, 8:71].mean(),
        "second": repeat[:, 92:].mean(),
        "second_after_32": repeat[:, 123:].mean(),
        "control": control[:, 92:].mean(),
        "gain": (control[:, 92:] - repeat[:, 92:]).mean(),
    }
    found = record.result["gaps"][1]
    assert {label: found[label] for label in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert found["seeds"] == [{"seed": 0, **{label: found[label] for label in expected}}]
    assert found["interval"][0] <= found["gain"] <= found["interval"][1]


@pytest.mark.parametrize(("batch_tokens", "calls"), [(1, 6), (2 * 156, 3), (10**6, 1)])
def test_batches_hold_few_tokens_and_change_nothing(make_study: MakeStudy, batch_tokens: int, calls: int) -> None:
    sequences = np.stack([random_bases(156, seed) for seed in range(6)])
    model, seen = build_model(make_study().models["titans"], tokenizer.VOCAB_SIZE), []
    model.register_forward_hook(lambda model, inputs, output: seen.append(model.training))
    bits = model_bits(model, sequences, batch_tokens=batch_tokens, device=torch.device("cpu"))
    np.testing.assert_allclose(bits, window_bits_per_base(model, sequences, torch.device("cpu")), rtol=1e-5)
    assert seen == [False] * (calls + 1)


def test_a_study_without_the_section(tiny_study: Study) -> None:
    with pytest.raises(GenomemError, match=r"study tiny: has no section evaluate\.recall; add `recall: \{\}` under `evaluate:`"):
        evaluate_recall(tiny_study, "titans")


def test_a_bidirectional_model_recalls_nothing(make_study: MakeStudy) -> None:
    models = {"both_ways": {"dim": 8, "layers": ["causal_conv"], "bidirectional": True}, "attention": {"bidirectional": True}}
    study = make_study(models=models, evaluate={"recall": {}})
    with pytest.raises(GenomemError, match=r"models\.both_ways: is bidirectional, and a masked model gives no probability"):
        evaluate_recall(study, "both_ways")
    assert not Layout(study).recall("both_ways").exists()


def test_test_chromosomes_that_are_too_short_for_the_study(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = recall_study(make_study, repeat_bp=1000)
    use_copiers(monkeypatch, {"seed-0": 84})
    with pytest.raises(GenomemError, match=r"^evaluate\.recall\.samples: the test chromosomes hold 0 stretches of 1,008 bases"):
        evaluate_recall(study, "titans")


def test_without_pretrained_weights(make_study: MakeStudy) -> None:
    with pytest.raises(GenomemError, match="run the training stage first"):
        evaluate_recall(recall_study(make_study), "titans")


@pytest.mark.parametrize("places", [slice(20, 30), slice(100, None)], ids=["in the first copy", "in the second"])
def test_a_model_that_is_not_finite_is_named(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, places: slice) -> None:
    def forward(self: Copier, tokens: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, tokenizer.VOCAB_SIZE)
        logits[:, places] = math.nan
        return logits, None

    study = recall_study(make_study)
    use_copiers(monkeypatch, {"seed-0": 84})
    monkeypatch.setattr(Copier, "forward", forward)
    with pytest.raises(GenomemError, match="model titans gives probabilities that are not finite") as raised:
        evaluate_recall(study, "titans")
    assert str(raised.value).startswith(f"{Layout(study).pretrained('titans', 0)}: ")
    assert not Layout(study).recall("titans").exists()
