"""Classification metrics and their bootstrap intervals.

Every metric is finite for any labels. AUROC and AUPRC are the mean over the classes that have both a
positive and a negative item (with two classes: class 1 alone); without such a class AUROC is 0.5, and
AUPRC is the share of class 1 (of one class in C, when C > 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef, roc_auc_score

METRICS = ("accuracy", "mcc", "f1", "auroc", "auprc")

_BLOCK_ITEMS = 1 << 21


def score(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns each of `METRICS`.

    Args:
        labels: Class of each item, int [n], n >= 1.
        probabilities: [n, C]; the predicted class is the most probable one, the lower number at a tie.

    Returns:
        Accuracy, Matthews correlation, macro F1 (over the classes that occur among labels or predictions),
        and one-vs-rest area under the ROC curve and average precision (class 1 when C is 2, macro mean above).
    """
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "mcc": float(matthews_corrcoef(labels, predicted)) if len(np.unique(labels)) > 1 else 0.0,
        "f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "auroc": _one_vs_rest(roc_auc_score, labels, probabilities, 0.5),
        "auprc": _one_vs_rest(average_precision_score, labels, probabilities, _prevalence(labels, probabilities)),
    }


def bootstrap(labels: np.ndarray, probabilities: np.ndarray, *, samples: int, confidence: float, seed: int = 0) -> dict[str, list[float]]:
    """Returns a percentile interval [low, high] of each metric's mean over runs, by resampling the test items and the runs.

    Both are drawn with replacement, so that runs that disagree widen the interval. All runs of a resample are scored on the
    same items. A resample on which a class has no positive or no negative
    item leaves that class out of AUROC and AUPRC, and is skipped for them when no class is left; when all
    are skipped, the interval is the point value twice.

    Args:
        labels: [n].
        probabilities: [S, n, C], one layer a run (seed).
        samples: Resamples of n items and S runs.
        confidence: Share of the resamples inside the interval, such as 0.95.
        seed: Of the resampling.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    runs = [_Run(labels, run) for run in probabilities]
    blocks = [np.stack([run.metrics(weights) for run in runs]) for weights in _resamples(len(labels), samples, seed)]
    drawn = np.random.default_rng([seed, len(runs)]).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=samples)
    values = np.einsum("rms,sr->ms", np.concatenate(blocks, axis=2), drawn) / len(runs)
    tail = (1.0 - confidence) / 2.0
    intervals = {name: _interval(row, tail) for name, row in zip(METRICS, values, strict=True)}
    return {name: interval or [_mean_score(labels, probabilities, name)] * 2 for name, interval in intervals.items()}


def _one_vs_rest(metric: Callable, labels: np.ndarray, probabilities: np.ndarray, undefined: float) -> float:
    values = [metric(labels == c, probabilities[:, c]) for c in _scored_classes(probabilities) if 0 < np.sum(labels == c) < len(labels)]
    return float(np.mean(values)) if values else undefined


def _scored_classes(probabilities: np.ndarray) -> range:
    classes = probabilities.shape[-1]
    return range(1, 2) if classes == 2 else range(classes)


def _prevalence(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.mean([np.mean(labels == c) for c in _scored_classes(probabilities)]))


def _mean_score(labels: np.ndarray, probabilities: np.ndarray, name: str) -> float:
    return float(np.mean([score(labels, run)[name] for run in probabilities]))


def _interval(values: np.ndarray, tail: float) -> list[float]:
    """Returns the quantiles of the defined values; an empty list when there is none."""
    defined = values[np.isfinite(values)]
    return np.quantile(defined, [tail, 1.0 - tail]).tolist() if len(defined) else []


def _resamples(items: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each item was drawn, float [block, n], until `samples` rows are out."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK_ITEMS // items)
    for start in range(0, samples, rows):
        block = min(rows, samples - start)
        drawn = generator.integers(items, size=(block, items))
        drawn += np.arange(block)[:, None] * items
        yield np.bincount(drawn.ravel(), minlength=block * items).reshape(block, items).astype(np.float64)


class _Run:
    """One run's predictions, made ready to be scored under many weightings of the items at once."""

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        self.classes = probabilities.shape[1]
        cell = labels * self.classes + probabilities.argmax(axis=1)
        self.confusion = (cell[:, None] == np.arange(self.classes**2)).astype(np.float64)
        self.curves = [_Curve(labels == c, probabilities[:, c]) for c in _scored_classes(probabilities)]

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """Returns `METRICS` for weights [R, n] as [5, R], with NaN where AUROC and AUPRC are undefined."""
        confusion = (weights @ self.confusion).reshape(-1, self.classes, self.classes)
        areas = np.array([curve.areas(weights) for curve in self.curves])
        defined = np.isfinite(areas)
        with np.errstate(invalid="ignore"):
            areas = np.where(defined, areas, 0.0).sum(axis=0) / defined.sum(axis=0)
        return np.stack([*_confusion_metrics(confusion), *areas])


def _confusion_metrics(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns accuracy, Matthews correlation and macro F1, each [R], of confusion matrices [R, true, predicted]."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total, correct = true.sum(axis=1), hits.sum(axis=1)
    spread = np.sqrt((total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1)))
    covariance = correct * total - (true * predicted).sum(axis=1)
    mcc = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)
    occurs = true + predicted > 0
    f1 = np.divide(2 * hits, true + predicted, out=np.zeros_like(hits), where=occurs).sum(axis=1) / occurs.sum(axis=1)
    return correct / total, mcc, f1


class _Curve:
    """One class against the rest: items from the highest score down, ties as one step."""

    def __init__(self, positive: np.ndarray, scores: np.ndarray) -> None:
        self.order = np.argsort(-scores, kind="stable")
        self.positive = positive[self.order].astype(np.float64)
        self.steps = np.append(np.flatnonzero(np.diff(scores[self.order])), len(scores) - 1)

    def areas(self, weights: np.ndarray) -> np.ndarray:
        """Returns AUROC and average precision for weights [R, n] as [2, R]; NaN without a positive or a negative item."""
        drawn = weights[:, self.order]
        above = np.cumsum(drawn, axis=1)[:, self.steps]
        hits = np.cumsum(drawn * self.positive, axis=1)[:, self.steps]
        positives = hits[:, -1]
        gained = np.diff(hits, axis=1, prepend=0.0)
        misses = above - hits
        # A positive outranks the negatives below its step, and half of those in it.
        outranked = misses[:, -1:] - misses + np.diff(misses, axis=1, prepend=0.0) / 2
        precision = np.divide(hits, above, out=np.zeros_like(hits), where=above > 0)
        defined = (positives > 0) & (misses[:, -1] > 0)
        pairs = np.where(defined, positives * misses[:, -1], np.nan)
        return np.stack([(gained * outranked).sum(axis=1) / pairs, (gained * precision).sum(axis=1) / np.where(defined, positives, np.nan)])
