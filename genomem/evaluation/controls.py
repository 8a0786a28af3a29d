"""What a benchmark gives away without learning, and how much of its test part stands in train.

Four controls: the majority class; the length of the sequence alone; a logistic regression on k-mer frequencies;
and a look-up of the train sequence that shares the most k-mers. A model has to beat the best of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from genomem.config import Study, stage_digest
from genomem.data.benchmark import LabelledSequences, open_benchmark, training_parts
from genomem.data.tokenizer import reverse_complement
from genomem.evaluation.kmers import canonical, join, kmers
from genomem.layout import Layout
from genomem.metrics import bootstrap, score
from genomem.progress import say, track
from genomem.record import RunRecord, Stopwatch, describe_environment

TREE_DEPTHS = (1, 2, 3, 4, 6, 8, 12)
LENGTH_STEP_BP = 200
INVERSE_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
MAX_ITERATIONS = 200
MAX_REGRESSION_SEQUENCES = 40_000

_BLOCK_SEQUENCES = 4096


def evaluate_controls(study: Study, dataset: str) -> None:
    """Scores every control on a benchmark's test part, measures its leaks, and writes `Layout.controls`.

    Controls are fitted on train and tuned on the dev part, or on `finetune.validation_fraction` of train where
    there is none; the look-up reads all of train.

    Raises:
        GenomemError: The benchmark is not tokenized yet, or is too small to split.
    """
    stopwatch, layout, settings, section = Stopwatch(), Layout(study), study.evaluate, study.benchmarks[dataset]
    benchmark = open_benchmark(study, dataset)
    classes = len(benchmark.classes)
    train, test = benchmark.part("train"), benchmark.part("test")
    fitting, validation = training_parts(benchmark, study.finetune.validation_fraction)
    sample = _at_most(fitting, MAX_REGRESSION_SEQUENCES, dataset)
    shared = shared_kmers(test, train, settings.overlap_kmer, f"k-mers shared with train, {dataset}")
    predictions = {
        "majority": np.tile(_prior(train.labels, classes), (len(test), 1)),
        "length": length_control(fitting, validation, test, classes, section.metric),
        "kmer": kmer_control(sample, validation, test, classes, section.metric, settings.kmer_sizes, section.stranded),
        "overlap": overlap_control(shared, train.labels, classes),
    }
    intervals = {
        name: bootstrap(test.labels, probabilities[None], samples=settings.bootstrap_samples, confidence=settings.confidence)
        for name, probabilities in track(predictions.items(), f"intervals, {dataset}", total=len(predictions), unit="control")
    }
    result = {
        "classes": list(benchmark.classes),
        "counts": benchmark.manifest["counts"],
        "length_bp": benchmark.manifest["length_bp"],
        "controls": {name: score(test.labels, probabilities) for name, probabilities in predictions.items()},
        "intervals": intervals,
        "leak": {**leak(train, test, shared), "overlap_kmer": settings.overlap_kmer},
        "kmer_sequences": len(sample),
    }
    digest = stage_digest(study, "evaluate_controls", dataset=dataset)
    record = RunRecord(
        stage="evaluate_controls",
        study=study.name,
        digest=digest,
        keys={"dataset": dataset},
        result=result,
        data=benchmark.manifest["files"],
        environment=describe_environment(),
        run=stopwatch.run(),
    )
    record.write(layout.controls(dataset))


def length_control(
    train: LabelledSequences, validation: LabelledSequences, test: LabelledSequences, classes: int, metric: str
) -> np.ndarray:
    """Returns the probabilities [n, C] that a decision tree on length, and length modulo 200, gives the test sequences.

    Regulatory elements of some annotations are multiples of 200 bp long; the depth is tuned on validation.
    """
    trees = [DecisionTreeClassifier(max_depth=depth, random_state=0).fit(_lengths(train), train.labels) for depth in TREE_DEPTHS]
    best = max(trees, key=lambda tree: score(validation.labels, _all_classes(tree, _lengths(validation), classes))[metric])
    return _all_classes(best, _lengths(test), classes)


def kmer_control(
    train: LabelledSequences,
    validation: LabelledSequences,
    test: LabelledSequences,
    classes: int,
    metric: str,
    sizes: tuple[int, ...],
    stranded: bool,
) -> np.ndarray:
    """Returns the probabilities [n, C] that logistic regression on standardised k-mer frequencies gives the test sequences.

    The penalty is tuned on validation, and so is whether a k-mer and its reverse complement are one feature where the strand
    carries the label: half the features often do better on a small set. A fit that stops at `MAX_ITERATIONS` is used as it is.
    """
    fits = [_tuned_regression(train, validation, classes, metric, sizes, apart) for apart in ((False, True) if stranded else (False,))]
    _, scaler, model, apart = max(fits, key=lambda fit: fit[0])
    blocks = _frequency_blocks(test.sequences, sizes, apart)
    return np.concatenate([_all_classes(model, scaler.transform(block), classes) for block in blocks])


def _tuned_regression(
    train: LabelledSequences, validation: LabelledSequences, classes: int, metric: str, sizes: tuple[int, ...], stranded: bool
) -> tuple[float, StandardScaler, LogisticRegression, bool]:
    """Returns the best value of the metric on validation, the scaler and the model that reach it, and `stranded`."""
    scaler = StandardScaler(copy=False)
    features = scaler.fit_transform(np.concatenate(list(_frequency_blocks(train.sequences, sizes, stranded)), dtype=np.float32))
    held_out = [scaler.transform(block) for block in _frequency_blocks(validation.sequences, sizes, stranded)]
    model = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS)
    best_value, best = -np.inf, model
    for inverse_penalty in track(INVERSE_PENALTIES, "k-mer regression", unit="penalty"):
        model.set_params(C=inverse_penalty)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, train.labels)
        probabilities = np.concatenate([_all_classes(model, block, classes) for block in held_out])
        value = score(validation.labels, probabilities)[metric]
        if value > best_value:
            best_value, best = value, deepcopy(model)
    return best_value, scaler, best, stranded


def kmer_frequencies(sequences: list[np.ndarray], sizes: tuple[int, ...], stranded: bool) -> np.ndarray:
    """Returns the share of each k-mer among all k-mers of its size in a sequence, float32 [n, features].

    A k-mer and its reverse complement are one feature unless `stranded`. K-mers with an unknown base are left out;
    a sequence without a k-mer of some size has zeros there.
    """
    codes = join(sequences)
    rows = _rows(sequences)
    parts = []
    for k in sizes:
        columns = _columns(k, stranded)
        found, known = kmers(codes, k)
        cells = rows[: len(found)][known] * (columns.max() + 1) + columns[found[known]]
        counts = np.bincount(cells, minlength=len(sequences) * (columns.max() + 1)).reshape(len(sequences), -1)
        parts.append((counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32))
    return np.concatenate(parts, axis=1)


def _rows(sequences: list[np.ndarray]) -> np.ndarray:
    """Returns which sequence each place of the joined sequences belongs to."""
    return np.repeat(np.arange(len(sequences)), [len(sequence) + 1 for sequence in sequences])


def _columns(k: int, stranded: bool) -> np.ndarray:
    """Returns the feature that each of the 4^k k-mers counts for."""
    found = np.arange(4**k, dtype=np.uint64)
    return np.unique(found if stranded else canonical(found, k), return_inverse=True)[1]


def _frequency_blocks(sequences: list[np.ndarray], sizes: tuple[int, ...], stranded: bool) -> Iterator[np.ndarray]:
    for start in range(0, len(sequences), _BLOCK_SEQUENCES):
        yield kmer_frequencies(sequences[start : start + _BLOCK_SEQUENCES], sizes, stranded)


def shared_kmers(test: LabelledSequences, train: LabelledSequences, k: int, title: str = "shared k-mers") -> csr_matrix:
    """Returns how many different k-mers, on either strand, each test sequence shares with each train sequence: int32 [test, train]."""
    test_rows, test_kmers = _distinct_kmers(test.sequences, k)
    vocabulary, test_columns = np.unique(test_kmers, return_inverse=True)
    train_rows, train_columns = [], []
    for start in track(range(0, len(train), _BLOCK_SEQUENCES), title, unit="block"):
        rows, found = _distinct_kmers(train.sequences[start : start + _BLOCK_SEQUENCES], k)
        place = np.searchsorted(vocabulary, found)
        held = np.flatnonzero(vocabulary[np.minimum(place, len(vocabulary) - 1)] == found) if len(vocabulary) else place[:0]
        train_rows.append(rows[held] + start)
        train_columns.append(place[held])
    left = _incidence(test_rows, test_columns, (len(test), len(vocabulary)))
    right = _incidence(np.concatenate(train_rows), np.concatenate(train_columns), (len(train), len(vocabulary)))
    return (left @ right.T).tocsr()


def _distinct_kmers(sequences: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (sequence, canonical k-mer) pairs, each once."""
    codes = join(sequences)
    found, known = kmers(codes, k)
    rows = _rows(sequences)[: len(found)][known]
    found = canonical(found[known], k)
    order = np.lexsort((found, rows))
    rows, found = rows[order], found[order]
    is_new = np.ones(len(found), dtype=bool)
    is_new[1:] = (rows[1:] != rows[:-1]) | (found[1:] != found[:-1])
    return rows[is_new], found[is_new]


