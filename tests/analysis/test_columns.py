"""`genomem inspect columns`: planted repeats are found, columns move with the bases that differ, and files hold what the layer computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genomem.analysis import column_files
from genomem.analysis.columns import (
    LETTERS,
    Stretch,
    Subject,
    columns_of,
    find_repeats,
    kmer_distances,
    last_columns,
    load_layer,
    nearest_earlier,
    read_stretch,
)
from genomem.cli import main
from genomem.config import Study, stage_digest
from genomem.data.tokenizer import COMPLEMENT, VOCAB_SIZE
from genomem.errors import EXIT_OK, EXIT_USER_ERROR
from genomem.layers.sequence_dimension import SequenceDimension
from genomem.layout import Layout
from genomem.models import build_model
from genomem.training.checkpoint import save_weights

MakeStudy = Callable[..., Study]
KERNEL, COPY_BP = 9, 20
LAYER = {"mixer": "sequence_dimension", "heads": 2, "slots": 6, "block": 16, "kernel": KERNEL}
MODELS = {
    "slots": {"dim": 32, "layers": [LAYER, {"mixer": "attention", "heads": 2}, {**LAYER, "slots": 3}]},
    "both_ways": {"dim": 32, "layers": [LAYER], "bidirectional": True},
}


def random_bases(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(LETTERS, length)


def plant(bases: np.ndarray, first: int, second: int, length: int) -> None:
    """Copies bases to a second place, and has those before and behind the two copies differ."""
    bases[second : second + length] = bases[first : first + length]
    for place in (-1, length):
        bases[second + place] = LETTERS[(np.searchsorted(LETTERS, bases[first + place]) + 1) % 4]


def with_weights(study: Study) -> Study:
    """Writes weights from a seed for every model with our layer, as pretraining and fine-tuning do."""
    layout = Layout(study)
    for place, name in enumerate(MODELS):
        torch.manual_seed(place)
        config = study.models[name]
        model = build_model(config, VOCAB_SIZE, complement=COMPLEMENT)
        save_weights(layout.pretrained(name, 0), model, config, digest=stage_digest(study, "pretrain", model=name, seed=0))
        digest = stage_digest(study, "finetune", dataset="composition", model=name, seed=1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        save_weights(layout.finetuned("composition", name, 1), model, config, digest=digest)
    return study


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return with_weights(make_study(models=MODELS))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    drawn = random_bases(400, 5)
    plant(drawn, 100, 300, 40)
    bases = drawn.tobytes().decode()
    path = tmp_path / "stretch.fa"
    path.write_text(f">first\n{bases[:300]}{bases[300:340].lower()}{bases[340:]}\n>second\nACGT{'N' * 50}\n", encoding="ascii")
    return path


@pytest.fixture
def run(study: Study, study_file: Callable[[Study], Path], fasta: Path, tmp_path: Path) -> Callable[..., int]:
    """Returns a function that runs the command with other options laid over the usual ones; None leaves one out."""
    path = study_file(study)

    def command(**changes: Any) -> int:
        options = {"model": "slots", "fasta": fasta, "out": tmp_path / "out"} | changes
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        return main(["inspect", "columns", str(path), *words])

    return command


def rows(path: Path) -> list[dict[str, str]]:
    heading, *lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(heading.split("\t"), line.split("\t"), strict=True)) for line in lines]


@pytest.mark.parametrize("name", MODELS)
def test_planted_repeats_are_found_and_little_else(study: Study, name: str) -> None:
    bases, rng, wanted = random_bases(3000, 1), np.random.default_rng(2), set()
    for first, second in rng.permutation(np.arange(100, 2900, 40))[:40].reshape(-1, 2):
        first, second = min(first, second), max(first, second)
        plant(bases, first, second, COPY_BP)
        wanted |= {(first + place, second + place) for place in range(KERNEL - 1, COPY_BP)}
    model, layer = load_layer(study, Subject(name, seed=0))
    columns = columns_of(model, layer, bases).columns
    repeats = find_repeats(columns, *nearest_earlier(columns))
    found = {(repeat.first + place, repeat.second + place) for repeat in repeats for place in range(repeat.length)}
    assert len(found & wanted) / len(found) > 0.95
    assert len(found & wanted) / len(wanted) > 0.95


def test_the_same_motif_is_alike_in_two_places_and_other_bases_are_not(study: Study) -> None:
    bases = random_bases(2000, 3)
    bases[1500:1512] = bases[200:212]
    model, layer = load_layer(study, Subject("slots", seed=0))
    columns = columns_of(model, layer, bases).columns.reshape(2000, -1)
    unit = columns / np.linalg.norm(columns, axis=1, keepdims=True)
    others = unit @ unit[211]
    assert others[1511] == pytest.approx(1.0, abs=1e-5)
    assert np.delete(others, [211, 1511]).mean() < 0.5


def test_columns_lie_the_further_apart_the_more_bases_differ(study: Study) -> None:
    model, layer = load_layer(study, Subject("slots", seed=0))
    kmers = np.lib.stride_tricks.sliding_window_view(random_bases(500, 4), KERNEL)
    distances = kmer_distances(lambda sequences: last_columns(model, layer, sequences), kmers)
    assert distances.spearman > 0.5
    means = [mean for _, _, mean, _ in distances.by_hamming()]
    assert means[0] < means[2] < means[-1]


def test_distances_of_one_hot_kmers_are_the_share_of_bases_that_differ() -> None:
    found = kmer_distances(lambda kmers: (kmers[..., None] == LETTERS).astype(float), random_bases(60, 0).reshape(10, 6))
    np.testing.assert_allclose(found.distance, found.hamming / 6, atol=1e-12)
    assert [(value, pairs) for value, pairs, _, _ in found.by_hamming()] == [(value, 256) for value in range(1, 7)]
    # Equal distances are not always equal to the last bit.
    assert found.spearman > 0.99


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_nearest_earlier_columns_are_those_of_all_pairs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genomem.analysis.columns._ROWS", chunk)
    columns = np.random.default_rng(0).standard_normal((30, 2, 3))
    nearest, cosine = nearest_earlier(columns)
    flat = columns.reshape(30, 6)
    for place in range(1, 30):
        cosines = [flat[place] @ other / np.linalg.norm(flat[place]) / np.linalg.norm(other) for other in flat[:place]]
        assert (nearest[place], cosine[place]) == (np.argmax(cosines), pytest.approx(max(cosines)))
    assert (nearest[0], cosine[0]) == (-1, 0)


def test_a_run_ends_with_the_first_column_that_differs() -> None:
    columns = np.random.default_rng(1).standard_normal((60, 8))
    columns[30:42], columns[50:55] = columns[5:17], columns[2:7]
    found = find_repeats(columns, *nearest_earlier(columns))
    assert [(repeat.first, repeat.second, repeat.length) for repeat in found] == [(5, 30, 12)]
    assert found[0].cosine == pytest.approx(1.0)
    shorter = find_repeats(columns, *nearest_earlier(columns), least_length=3)
    assert [(repeat.first, repeat.second, repeat.length) for repeat in shorter] == [(5, 30, 12), (2, 50, 5)]


def test_the_files_hold_what_the_layer_computes(run: Callable[..., int], study: Study, fasta: Path, tmp_path: Path) -> None:
    assert run(start=20, end=340, layer=2) == EXIT_OK
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["columns.npz", "columns.tsv", "kmers.tsv", "repeats.tsv", "slots.tsv"]
    model, layer = load_layer(study, Subject("slots", seed=0, layer=2))
    stretch = read_stretch(fasta, None, 20, 340)
    expected = columns_of(model, layer, stretch.bases)
    with np.load(folder / "columns.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["columns"], expected.columns)
        np.testing.assert_array_equal(arrays["shares"], expected.shares)
        assert arrays["slots"].shape == (2, 3, 16)
        np.testing.assert_allclose(np.einsum("hmk,hm->hk", arrays["slots"], arrays["masses"]), expected.columns.sum(0), atol=1e-3)
        assert arrays["start"] == 20
    slots = rows(folder / "slots.tsv")
    assert len(slots) == 2 * 3
    assert sum(float(row["mass"]) for row in slots) == pytest.approx(2 * 320, rel=1e-4)
    assert sum(float(row["mass_of_soft_masked_bases"]) for row in slots) == pytest.approx(2 * 40, rel=1e-4)


def test_positions_are_those_of_the_record(run: Callable[..., int], fasta: Path, tmp_path: Path) -> None:
    """Bases 100 to 139 stand again from 300 on, in lower case."""
    assert run(start=50) == EXIT_OK
    table = rows(tmp_path / "out" / "columns.tsv")
    assert (table[0]["position"], table[0]["nearest"]) == ("50", "")
    assert (table[270]["position"], table[270]["nearest"]) == ("320", "120")
    assert "".join(row["base"] for row in table) == fasta.read_text().splitlines()[1][50:]
    (repeat,) = rows(tmp_path / "out" / "repeats.tsv")
    assert (int(repeat["first"]), int(repeat["second"])) == (100 + KERNEL - 1, 300 + KERNEL - 1)
    assert int(repeat["columns"]) == 40 - KERNEL + 1


def test_the_summary_shows_distances_by_the_bases_that_differ(run: Callable[..., int], fasta: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(model="both_ways") == EXIT_OK
    first, repeats, correlation, _, *table, last = capsys.readouterr().out.splitlines()
    assert first == f"{fasta}: first:0-400: 400 columns of 32 numbers"
    assert repeats == "repeats: 1; the longest 32 columns"
    assert float(correlation.split()[-1]) > 0.5
    assert [line.split()[:2] for line in table] == [[str(value), "256"] for value in range(1, KERNEL + 1)]
    assert last.startswith("files: ")


def test_fine_tuned_weights_are_others(run: Callable[..., int], tmp_path: Path) -> None:
    assert run() == EXIT_OK
    assert run(dataset="composition", seed=1, out=tmp_path / "tuned") == EXIT_OK
    one, other = (np.load(tmp_path / name / "columns.npz")["columns"] for name in ("out", "tuned"))
    assert one.shape == other.shape
    assert not np.allclose(one, other, atol=0.1)


def test_the_columns_are_those_of_a_model_that_reads_the_whole_stretch(study: Study) -> None:
    """The layer sees the hidden states that the layers under it make, not embeddings."""
    model, layer = load_layer(study, Subject("slots", seed=0, layer=2))
    assert isinstance(layer, SequenceDimension)
    one, other = random_bases(100, 6), random_bases(100, 7)
    other[50:] = one[50:]
    near, far = (columns_of(model, layer, bases).columns[-1] for bases in (one, other))
    assert not np.allclose(near, far)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fasta": "none.fa"}, "none.fa: no such file"),
        ({"record": "third"}, "stretch.fa: has no record 'third'; it has first, second"),
        ({"start": 390, "end": 500}, "record 'first' has 400 bases, and no bases 390 to 500; mend --start or --end"),
        ({"start": -1}, "no bases -1 to 400"),
        ({"record": "second"}, f"second:0-54: holds no {KERNEL} bases in a row without N; choose another stretch"),
        ({"end": 4}, f"first:0-4: holds no {KERNEL} bases in a row without N"),
        ({"model": "titans"}, "models.titans has no sequence_dimension layer; models that have one: slots, both_ways"),
        ({"model": "none"}, "no model 'none'; it has titans"),
        ({"model": "scratch"}, "models.scratch has `pretrain: false`"),
        ({"layer": 3}, "--layer 3: models.slots has 2 sequence_dimension layers, counted from 1"),
        ({"seed": 7}, "no seed 7; it has 0"),
        ({"dataset": "none"}, "no dataset 'none'; it has composition"),
        ({"dataset": "composition", "seed": 0}, "seed-0/model.safetensors: no such file"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(run: Callable[..., int], changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture) -> None:
    assert run(**changes) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_too_long_a_stretch_is_refused(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(column_files, "LONGEST_BP", 399)
    assert run() == EXIT_USER_ERROR
    assert "first:0-400: 400 bases are over 399; choose some with --start and --end" in capsys.readouterr().err


def test_a_file_where_the_folder_should_go_is_refused(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").touch()
    assert run() == EXIT_USER_ERROR
    assert "out: is a file" in capsys.readouterr().err


def test_lower_case_kmers_count_and_those_with_n_do_not() -> None:
    stretch = Stretch(Path("x.fa"), "x", 0, np.frombuffer(b"acGTNACGN", np.uint8))
    assert [kmer.tobytes() for kmer in stretch.kmers(3)] == [b"ACG", b"CGT", b"ACG"]
