"""Controls on hand-made benchmarks whose leaks and signals are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genomem.config import Study, parse_study, stage_digest
from genomem.data.benchmark import LabelledSequences, tokenize_benchmark
from genomem.evaluation import controls
from genomem.evaluation.controls import (
    evaluate_controls,
    kmer_control,
    kmer_frequencies,
    leak,
    length_control,
    overlap_control,
    shared_kmers,
)
from genomem.layout import Layout
from genomem.metrics import METRICS
from genomem.record import RunRecord

COMPLEMENT = str.maketrans("ACGTacgt", "TGCAtgca")


def _random(length: int, seed: int, letters: str = "ACGT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


def _other_strand(text: str) -> str:
    return text.translate(COMPLEMENT)[::-1]


def _part(texts: list[str], labels: list[int]) -> LabelledSequences:
    return LabelledSequences([np.frombuffer(text.encode(), dtype=np.uint8) for text in texts], np.array(labels, dtype=np.int64))


def _words(text: str, k: int) -> set[str]:
    words = {text.upper()[i : i + k] for i in range(len(text) - k + 1)}
    return {min(word, _other_strand(word)) for word in words if set(word) <= set("ACGT")}


def test_shared_kmers_are_those_of_the_strings() -> None:
    common = [_random(40, seed) for seed in range(4)]
    train = [common[0] + _random(20, 10), "NN" + _other_strand(common[1]).lower(), _random(9, 11), common[0][:20] + "N" + common[2], "ACGT"]
    test = [common[0], common[1] + _random(30, 12) + common[2], common[3], common[0][5:30] + common[0][5:30], ""]
    shared = shared_kmers(_part(test, [0] * 5), _part(train, [0] * 5), 12)
    expected = [[len(_words(one, 12) & _words(other, 12)) for other in train] for one in test]
    assert np.count_nonzero(expected) >= 5
    assert shared.toarray().tolist() == expected


def test_leak_shares() -> None:
    whole = [_random(50, seed) for seed in range(4)]
    train = _part([*whole, whole[0].lower(), _other_strand(whole[1])], [0] * 6)
    test = _part(
        [
            whole[0],
            _other_strand(whole[2]).lower(),
            _random(20, 20) + whole[3][3:35] + _random(5, 21),
            _random(20, 20) + whole[3][3:34] + _random(5, 22),
            _random(50, 23),
        ],
        [0] * 5,
    )
    shares = leak(train, test, shared_kmers(test, train, 32))
    assert shares == {"exact": pytest.approx(2 / 5), "near": pytest.approx(3 / 5), "train_duplicates": pytest.approx(2 / 6)}


def test_a_copy_shorter_than_a_kmer_is_exact_and_near() -> None:
    train, test = _part(["ACGTAC", "GGGG"], [0, 1]), _part(["GTACGT", "TTTT"], [0, 1])
    assert leak(train, test, shared_kmers(test, train, 32)) == {"exact": 0.5, "near": 0.5, "train_duplicates": 0.0}


def test_overlap_takes_the_class_that_shares_most() -> None:
    source = _random(80, 1)
    train = _part([source[:40], source[30:], _random(60, 2)], [1, 2, 0])
    test = _part([source[:45], _other_strand(source[20:70]), _random(60, 3)], [0, 0, 0])
    probabilities = overlap_control(shared_kmers(test, train, 10), train.labels, 3)
    np.testing.assert_allclose(probabilities, [[0, 1, 0], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3]])


@pytest.mark.parametrize("stranded", [False, True])
def test_kmer_frequencies_are_those_of_the_strings(stranded: bool) -> None:
    texts = [_random(60, 1), _random(30, 2, "ACGTN"), "NNNN", "AC"]
    features = kmer_frequencies(_part(texts, [0] * 4).sequences, (1, 3), stranded)
    expected = []
    for text in texts:
        row: list[float] = []
        for k in (1, 3):
            words = [text[i : i + k] for i in range(len(text) - k + 1)]
            words = [word if stranded else min(word, _other_strand(word)) for word in words if "N" not in word]
            names = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"] if k == 3 else list("ACGT")
            row += [words.count(name) / max(len(words), 1) for name in names if stranded or name <= _other_strand(name)]
        expected.append(row)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)


def _composition_task(seed: int, items: int) -> LabelledSequences:
    labels = [i % 2 for i in range(items)]
    return _part([_random(80, 1000 * seed + i, "ACGT" if label else "AATTCG") for i, label in enumerate(labels)], labels)


def test_kmer_regression_learns_composition() -> None:
    train, validation, test = _composition_task(1, 120), _composition_task(2, 40), _composition_task(3, 60)
    probabilities = kmer_control(train, validation, test, 2, "accuracy", (1, 2, 3), False)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert np.mean(probabilities.argmax(axis=1) == test.labels) > 0.8


def test_strand_is_a_signal_only_when_asked_for() -> None:
    def task(seed: int) -> LabelledSequences:
        texts = [_random(60, 100 * seed + i, "AAAC") for i in range(60)]
        return _part([text if i % 2 else _other_strand(text) for i, text in enumerate(texts)], [i % 2 for i in range(60)])

    parts = [task(seed) for seed in (1, 2, 3)]
    accuracy = [
        np.mean(kmer_control(*parts, 2, "accuracy", (1, 2), stranded).argmax(axis=1) == parts[2].labels) for stranded in (True, False)
    ]
    assert accuracy[0] == 1.0
    assert accuracy[1] < 0.75


def test_length_control_reads_multiples_of_200() -> None:
    def task(seed: int) -> LabelledSequences:
        generator = np.random.default_rng(seed)
        labels = generator.integers(2, size=200)
        lengths = np.where(labels, 200 * generator.integers(1, 6, size=200), generator.integers(150, 1150, size=200))
        return _part(["A" * length for length in lengths], labels.tolist())

    test = task(3)
    probabilities = length_control(task(1), task(2), test, 2, "mcc")
    assert np.mean(probabilities.argmax(axis=1) == test.labels) > 0.95


def test_a_class_that_is_not_fitted_gets_nothing() -> None:
    train = _part(["A" * 10, "A" * 20, "A" * 10, "A" * 20], [0, 2, 0, 2])
    probabilities = length_control(train, train, train, 3, "accuracy")
    np.testing.assert_allclose(probabilities, np.eye(3)[train.labels])


def _study(results: Path, **section) -> Study:
    tree = {
        "name": "small",
        "results": str(results),
        "genomes": {"g": {"sources": "g.fa"}},
        "benchmarks": {"b": {"sources": "b.zip", **section}},
        "models": {"cnn": {"architecture": "cnn"}},
        "finetune": {"validation_fraction": 0.3},
        "evaluate": {"kmer_sizes": [1, 2], "overlap_kmer": 16, "bootstrap_samples": 50},
    }
    return parse_study(tree, origin="test")


def _write(folder: Path, part: str, sequences: dict[str, list[str]]) -> None:
    for name, texts in sequences.items():
        path = folder / part / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("sequence\n" + "".join(f"{text}\n" for text in texts))


def test_only_the_kmer_regression_is_fitted_on_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = {}

    def record(name, control):
        def wrapped(train, *rest):
            fitted[name] = len(train)
            return control(train, *rest)

        return wrapped

    monkeypatch.setattr(controls, "MAX_REGRESSION_SEQUENCES", 30)
    monkeypatch.setattr(controls, "length_control", record("length", length_control))
    monkeypatch.setattr(controls, "kmer_control", record("kmer", kmer_control))
    for part, count in (("train", 40), ("dev", 9), ("test", 9)):
        _write(tmp_path / "source", part, {name: [_random(40, len(part + name) * 1000 + i) for i in range(count)] for name in ("a", "bc")})
    study = _study(tmp_path / "results")
    digest = stage_digest(study, "tokenize_benchmark", dataset="b")
    tokenize_benchmark(tmp_path / "source", Layout(study).benchmark_store("b"), name="b", max_length_bp=None, digest=digest)
    evaluate_controls(study, "b")
    assert fitted == {"length": 80, "kmer": 30}
    assert RunRecord.read(Layout(study).controls("b")).result["kmer_sequences"] == 30


@pytest.mark.parametrize("with_dev", [False, True])
def test_stage_writes_the_record(with_dev: bool, tmp_path: Path) -> None:
    train = {"negative": [_random(60, i, "AATTCG") for i in range(60)], "positive": [_random(60, 100 + i) for i in range(40)]}
    test = {
        "negative": [train["negative"][0], *(_random(60, 200 + i, "AATTCG") for i in range(19))],
        "positive": [_other_strand(train["positive"][1]), *(_random(60, 300 + i) for i in range(19))],
    }
    source = tmp_path / "source"
    _write(source, "train", train)
    _write(source, "test", test)
    if with_dev:
        _write(
            source,
            "dev",
            {"negative": [_random(60, 400 + i, "AATTCG") for i in range(9)], "positive": [_random(60, 500 + i) for i in range(9)]},
        )
    study = _study(tmp_path / "results")
    digest = stage_digest(study, "tokenize_benchmark", dataset="b")
    tokenize_benchmark(source, Layout(study).benchmark_store("b"), name="b", max_length_bp=None, digest=digest)
    evaluate_controls(study, "b")
    record = RunRecord.read(Layout(study).controls("b"))
    assert (record.stage, record.digest) == ("evaluate_controls", stage_digest(study, "evaluate_controls", dataset="b"))
    assert record.keys == {"dataset": "b"}
    assert len(record.data) == (6 if with_dev else 4)
    result = record.result
    assert result["classes"] == ["negative", "positive"]
    assert result["counts"]["train"] == {"negative": 60, "positive": 40}
    assert result["length_bp"] == {"min": 60, "median": 60.0, "max": 60}
    assert result["leak"] == {"exact": 0.05, "near": 0.05, "train_duplicates": 0.0, "overlap_kmer": 16}
    assert (result["kmer_sequences"] == 100) is with_dev
    assert set(result["controls"]) == {"majority", "length", "kmer", "overlap"}
    assert result["controls"]["majority"]["accuracy"] == 0.5
    assert result["controls"]["length"]["mcc"] == 0.0
    assert result["controls"]["overlap"]["accuracy"] == pytest.approx((20 + 1) / 40)
    for name, metrics in result["controls"].items():
        assert set(metrics) == set(METRICS)
        for metric, (low, high) in result["intervals"][name].items():
            assert low <= metrics[metric] <= high