def _incidence(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    return csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=shape)


def overlap_control(shared: csr_matrix, train_labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns probabilities [n, C]: all on the class of the train sequence that shares most, the first one at a tie.

    A test sequence that shares nothing gets the class shares of train.
    """
    probabilities = np.tile(_prior(train_labels, classes), (shared.shape[0], 1))
    hits = np.flatnonzero(np.diff(shared.indptr))
    nearest = np.asarray(shared.argmax(axis=1)).ravel()[hits]
    probabilities[hits] = np.eye(classes)[train_labels[nearest]]
    return probabilities


def leak(train: LabelledSequences, test: LabelledSequences, shared: csr_matrix) -> dict[str, float]:
    """Returns shares: exact and near duplicates of train among the test sequences, and copies within train.

    Exact: equal to a train sequence on either strand, whatever the case. Near: exact, or shares a k-mer. Train
    duplicates: sequences that would go if each were kept once.
    """
    known = [_canonical_bytes(sequence) for sequence in train.sequences]
    originals = set(known)
    exact = np.array([_canonical_bytes(sequence) in originals for sequence in test.sequences])
    near = exact | (np.diff(shared.indptr) > 0)
    return {"exact": float(exact.mean()), "near": float(near.mean()), "train_duplicates": 1.0 - len(originals) / len(known)}


def _canonical_bytes(sequence: np.ndarray) -> bytes:
    return min(sequence.tobytes().upper(), reverse_complement(sequence).tobytes().upper())


def _prior(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels, minlength=classes) / len(labels)


def _lengths(part: LabelledSequences) -> np.ndarray:
    length = np.array([len(sequence) for sequence in part.sequences])
    return np.stack([length, length % LENGTH_STEP_BP], axis=1)


def _all_classes(model: DecisionTreeClassifier | LogisticRegression, features: np.ndarray, classes: int) -> np.ndarray:
    """Returns predicted probabilities [n, C], with 0 for a class that the model was not shown."""
    probabilities = np.zeros((len(features), classes))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities


def _at_most(part: LabelledSequences, sequences: int, dataset: str) -> LabelledSequences:
    if len(part) <= sequences:
        return part
    say(f"{dataset}: k-mer regression is fitted on {sequences:,} of {len(part):,} train sequences")
    return part.subset(np.sort(np.random.default_rng(0).choice(len(part), sequences, replace=False)))
