"""Metrics against scikit-learn and against worked examples; the bootstrap against resampling with a loop."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef, roc_auc_score

from genomem.metrics import METRICS, _Run, bootstrap, score


def _task(seed: int, items: int, classes: int, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=items)
    labels[:classes] = np.arange(classes)
    logits = generator.normal(size=(items, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if rounded:
        first = probabilities[:, :1].round(1)
        probabilities = np.concatenate([first, 1 - first], axis=1) if classes == 2 else probabilities.round(1)
    return labels, probabilities


def test_perfect_prediction_scores_one() -> None:
    labels = np.array([0, 1, 2, 1, 0])
    assert score(labels, np.eye(3)[labels]) == dict.fromkeys(METRICS, 1.0)


def test_worked_example() -> None:
    labels = np.array([1, 1, 1, 0, 0])
    second = np.array([0.9, 0.8, 0.3, 0.4, 0.1])
    metrics = score(labels, np.stack([1 - second, second], axis=1))
    assert metrics["accuracy"] == pytest.approx(4 / 5)
    assert metrics["mcc"] == pytest.approx((2 * 2 - 0 * 1) / np.sqrt(2 * 3 * 2 * 3))
    assert metrics["f1"] == pytest.approx((4 / 5 + 4 / 5) / 2)
    assert metrics["auroc"] == pytest.approx(5 / 6)
    assert metrics["auprc"] == pytest.approx((1 + 1 + 3 / 4) / 3)


@pytest.mark.parametrize("labels", [np.zeros(5, dtype=np.int64), np.ones(5, dtype=np.int64)])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_class_is_finite(labels: np.ndarray, classes: int) -> None:
    probabilities = np.full((5, classes), 1 / classes)
    metrics = score(labels, probabilities)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["auroc"] == 0.5
    intervals = bootstrap(labels, probabilities[None], samples=20, confidence=0.9)
    assert intervals["auroc"] == [0.5, 0.5]
    assert np.isfinite(list(intervals.values())).all()


@pytest.mark.parametrize(("classes", "rounded"), [(2, False), (2, True), (3, False), (4, True)])
def test_weighted_metrics_are_those_of_the_resample(classes: int, rounded: bool) -> None:
    labels, probabilities = _task(classes, 200, classes, rounded)
    drawn = np.random.default_rng(1).integers(200, size=(6, 200))
    weights = np.stack([np.bincount(rows, minlength=200) for rows in drawn]).astype(float)
    fast = _Run(labels, probabilities).metrics(weights)
    for row, values in zip(drawn, fast.T, strict=True):
        true, scores = labels[row], probabilities[row]
        predicted = scores.argmax(axis=1)
        scored = [1] if classes == 2 else range(classes)
        expected = [
            np.mean(true == predicted),
            matthews_corrcoef(true, predicted),
            f1_score(true, predicted, average="macro"),
            np.mean([roc_auc_score(true == c, scores[:, c]) for c in scored]),
            np.mean([average_precision_score(true == c, scores[:, c]) for c in scored]),
        ]
        np.testing.assert_allclose(values, expected, atol=1e-12)


def test_interval_matches_a_loop_over_resamples() -> None:
    labels, first = _task(3, 150, 2)
    _, second = _task(4, 150, 2)
    runs = np.stack([first, second])
    intervals = bootstrap(labels, runs, samples=2000, confidence=0.9, seed=5)
    generator = np.random.default_rng(6)
    means = []
    for _ in range(600):
        rows = generator.integers(150, size=150)
        means.append(np.mean([roc_auc_score(labels[rows], run[rows, 1]) for run in runs[generator.integers(2, size=2)]]))
    np.testing.assert_allclose(intervals["auroc"], np.quantile(means, [0.05, 0.95]), atol=0.03)
    for name, (low, high) in intervals.items():
        assert low < np.mean([score(labels, run)[name] for run in runs]) < high


def test_runs_that_disagree_widen_the_interval() -> None:
    labels = np.arange(600) % 2
    right, wrong = (np.eye(2)[labels if good else 1 - labels] for good in (True, False))
    alike = bootstrap(labels, np.stack([right, right, right]), samples=500, confidence=0.95)["accuracy"]
    low, high = bootstrap(labels, np.stack([right, right, wrong]), samples=500, confidence=0.95)["accuracy"]
    assert alike == [1.0, 1.0]
    assert low < 0.4
    assert high == 1.0


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for repeat in range(100):
        labels = generator.integers(2, size=200)
        predicted = np.where(generator.random(200) < 0.8, labels, 1 - labels)
        low, high = bootstrap(labels, np.eye(2)[predicted][None], samples=200, confidence=0.9, seed=repeat)["accuracy"]
        covered += low <= 0.8 <= high
    assert 80 <= covered <= 98


def test_a_rare_class_lost_from_a_resample_is_skipped() -> None:
    labels = np.array([1] + [0] * 30)
    probabilities = np.stack([1 - labels * 0.8, labels * 0.8], axis=1)
    assert bootstrap(labels, probabilities[None], samples=100, confidence=0.95)["auroc"] == [1.0, 1.0]


def test_bootstrap_is_repeatable_and_quick() -> None:
    labels, probabilities = _task(8, 2500, 2)
    runs = np.stack([probabilities] * 3)
    began = time.perf_counter()
    first = bootstrap(labels, runs, samples=1000, confidence=0.95, seed=1)
    assert time.perf_counter() - began < 10
    assert first["mcc"] == bootstrap(labels, runs[:1], samples=1000, confidence=0.95, seed=1)["mcc"]
    assert first != bootstrap(labels, runs, samples=1000, confidence=0.95, seed=2)
