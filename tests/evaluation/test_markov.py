"""Markov models against dictionaries of strings that are filled and read one base at a time."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from genomem.config import Study, parse_study, stage_digest
from genomem.data.genome import tokenize_genome
from genomem.errors import GenomemError
from genomem.evaluation import markov
from genomem.evaluation.kmers import UNKNOWN, join
from genomem.evaluation.markov import REPEAT, SCORED, SURE, _spread_blocks, evaluate_markov
from genomem.evaluation.markov_models import PSEUDOCOUNTS, STRENGTHS, Positions, chain_orders, fit_markov
from genomem.layout import Layout
from genomem.record import RunRecord

COMPLEMENT = str.maketrans("ACGT", "TGCA")
CLASSES = ("all", "unmasked", "repeat", "sure", "unsure")


def _random(length: int, seed: int, letters: str = "AACGTT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


REPEATED = _random(120, 100)
TRAIN = {"one": _random(900, 1) + REPEATED + "NNN" + _random(60, 2), "two": _random(500, 3).lower() + REPEATED}
VALIDATION = {"val": _random(300, 4) + REPEATED[10:90] + _random(20, 5)}
TEST = {
    "test": "A" + _random(150, 6).lower() + "NN" + REPEATED.translate(COMPLEMENT)[::-1] + "N" + REPEATED[:40].lower(),
    "more": _random(30, 7),
}


class _Dictionary:
    """The slow model: counts in a dictionary, probabilities by the definition."""

    def __init__(self, chromosomes: dict[str, str], orders: range) -> None:
        sequences = [text.upper() for text in chromosomes.values()]
        strands = sequences + [text.translate(COMPLEMENT)[::-1] for text in sequences]
        self.counts = Counter(text[i : i + k + 1] for text in strands for k in orders for i in range(len(text) - k))

    def next_base(self, context: str) -> np.ndarray:
        return np.array([self.counts[context + base] for base in "ACGT"], dtype=float)

    def order_zero(self) -> np.ndarray:
        return (self.next_base("") + 1) / (self.next_base("") + 1).sum()

    def plain(self, before: str, order: int, pseudocount: float) -> np.ndarray:
        context = before[len(before) - order :] if len(before) >= order else "N"
        if "N" in context:
            return self.order_zero()
        counts = self.next_base(context)
        return (counts + pseudocount) / (counts.sum() + 4 * pseudocount)

    def backoff(self, before: str, strengths: dict[int, float]) -> np.ndarray:
        p = self.order_zero()
        for order, strength in sorted(strengths.items()):
            context = before[len(before) - order :] if len(before) >= order else "N"
            counts = np.zeros(4) if "N" in context else self.next_base(context)
            p = (counts + strength * p) / (counts.sum() + strength)
        return p


def _predict(chromosomes: dict[str, str], model) -> dict[tuple[str, int], np.ndarray]:
    """Returns the distribution of each known base but the first of its chromosome."""
    places = ((name, i, text.upper()) for name, text in chromosomes.items() for i in range(1, len(text)))
    return {(name, i): model(text[:i]) for name, i, text in places if text[i] != "N"}


def _bits(chromosomes: dict[str, str], predicted: dict[tuple[str, int], np.ndarray]) -> np.ndarray:
    return np.array([-np.log2(p["ACGT".index(chromosomes[name][i].upper())]) for (name, i), p in predicted.items()])


def _study(results: Path, genomes: dict[str, dict], **evaluate) -> Study:
    tree = {
        "name": "small",
        "results": str(results),
        "genomes": {name: {"sources": f"{name}.fa", **roles} for name, roles in genomes.items()},
        "models": {"cnn": {"architecture": "cnn"}},
        "evaluate": {"markov_orders": [0, 2, 5], "backoff_orders": [3, 13], **evaluate},
    }
    return parse_study(tree, origin="test")


def _store(study: Study, name: str, chromosomes: dict[str, str], folder: Path) -> None:
    fasta = folder / f"{name}.fa"
    fasta.write_text("".join(f">{chrom}\n{text}\n" for chrom, text in chromosomes.items()))
    section = study.genomes[name]
    roles = {"validation": section.validation, "test": section.test}
    digest = stage_digest(study, "tokenize_genome", genome=name)
    tokenize_genome(fasta, Layout(study).genome_store(name), name=name, **roles, digest=digest)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, RunRecord, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("markov")
    study = _study(folder / "results", {"small": {"validation": ["val"], "test": ["test", "more"]}})
    _store(study, "small", TRAIN | VALIDATION | TEST, folder)
    evaluate_markov(study)
    with np.load(Layout(study).markov_scores, allow_pickle=False) as arrays:
        return study, RunRecord.read(Layout(study).markov), dict(arrays)


def test_record(evaluated) -> None:
    study, record, _ = evaluated
    assert (record.stage, record.digest, record.keys) == ("evaluate_markov", stage_digest(study, "evaluate_markov"), {})
    assert len(record.data) == 1
    assert all(len(sha) == 64 for sha in record.data.values())
    assert record.result["chromosomes"] == {"small": ["test", "more"]}
    assert record.result["fitted_bp"] == sum(len(text) - text.count("N") for text in TRAIN.values())
    assert [model["name"] for model in record.result["models"]] == [
        "order 0",
        "order 2",
        "order 5",
        "order 3 back-off",
        "order 13 back-off",
    ]
    assert {model["fitted_on"] for model in record.result["models"]} == {"own"}


def test_bits_and_flags_are_those_of_the_dictionary(evaluated) -> None:
    _, record, scores = evaluated
    models = record.result["models"]
    slow = _Dictionary(TRAIN, range(14))
    strengths = {int(order): value for order, value in models[-1]["smoothing"]["small"].items()}
    assert sorted(strengths) == [1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13]
    chain = _predict(TEST, lambda before: slow.backoff(before, strengths))
    sure = {place: p.max() >= 0.9 for place, p in chain.items()}
    assert 30 < sum(sure.values()) < len(sure) - 30
    for chrom, text in TEST.items():
        flags = [SCORED + REPEAT * base.islower() + SURE * bool(sure[chrom, i]) if (chrom, i) in sure else 0 for i, base in enumerate(text)]
        assert scores[f"small:{chrom}"].tolist() == flags
        assert scores[f"small:{chrom}"].dtype == np.uint8
    soft = np.array([TEST[chrom][i].islower() for chrom, i in sure])
    certain = np.array(list(sure.values()))
    classes = dict(zip(CLASSES, [certain | True, ~soft, soft, certain, ~certain], strict=True))
    assert record.result["positions"] == {name: rows.sum() for name, rows in classes.items()}
    for model in models:
        smoothing = {int(order): value for order, value in model["smoothing"]["small"].items()}
        if model["kind"] == "plain":
            predicted = _predict(TEST, lambda before, m=model, s=smoothing: slow.plain(before, m["order"], s[m["order"]]))
        else:
            predicted = _predict(TEST, lambda before, s=smoothing: slow.backoff(before, s))
        bits = _bits(TEST, predicted)
        assert model["bits"] == {name: pytest.approx(bits[rows].mean(), abs=1e-4) for name, rows in classes.items()}


def test_contexts_are_counted(evaluated) -> None:
    _, record, _ = evaluated
    slow = _Dictionary(TRAIN, range(14))
    known = Counter(len(context) for context in {word[:-1] for word in slow.counts if "N" not in word})
    for model in record.result["models"]:
        chain = [0, *map(int, model["smoothing"]["small"])] if model["kind"] == "backoff" else [model["order"]]
        assert model["contexts"] == sum(known[order] for order in chain)


def test_smoothing_is_the_best_on_validation(evaluated) -> None:
    _, record, _ = evaluated
    slow = _Dictionary(TRAIN, range(14))
    plain, backoff = record.result["models"][2], record.result["models"][3]

    def plain_cost(pseudocount: float) -> float:
        return _bits(VALIDATION, _predict(VALIDATION, lambda before: slow.plain(before, 5, pseudocount))).mean()

    best = min(map(plain_cost, PSEUDOCOUNTS))
    assert plain_cost(plain["smoothing"]["small"]["5"]) == pytest.approx(best, abs=1e-5)
    chosen = {int(order): value for order, value in backoff["smoothing"]["small"].items()}
    for order in chosen:
        lower = {j: value for j, value in chosen.items() if j < order}

        def cost(strength: float, lower=lower, order=order) -> float:
            return _bits(VALIDATION, _predict(VALIDATION, lambda before: slow.backoff(before, {**lower, order: strength}))).mean()

        assert cost(chosen[order]) == pytest.approx(min(map(cost, STRENGTHS[::4])), abs=2e-3)
        assert cost(chosen[order]) <= min(map(cost, STRENGTHS[::4])) + 1e-5


def test_an_exact_repeat_is_sure_and_cheap(evaluated) -> None:
    _, record, _ = evaluated
    top = record.result["models"][-1]["bits"]
    assert top["sure"] < 0.5 < 1.5 < top["unsure"]


def test_several_genomes_pool_by_positions_and_choose_what_to_fit_on(tmp_path: Path) -> None:
    roles = {"validation": ["val"], "test": ["test"]}
    copied = _random(600, 20)
    genomes = {
        "donor": {"a": copied, "b": _random(400, 21), "val": _random(200, 22, "AT"), "test": _random(250, 23, "AT")},
        "copy": {"c": _random(300, 24, "CG"), "val": copied[100:300], "test": copied[300:500]},
        "untested": {"d": _random(50, 25)},
    }
    study = _study(tmp_path / "results", {"donor": roles, "copy": roles, "untested": {}}, markov_orders=[0], backoff_orders=[12])
    for name, chromosomes in genomes.items():
        _store(study, name, chromosomes, tmp_path)
    evaluate_markov(study)
    result = RunRecord.read(Layout(study).markov).result
    assert result["chromosomes"] == {"donor": ["test"], "copy": ["test"]}
    assert result["positions"]["all"] == 249 + 199
    assert "copy: all" in result["models"][0]["fitted_on"] or result["models"][0]["fitted_on"] == "all"
    assert result["fitted_bp"] == result["training_bp"] == 600 + 400 + 300 + 50
    alone = {}
    for name in ("donor", "copy"):
        one = _study(tmp_path / name, {name: roles}, markov_orders=[0], backoff_orders=[12])
        _store(one, name, genomes[name], tmp_path)
        evaluate_markov(one)
        alone[name] = RunRecord.read(Layout(one).markov).result["models"][1]["bits"]["all"]
    assert result["models"][1]["bits"]["all"] < (249 * alone["donor"] + 199 * alone["copy"]) / 448 - 0.3


def test_training_is_cut_to_the_cap(tmp_path: Path) -> None:
    study = _study(tmp_path / "results", {"small": {"validation": ["val"], "test": ["test"]}}, markov_max_bp=500)
    _store(study, "small", TRAIN | VALIDATION | TEST, tmp_path)
    evaluate_markov(study)
    result = RunRecord.read(Layout(study).markov).result
    assert result["fitted_bp"] == 500
    assert result["training_bp"] == sum(len(text) - text.count("N") for text in [*TRAIN.values(), TEST["more"]])


def test_blocks_are_evenly_spaced_over_known_bases_and_apart() -> None:
    letters = "N" * 300 + _random(700, 30) + "N" * 50 + _random(250, 31), "N" * 40, _random(50, 32)
    chromosomes = [np.frombuffer(text.encode(), dtype=np.uint8) for text in letters]
    blocks = [block.tobytes().decode() for block in _spread_blocks(chromosomes, [950, 0, 50], 400)]
    known = "".join(letters).replace("N", "")
    # 100 blocks of 4 known bases, one every 10 of the 1,000 known ones, 3 in from where its step starts.
    expected = [known[start : start + 4] for start in range(3, 1000, 10)]
    assert [block.replace("N", "") for block in blocks] == expected
    joined = join(np.frombuffer(block.encode(), dtype=np.uint8) for block in blocks)
    assert np.count_nonzero(joined != UNKNOWN) == 400
    assert all(joined[5 * place + 4] == UNKNOWN for place in range(50))


def test_a_block_over_the_end_of_a_chromosome_comes_in_two_pieces_and_keeps_its_gaps() -> None:
    chromosomes = [np.frombuffer(text, dtype=np.uint8) for text in (b"ACGNNTAC", b"GGTT")]
    pieces = [piece.tobytes() for piece in _spread_blocks(chromosomes, [6, 4], 9)]
    assert b"".join(pieces).replace(b"N", b"") == b"ACGTACGGT"


def test_own_and_pooled_fits_together_are_no_more_than_the_training_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = {"validation": ["val"], "test": ["test"]}
    study = _study(tmp_path / "results", {"first": roles, "second": roles}, markov_orders=[0], backoff_orders=[], markov_max_bp=200)
    for seed, name in enumerate(study.genomes):
        chromosomes = {"a": _random(500, 40 + seed), "val": _random(60, 50 + seed), "test": _random(60, 60 + seed)}
        _store(study, name, chromosomes, tmp_path)
    choose = markov._choose_training

    def differ(name, genomes, tuning, max_bp):
        return choose(name, {name: genomes[name]}, tuning, max_bp) if name == "first" else ("all", markov._training(genomes, max_bp))

    monkeypatch.setattr(markov, "_choose_training", differ)
    evaluate_markov(study)
    result = RunRecord.read(Layout(study).markov).result
    assert (result["fitted_bp"], result["training_bp"]) == (400, 1000)


def test_no_repeat_and_nothing_sure_are_null(tmp_path: Path) -> None:
    study = _study(tmp_path / "results", {"small": {"validation": ["val"], "test": ["more"]}}, backoff_orders=[])
    _store(study, "small", TRAIN | VALIDATION | {"more": TEST["more"]}, tmp_path)
    evaluate_markov(study)
    result = RunRecord.read(Layout(study).markov).result
    assert result["positions"] == {"all": 29, "unmasked": 29, "repeat": 0, "sure": 0, "unsure": 29}
    assert all(model["bits"]["repeat"] is None and model["bits"]["sure"] is None for model in result["models"])


@pytest.mark.parametrize("role", ["validation", "test"])
def test_a_missing_role_is_named(role: str, tmp_path: Path) -> None:
    roles = {"validation": ["val"], "test": ["test"]}
    del roles[role]
    study = _study(tmp_path / "results", {"small": roles})
    _store(study, "small", TRAIN | VALIDATION | TEST, tmp_path)
    with pytest.raises(GenomemError, match=rf"no chromosome .* {role}.*genomes\.<name>\.{role}"):
        evaluate_markov(study)
    assert not Layout(study).markov.exists()


def test_one_chain_serves_all_backoff_orders() -> None:
    assert chain_orders([]) == []
    assert chain_orders([5]) == [1, 2, 3, 4, 5]
    assert chain_orders([24, 16])[-5:] == [12, 14, 16, 20, 24]


@pytest.mark.skipif("GENOMEM_MIRROR" not in os.environ, reason="GENOMEM_MIRROR is unset: no real genome to fit on")
def test_yeast_bits_per_base() -> None:
    from genomem.data.fasta import read_fasta

    path = Path(os.environ["GENOMEM_MIRROR"]) / "genomes" / "sacCer3" / "sacCer3.fa.gz"
    if not path.exists():
        pytest.skip("the mirror holds no sacCer3")
    bases = {name: np.frombuffer(sequence, dtype=np.uint8) for name, sequence, _ in read_fasta(path)}

    def held_out(chrom: str) -> Positions:
        codes = join([bases[chrom]])
        return Positions(codes, np.flatnonzero(codes != UNKNOWN)[1:])

    training = join([bases[f"chr{number}"] for number in ("II", "IV")])
    models, _ = fit_markov(training, held_out("chrI"), held_out("chrXV"), (0, 4), (8,))
    bits = [float(model.bits.mean(dtype=np.float64)) for model in models]
    assert bits == pytest.approx([1.959, 1.940, 1.936], abs=0.004)
