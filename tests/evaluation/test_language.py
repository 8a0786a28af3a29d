"""The final evaluation of a language model: means over known bits and seeds, classes of positions, margins and intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genomem.config import Study, stage_digest
from genomem.data import tokenizer
from genomem.data.genome import Genome
from genomem.errors import GenomemError
from genomem.evaluation import blocks
from genomem.evaluation import language as module
from genomem.evaluation.language import evaluate_language
from genomem.evaluation.markov import REPEAT, SCORED, SURE, evaluate_markov
from genomem.files import write_json
from genomem.layout import Layout
from genomem.models import build_model, kmer_settings
from genomem.ops.kmer_memory import recurrent_kmer_memory
from genomem.record import RunRecord
from genomem.training.checkpoint import save_weights
from genomem.training.scoring import score_chromosome


class Known(nn.Module):
    """Gives every A the same number of bits and the other bases an equal share of the rest."""

    def __init__(self, bits_of_a: float) -> None:
        super().__init__()
        p = 2**-bits_of_a
        self.logits = torch.zeros(tokenizer.VOCAB_SIZE)
        self.logits[tokenizer.A : tokenizer.T + 1] = torch.tensor([p, *[(1 - p) / 3] * 3]).log()

    def forward(self, tokens: Tensor, *, counts: Tensor | None = None) -> tuple[Tensor, None]:
        self.counts = counts
        return self.logits.expand(*tokens.shape, -1), None


def use_model(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    monkeypatch.setattr(module, "build_model", lambda config, vocab_size, **ids: model)
    monkeypatch.setattr(module, "load_weights", lambda folder, model, **origin: None)


def write_markov(study: Study, **bits: float) -> dict[str, np.ndarray]:
    """Writes what the Markov evaluation would: flags of each test base, and models with the given bits; returns the flags."""
    layout, flags = Layout(study), {}
    for name in study.genomes:
        genome = Genome(layout.genome_store(name))
        for chrom in genome.chromosomes("test"):
            bases = genome.bases(chrom)
            scored = np.isin(tokenizer.encode(bases), range(tokenizer.A, tokenizer.T + 1))
            scored[0] = False
            sure = np.arange(len(bases)) % 5 == 0
            marks = SCORED * scored + REPEAT * (scored & tokenizer.is_soft_masked(bases)) + SURE * (scored & sure)
            flags[f"{name}:{chrom}"] = marks.astype(np.uint8)
    layout.markov_scores.parent.mkdir(parents=True, exist_ok=True)
    np.savez(layout.markov_scores, **flags)
    models = [
        {"name": key, "kind": "backoff" if key == "backoff" else "plain", "bits": {"all": value, "unmasked": value + 1}}
        for key, value in bits.items()
    ]
    RunRecord("evaluate_markov", study.name, stage_digest(study, "evaluate_markov"), {}, {"models": models}).write(layout.markov)
    return flags


def read_result(study: Study) -> dict:
    return RunRecord.read(Layout(study).language("titans")).result


def test_a_uniform_model_needs_two_bits_everywhere(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, Known(2.0))
    flags = np.concatenate(list(write_markov(tiny_study, order0=1.9, order1=1.7, backoff=0.1).values()))
    evaluate_language(tiny_study, "titans")
    result = read_result(tiny_study)
    assert result["bits"] == pytest.approx(dict.fromkeys(("all", "unmasked", "repeat", "sure", "unsure"), 2.0))
    assert result["chromosomes"] == pytest.approx({"alpha:chr4": 2.0, "beta:chr4": 2.0})
    assert result["interval"] == {"all": pytest.approx([2, 2]), "unmasked": pytest.approx([2, 2])}
    assert result["positions"] == {
        "all": (flags & SCORED > 0).sum(),
        "unmasked": ((flags & SCORED > 0) & (flags & REPEAT == 0)).sum(),
        "repeat": (flags & REPEAT > 0).sum(),
        "sure": (flags & SURE > 0).sum(),
        "unsure": ((flags & SCORED > 0) & (flags & SURE == 0)).sum(),
    }
    assert result["positions"]["all"] == 2 * (350 - 5 - 1)
    assert result["context_bp"] == 32


@pytest.mark.parametrize("best", [2.5, 1.5])
def test_the_margin_is_positive_where_the_model_lies_under_the_best_plain_markov_model(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch, best: float
) -> None:
    use_model(monkeypatch, Known(2.0))
    write_markov(tiny_study, order0=best + 0.2, order1=best, backoff=0.1)
    evaluate_language(tiny_study, "titans")
    assert read_result(tiny_study)["margin"] == pytest.approx({"all": best - 2.0, "unmasked": best + 1 - 2.0})


def test_means_over_classes_and_chromosomes(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, Known(0.5))
    flags = write_markov(tiny_study, order0=2.0)
    evaluate_language(tiny_study, "titans")
    result = read_result(tiny_study)
    other = -math.log2((1 - 2**-0.5) / 3)
    costs = {}
    for key in flags:
        genome, chrom = key.split(":")
        bases = Genome(Layout(tiny_study).genome_store(genome)).bases(chrom)
        costs[key] = np.where((bases == ord("A")) | (bases == ord("a")), 0.5, other)
    for key, marks in flags.items():
        assert result["chromosomes"][key] == pytest.approx(costs[key][marks & SCORED > 0].mean(), rel=1e-6)
    marks, cost = np.concatenate(list(flags.values())), np.concatenate(list(costs.values()))
    assert result["bits"]["repeat"] == pytest.approx(cost[marks & REPEAT > 0].mean(), rel=1e-6)
    assert result["bits"]["sure"] == pytest.approx(cost[marks & SURE > 0].mean(), rel=1e-6)
    assert result["bits"]["all"] == pytest.approx(cost[marks & SCORED > 0].mean(), rel=1e-6)


def use_seeds(monkeypatch: pytest.MonkeyPatch, bits_of_a: dict[int, float]) -> None:
    """Makes the weights of each seed give every A its own number of bits."""
    model = Known(2.0)

    def load_weights(folder: Path, loaded: nn.Module, **origin: str) -> None:
        loaded.logits = Known(bits_of_a[int(folder.name.removeprefix("seed-"))]).logits

    monkeypatch.setattr(module, "build_model", lambda config, vocab_size, **ids: model)
    monkeypatch.setattr(module, "load_weights", load_weights)


def test_every_seed_is_scored_and_the_bits_are_means_over_seeds(make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {0: 0.5, 3: 2.0, 4: 1.0}
    study = make_study(pretrain={"seeds": list(costs)})
    write_markov(study, order0=1.9)
    alone = {}
    for seed in costs:
        use_seeds(monkeypatch, costs)
        evaluate_language(study.model_copy(update={"pretrain": study.pretrain.model_copy(update={"seeds": (seed,)})}), "titans")
        alone[seed] = read_result(study)
        assert alone[seed]["seeds"] == [{"seed": seed, "bits": alone[seed]["bits"], "chromosomes": alone[seed]["chromosomes"]}]
        assert set(alone[seed]["sd"].values()) == {None}
    evaluate_language(study, "titans")
    together = read_result(study)
    assert together["seeds"] == [{"seed": seed, "bits": one["bits"], "chromosomes": one["chromosomes"]} for seed, one in alone.items()]
    for label in ("all", "unmasked", "repeat", "sure", "unsure"):
        values = [one["bits"][label] for one in alone.values()]
        assert together["bits"][label] == pytest.approx(np.mean(values))
        assert together["sd"][label] == pytest.approx(np.std(values, ddof=1))
    assert together["chromosomes"] == pytest.approx(
        {chrom: np.mean([one["chromosomes"][chrom] for one in alone.values()]) for chrom in ("alpha:chr4", "beta:chr4")}
    )
    assert together["margin"]["all"] == pytest.approx(1.9 - together["bits"]["all"])
    assert together["positions"] == alone[0]["positions"]
    low, high = together["interval"]["all"]
    assert high - low > max(one["interval"]["all"][1] - one["interval"]["all"][0] for one in alone.values())


def test_the_sums_over_blocks_are_written_beside_the_record(make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(pretrain={"seeds": [0, 1]})
    monkeypatch.setattr(blocks, "BLOCK_BP", 100)
    use_seeds(monkeypatch, {0: 2.0, 1: 0.5})
    flags = write_markov(study, order0=1.9)
    evaluate_language(study, "titans")
    with np.load(Layout(study).language_blocks("titans"), allow_pickle=False) as arrays:
        found = dict(arrays)
    assert set(found) == {f"{kind}_{label}" for kind in ("bits", "positions") for label in ("all", "unmasked", "repeat", "sure", "unsure")}
    scored = [np.add.reduceat(marks & SCORED > 0, range(0, len(marks), 100), dtype=int) for marks in flags.values()]
    assert [len(counts) for counts in scored] == [4, 4]
    assert found["positions_all"].tolist() == np.concatenate(scored).tolist()
    assert found["positions_all"].dtype == np.int64
    assert found["bits_all"].dtype == np.float64
    assert found["bits_all"][0] == pytest.approx(2.0 * found["positions_all"])
    result = read_result(study)
    for place, row in enumerate(result["seeds"]):
        for label, bits in row["bits"].items():
            assert bits == pytest.approx(found[f"bits_{label}"][place].sum() / found[f"positions_{label}"].sum())


def test_markov_models_of_another_version_of_the_study(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, Known(2.0))
    write_markov(tiny_study, order0=1.9)
    other = tiny_study.model_copy(update={"evaluate": tiny_study.evaluate.model_copy(update={"markov_orders": (0, 3)})})
    with pytest.raises(GenomemError, match=r"markov\.json: made for another version of the study; run `genomem evaluate markov` again"):
        evaluate_language(other, "titans")


def test_a_bidirectional_model_has_no_bits_per_base(make_study: Callable[..., Study]) -> None:
    study = make_study(models={"both_ways": {"dim": 8, "layers": ["causal_conv"], "bidirectional": True}})
    with pytest.raises(GenomemError, match=r"models\.both_ways: is bidirectional, .* so it has no bits per base"):
        evaluate_language(study, "both_ways")
    assert not Layout(study).language("both_ways").exists()


def test_a_real_model_beside_real_markov_models(tiny_study: Study) -> None:
    layout = Layout(tiny_study)
    torch.manual_seed(0)
    model = build_model(tiny_study.models["titans"], tokenizer.VOCAB_SIZE)
    save_weights(
        layout.pretrained("titans", 0),
        model,
        tiny_study.models["titans"],
        digest=stage_digest(tiny_study, "pretrain", model="titans", seed=0),
    )
    evaluate_markov(tiny_study)
    evaluate_language(tiny_study, "titans")
    record = RunRecord.read(layout.language("titans"))
    assert record.digest == stage_digest(tiny_study, "evaluate_language", model="titans")
    assert record.keys == {"model": "titans"}
    genomes = {name: Genome(layout.genome_store(name)) for name in tiny_study.genomes}
    assert record.data == {name: genome.sequence_sha256 for name, genome in genomes.items()}
    bits = [score_chromosome(model, g.bases("chr4"), context_bp=32, batch_size=5, device=torch.device("cpu")) for g in genomes.values()]
    assert record.result["bits"]["all"] == pytest.approx(np.nanmean(np.concatenate(bits)), rel=1e-5)
    low, high = record.result["interval"]["all"]
    assert low <= record.result["bits"]["all"] <= high
    assert record.result["parameters"] == sum(p.numel() for p in model.parameters())
    markov = RunRecord.read(layout.markov).result
    assert record.result["positions"] == markov["positions"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short"], ids=["missing", "empty", "damaged"])
def test_without_markov_scores(content: bytes | None, tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, Known(2.0))
    if content is not None:
        write_markov(tiny_study, first=2.0)
        Layout(tiny_study).markov_scores.write_bytes(content)
    with pytest.raises(GenomemError, match=r"markov\.npz: missing or damaged; run `genomem evaluate markov` first"):
        evaluate_language(tiny_study, "titans")


@pytest.mark.parametrize("change", ["shifted", "shorter", "other chromosome"])
def test_markov_scores_of_other_bases(tiny_study: Study, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    use_model(monkeypatch, Known(2.0))
    flags = write_markov(tiny_study, order0=2.0)
    marks = flags.pop("alpha:chr4")
    if change == "other chromosome":
        flags["alpha:chr5"] = marks
    else:
        flags["alpha:chr4"] = np.roll(marks, 3) if change == "shifted" else marks[:-1]
    np.savez(Layout(tiny_study).markov_scores, **flags)
    with pytest.raises(GenomemError, match=r"markov\.npz: .* run `genomem evaluate markov` again"):
        evaluate_language(tiny_study, "titans")


def test_a_model_that_is_not_finite_is_named_and_not_the_markov_scores(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, Known(math.nan))
    write_markov(tiny_study, order0=2.0)
    with pytest.raises(GenomemError, match="model titans gives probabilities that are not finite on alpha:chr4") as raised:
        evaluate_language(tiny_study, "titans")
    assert str(raised.value).startswith(f"{Layout(tiny_study).pretrained('titans', 0)}: ")
    assert "markov" not in str(raised.value)


def test_without_pretrained_weights(tiny_study: Study) -> None:
    write_markov(tiny_study, order0=2.0)
    with pytest.raises(GenomemError, match="run the training stage first"):
        evaluate_language(tiny_study, "titans")


def test_a_record_without_test_positions_of_a_chromosome(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Layout(tiny_study).genome_store("alpha")
    manifest = json.loads((store / "manifest.json").read_text())
    place = next(row for row in manifest["chromosomes"] if row["name"] == "chr4")
    bases = bytearray((store / "bases.u8").read_bytes())
    bases[place["offset"] :] = b"N" * place["length"]
    (store / "bases.u8").write_bytes(bases)
    write_json(store / "manifest.json", manifest)
    use_model(monkeypatch, Known(2.0))
    write_markov(tiny_study, order0=2.0)
    evaluate_language(tiny_study, "titans")
    assert read_result(tiny_study)["chromosomes"] == {"beta:chr4": pytest.approx(2.0)}


def test_a_kmer_memory_has_read_all_but_the_test_chromosomes_and_its_size_is_recorded(
    make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = {"kmer_memory": {"orders": [2, 13], "slot_bits": 15}}
    study = make_study(models={"titans": orders})
    write_markov(study, first=2.0)
    model = Known(2.0)
    use_model(monkeypatch, model)
    learnt: list[np.ndarray] = []
    build = module.learnt_tables
    monkeypatch.setattr(module, "learnt_tables", lambda settings, known: build(settings, learnt.extend(known) or learnt))
    evaluate_language(study, "titans")
    genomes = [Genome(Layout(study).genome_store(name)) for name in study.genomes]
    expected = [genome.bases(chrom) for names in (("chr1", "chr2"), ("chr3",)) for genome in genomes for chrom in names]
    assert [bases.tobytes() for bases in learnt] == [bases.tobytes() for bases in expected]
    found = RunRecord.read(Layout(study).language("titans")).result["kmer_memory"]
    assert found["start"] == "genome"
    assert found["state_bytes"] > 4**2 * 8 + 2**15 * 12
    # Both strands of four thousand bases fill every context of two bases, and a quarter of 2^15 places.
    assert [row["order"] for row in found["orders"]] == [2, 13]
    assert found["orders"][0]["load"] == 1
    assert 0.1 < found["orders"][1]["load"] < 0.4
    assert found["orders"][1]["dropped"] == 0
    # The last batch of the last chromosome was scored with what the whole genome tells about it.
    tables = build(kmer_settings(study.models["titans"].kmer_memory), expected)
    for name in study.genomes:
        counts, _ = recurrent_kmer_memory(tables, tokenizer.base_codes(Genome(Layout(study).genome_store(name)).bases("chr4")))
    assert model.counts is not None
    context = study.evaluate.context_bp
    first = (350 - 1 - context + context // 2 - 1) // (context // 2) * (context // 2)
    np.testing.assert_array_equal(model.counts[-1, : 350 - first - 1].numpy(), counts[first + 1 :])
