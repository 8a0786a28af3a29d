"""The study file: what it refuses, what it keeps, and which results a change of it touches."""

from __future__ import annotations

import copy
import inspect
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from genomem.config import MIXER_OPTIONS, STAGE_VERSIONS, STAGES, Study, dump_study, load_study, merge, parse_study, stage_digest
from genomem.errors import GenomemError
from genomem.layers import MIXERS

CONFIGS = sorted((Path(__file__).parents[1] / "config").glob("*.yaml"))

FULL: dict[str, Any] = {
    "name": "full",
    "seeds": [0, 1],
    "genomes": {
        "yeast": {"sources": [{"url": "https://example.org/yeast.fa.gz"}], "validation": ["IV"], "test": ["V"]},
        "sim": {"simulate": {"seed": 1}, "validation": ["chr1"], "test": ["chr2"]},
    },
    "benchmarks": {
        "enhancers": {"sources": [{"url": "/data/enhancers.zip", "sha256": "0" * 64}]},
        "promoters": {"simulate": {"genome": "sim", "task": "promoters"}},
    },
    "models": {
        "titans": {"layers": ["causal_conv", {"mixer": "titans_lmm", "heads": 2}]},
        "attention": {"layers": ["attention"]},
        "small_cnn": {"architecture": "cnn"},
    },
}


BOTH_WAYS = {"models": {"both_ways": {"layers": ["causal_conv"], "bidirectional": True}}}


def edited(*path: Any, value: Any) -> dict[str, Any]:
    """Returns a deep copy of the full study with the value at `path` set."""
    tree = yaml.safe_load(yaml.safe_dump(FULL))
    *folders, last = path
    node = tree
    for key in folders:
        node = node[key] if isinstance(node, list) else node.setdefault(key, {})
    node[last] = value
    return tree


def refusal(tree: dict[str, Any]) -> str:
    """Returns the error of a study that the schema refuses."""
    with pytest.raises(GenomemError) as error:
        parse_study(tree, origin="study.yaml")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("study.yaml: ")
    return message.removeprefix("study.yaml: ")


@pytest.mark.parametrize(
    ("path", "suggestion", "allowed"),
    [
        (("modles",), "models", "benchmarks, description, evaluate"),
        (("genomes", "yeast", "tests"), "test", "exclude, file, sequence_sha256"),
        (("genomes", "yeast", "sources", 0, "uri"), "url", "sha256, url"),
        (("genomes", "sim", "simulate", "chromosome"), "chromosomes", "chromosome_bp, chromosomes, seed"),
        (("benchmarks", "enhancers", "strand"), "stranded", "directory, max_length_bp, metric"),
        (("benchmarks", "enhancers", "sources", 0, "sha"), "sha256", "sha256, url"),
        (("benchmarks", "promoters", "simulate", "length"), "length_bp", "genome, length_bp, task, test, train"),
        (("models", "titans", "dims"), "dim", "architecture, bidirectional, dim, dropout, finetune, kmer_memory"),
        (("models", "small_cnn", "pretrained"), "pretrain", "architecture, pretrain"),
        (("models", "titans", "layers", 1, "head"), "heads", "chunk_size, conv_kernel, depth, forget, gradient_block, heads"),
        (("pretrain", "step"), "steps", "accumulation, batch_size, betas"),
        (("finetune", "epoch"), "epochs", "batch_size, dropout, epochs"),
        (("evaluate", "bootstrap_sample"), "bootstrap_samples", "backoff_orders, baseline, batch_size"),
        (("evaluate", "recall", "repeats_bp"), "repeat_bp", "gaps_bp, lead_bp, repeat_bp, samples, seed"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_unknown_key_names_path_suggestion_and_allowed_keys(path: tuple, suggestion: str, allowed: str) -> None:
    message = refusal(edited(*path, value=1))
    assert message.startswith(f"{'.'.join(map(str, path))}: unknown key; did you mean '{suggestion}'? allowed keys: ")
    assert allowed in message


@pytest.mark.parametrize("name", ["cnn", "sequence_model", "layers", "models"])
def test_a_model_named_like_a_part_of_the_schema_is_explained_as_well(name: str) -> None:
    tree = edited("models", name, value={"layers": ["attention"], "dims": 8})
    assert refusal(tree).startswith(
        f"models.{name}.dims: unknown key; did you mean 'dim'? allowed keys: architecture, bidirectional, dim, "
    )


def test_a_genome_named_like_a_part_of_the_schema_is_explained_as_well() -> None:
    tree = edited("genomes", "simulate", value={"simulate": {"seed": 1, "chromosome": 2}})
    assert refusal(tree).startswith("genomes.simulate.simulate.chromosome: unknown key; did you mean 'chromosomes'?")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("pretrain", "steps"), "many", ["pretrain.steps", "valid integer", "'many'"]),
        (("pretrain", "steps"), 0, ["pretrain.steps", "greater than or equal to 1", "0"]),
        (("pretrain", "learning_rate"), float("nan"), ["pretrain.learning_rate"]),
        (("pretrain", "learning_rate"), float("inf"), ["pretrain.learning_rate"]),
        (("pretrain", "betas"), [0.9, 1.0], ["pretrain.betas.1", "less than 1"]),
        (("pretrain", "mask_fraction"), 1.0, ["pretrain.mask_fraction", "less than 1"]),
        (("pretrain", "mask_fraction"), 0, ["pretrain.mask_fraction", "greater than 0"]),
        (("models", "small_cnn", "bidirectional"), True, ["models.small_cnn.bidirectional", "unknown key"]),
        (("pretrain", "precision"), "float16", ["pretrain.precision", "float32", "bfloat16"]),
        (("pretrain",), 3, ["pretrain"]),
        (("pretrain", "seed"), 3, ["pretrain.seed: unknown key", "did you mean 'seeds'?"]),
        (("pretrain", "seeds"), [], ["pretrain.seeds", "at least 1"]),
        (("pretrain", "seeds"), [-1], ["pretrain.seeds.0", "greater than or equal to 0"]),
        (("pretrain", "seeds"), [2, 0, 2], ["pretrain.seeds: a seed stands twice"]),
        (("genomes",), [], ["genomes"]),
        (("genomes", "sim", "validation"), "chr1", ["genomes.sim.validation"]),
        (("genomes", "sim", "simulate", "seed"), -1, ["genomes.sim.simulate.seed"]),
        (("genomes", "yeast", "sources", 0), 5, ["genomes.yeast.sources.0"]),
        (("genomes", "a b"), {"file": "x.fa"}, ["genomes", "a b", "pattern"]),
        (("genomes", "yeast", "file"), "/data/yeast.fa", ["genomes.yeast.file", "inside `resources`"]),
        (("benchmarks", "enhancers", "directory"), "../enhancers", ["benchmarks.enhancers.directory", "inside `resources`"]),
        (("models", "titans", "layers"), [], ["models.titans.layers", "at least 1"]),
        (("models", "titans", "layers"), 3, ["models.titans.layers"]),
        (("models", "titans", "layers", 1, "heads"), "four", ["models.titans.layers.1.heads", "'four'"]),
        (("models", "small_cnn", "pretrain"), True, ["models.small_cnn.pretrain"]),
        (("evaluate", "recall"), {"gaps_bp": [0, 100, 100]}, ["evaluate.recall.gaps_bp: each gap must be longer than the one before"]),
        (("evaluate", "recall"), {"gaps_bp": []}, ["evaluate.recall.gaps_bp", "at least 1"]),
        (("evaluate", "recall"), {"repeat_bp": 63}, ["evaluate.recall.repeat_bp", "greater than or equal to 64"]),
        (("evaluate", "recall"), {"samples": 1}, ["evaluate.recall.samples", "greater than or equal to 2"]),
        (("seeds",), [1, 1], ["seeds", "twice"]),
        (("seeds",), [], ["seeds"]),
        (("name",), "a/b", ["name", "pattern", "'a/b'"]),
    ],
    ids=str,
)
def test_wrong_value_names_path_and_value(path: tuple, value: Any, words: list[str]) -> None:
    message = refusal(edited(*path, value=value))
    assert message.startswith(words[0])
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"orders": [12, 11]}, "orders: each must be larger than the one before"),
        ({"tolerant_orders": [13]}, "tolerant_orders: each must be one of `orders`, once"),
        ({"orders": [11, 24], "slot_bits": 20}, "slot_bits: order 24 needs at least 21"),
        ({"orders": [13, 14], "slot_bits": 28}, "slot_bits: the lowest order above 12 has no more than 2 to the power of 26 contexts"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_kmer_memory_that_cannot_be(changes: dict, words: str) -> None:
    assert refusal(edited("models", "titans", "kmer_memory", value=changes)).startswith(f"models.titans.kmer_memory: {words}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bidirectional": True, "kmer_memory": {}}, "kmer_memory: it knows what came before a base"),
        ({"pretrain": False, "kmer_memory": {}}, "kmer_memory: a model with `pretrain: false` is a classifier"),
        ({"pretrain": False, "finetune": False}, "finetune: with `pretrain: false` nothing would be trained"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_model_that_contradicts_itself(changes: dict, words: str) -> None:
    assert refusal(edited("models", "new", value={"layers": ["causal_conv"]} | changes)).startswith(f"models.new: {words}")


def test_benchmarks_without_a_model_to_fine_tune() -> None:
    tree = copy.deepcopy(FULL) | {"models": {"alone": {"layers": ["causal_conv"], "finetune": False}}, "evaluate": {}}
    assert "benchmarks: every model has `finetune: false`" in refusal(tree)


def test_block_sparse_attention_is_not_scored_at_distances_that_it_was_not_trained_on() -> None:
    tree = edited("models", "new", value={"layers": ["block_sparse_attention"]})
    tree["evaluate"] = tree.get("evaluate", {}) | {"context_bp": 4 * tree.get("pretrain", {}).get("context_bp", 1024)}
    assert "the attention of models." in refusal(tree)


def test_unknown_mixer_lists_the_known() -> None:
    message = refusal(edited("models", "titans", "layers", 1, value="gru"))
    assert message.startswith("models.titans.layers.1.mixer: unknown mixer 'gru'; known: ")
    assert all(name in message for name in MIXERS)


def test_number_as_key() -> None:
    assert refusal(FULL | {1: 2}).startswith("1: ")


def test_layer_without_mixer() -> None:
    assert "models.titans.layers.1: needs the key 'mixer'" in refusal(edited("models", "titans", "layers", 1, value={"heads": 2}))


def test_unknown_architecture_lists_the_known() -> None:
    message = refusal(edited("models", "titans", "architecture", value="rnn"))
    assert message.startswith("models.titans.architecture: unknown architecture 'rnn'; known: 'sequence_model', 'cnn'")


@pytest.mark.parametrize("key", ["name", "genomes", "models"])
def test_missing_key(key: str) -> None:
    assert refusal({k: v for k, v in FULL.items() if k != key}) == f"{key}: this key is required"


def test_further_problems_are_counted() -> None:
    assert refusal(merge(FULL, {"pretrain": {"steps": 0, "batch_size": 0, "context_bp": 0}})).endswith("(and 2 more)")


@pytest.mark.parametrize(
    "roles", [{"validation": ["IV", "IV"]}, {"validation": ["V"]}, {"exclude": ["V"]}], ids=["one role", "two roles", "excluded"]
)
def test_chromosome_in_two_roles(roles: dict[str, list[str]]) -> None:
    message = refusal(merge(FULL, {"genomes": {"yeast": roles}}))
    assert message.startswith("genomes.yeast: chromosome ")
    assert "more than one" in message


@pytest.mark.parametrize("role", ["validation", "test"])
def test_pretraining_needs_held_out_chromosomes(role: str) -> None:
    nothing = {"genomes": {"yeast": {role: []}, "sim": {role: []}}, "benchmarks": {"promoters": {"simulate": None, "directory": "x"}}}
    assert f"no chromosome is held out for {role}" in refusal(merge(FULL, nothing))
    scratch = {"models": {"titans": {"pretrain": False}, "attention": {"pretrain": False}}}
    assert parse_study(merge(merge(FULL, nothing), scratch), "study.yaml").pretrained_models == []


def test_the_baseline_is_a_language_model_of_the_study() -> None:
    study = merge(merge(FULL, BOTH_WAYS), {"evaluate": {"baseline": "attention"}})
    assert parse_study(study, "study.yaml").compared_models == ["titans"]
    assert parse_study(merge(FULL, BOTH_WAYS), "study.yaml").compared_models == []
    for name in ("both_ways", "small_cnn", "unknown"):
        message = refusal(merge(study, {"evaluate": {"baseline": name}}))
        assert message == f"evaluate.baseline: '{name}' is not a language model of this study; it has ['titans', 'attention']"


def test_bidirectional_models_are_pretrained_and_have_no_bits_per_base() -> None:
    study = parse_study(merge(FULL, BOTH_WAYS), "study.yaml")
    assert study.pretrained_models == ["titans", "attention", "both_ways"]
    assert (study.masked_models, study.language_models) == (["both_ways"], ["titans", "attention"])


def test_a_study_of_bidirectional_models_needs_no_test_chromosome() -> None:
    models = {"models": {"titans": {"pretrain": False}, "attention": {"pretrain": False}}}
    nothing = {"genomes": {"yeast": {"test": []}, "sim": {"test": []}}, "benchmarks": {"promoters": {"simulate": None, "directory": "x"}}}
    assert parse_study(merge(merge(merge(FULL, BOTH_WAYS), models), nothing), "study.yaml").language_models == []
    nothing["genomes"] = {"yeast": {"validation": []}, "sim": {"validation": []}}
    assert "no chromosome is held out for validation" in refusal(merge(merge(merge(FULL, BOTH_WAYS), models), nothing))


def test_attention_that_is_never_scored_along_a_chromosome_may_be_trained_on_less() -> None:
    models = {"models": {"titans": {"pretrain": False}, "attention": {"bidirectional": True}}, "pretrain": {"context_bp": 64}}
    assert parse_study(merge(FULL, models), "study.yaml").masked_models == ["attention"]


def test_attention_is_not_asked_to_recall_over_more_bases_than_it_was_trained_on() -> None:
    recall = {"lead_bp": 24, "repeat_bp": 400, "gaps_bp": [0, 201]}
    study = merge(FULL, {"pretrain": {"context_bp": 1024}, "evaluate": {"recall": recall}})
    assert refusal(study) == (
        "evaluate.recall, lead_bp with two of repeat_bp and the longest of gaps_bp: 1025 is more than pretrain.context_bp 1024, and the "
        "attention of models.attention was trained on no such distance; lower it, or give the attention a window"
    )
    shorter = merge(study, {"evaluate": {"recall": {"gaps_bp": [0, 200]}}})
    windowed = merge(study, {"models": {"attention": {"layers": [{"mixer": "attention", "window": 256}]}}})
    both_ways = merge(study, {"models": {"attention": {"bidirectional": True}}})
    models = [parse_study(tree, "study.yaml").recall_models for tree in (shorter, windowed, both_ways, FULL)]
    assert models == [["titans", "attention"], ["titans", "attention"], ["titans"], []]


@pytest.mark.parametrize("genome", ["yeast", "human"])
def test_simulated_benchmark_needs_a_simulated_genome(genome: str) -> None:
    message = refusal(edited("benchmarks", "promoters", "simulate", "genome", value=genome))
    assert message == f"benchmarks.promoters.simulate.genome: '{genome}' is not a simulated genome of this study; it has ['sim']"


@pytest.mark.parametrize("section", [{}, {"simulate": {"seed": 1}, "file": "a.fa"}], ids=["neither", "both"])
def test_genome_comes_from_one_place(section: dict[str, Any]) -> None:
    assert refusal(edited("genomes", "new", value=section)).startswith("genomes.new: needs either `simulate` or `sources`")


def test_benchmark_comes_from_one_place() -> None:
    assert refusal(edited("benchmarks", "promoters", "directory", value="x")).startswith("benchmarks.promoters: has both")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["holds nothing"]),
        ("- 1\n", ["holds a list"]),
        ("name: [1\n", [", line 2, column 1", "not valid YAML"]),
        ("name: a\nname: b\n", [", line 2, column 1", "key 'name' stands twice"]),
        ("pretrain:\n  steps: 1\n  steps: 2\n", [", line 3, column 3", "key 'steps' stands twice"]),
        ("? [a, b]\n: 1\n", [", line 1, column 3", "not valid YAML"]),
    ],
    ids=["empty", "list", "syntax", "duplicate key", "nested duplicate key", "list as key"],
)
def test_faulty_yaml(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GenomemError) as error:
        load_study(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for path, words in (
        (tmp_path / "none.yaml", "no such study file"),
        (tmp_path, "is a folder"),
        (tmp_path / "binary.yaml", "not a text file"),
    ):
        with pytest.raises(GenomemError, match=words):
            load_study(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_parses_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    (tmp_path / "dumped.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path / "dumped.yaml") == study
    assert "description" in yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_are_configs() -> None:
    assert "quickstart.yaml" in {path.name for path in CONFIGS}


def test_round_trip_keeps_every_value_and_writes_every_default(tmp_path: Path) -> None:
    study = parse_study(FULL, "study.yaml")
    (tmp_path / "dumped.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path / "dumped.yaml") == study
    dumped = yaml.safe_load(dump_study(study))
    assert dumped["models"]["titans"]["layers"][1]["conv_kernel"] == 4
    assert set(dumped) == set(Study.model_fields)


def test_a_study_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_study(FULL, "study.yaml").pretrain.steps = 5  # type: ignore[misc]


def test_short_forms() -> None:
    study = parse_study(edited("genomes", "yeast", "sources", value="/data/yeast.fa"), "study.yaml")
    assert [source.url for source in study.genomes["yeast"].sources] == ["/data/yeast.fa"]
    assert study.models["attention"].layers[0].mixer == "attention"
    assert study.models["attention"].architecture == "sequence_model"


def test_merge_goes_key_by_key_and_replaces_all_else() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4, "e": {"f": 1}}
    merged = merge(base, {"a": {"c": [3], "g": 5}, "d": {"h": 6}, "e": None})
    assert merged == {"a": {"b": 1, "c": [3], "g": 5}, "d": {"h": 6}, "e": None}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4, "e": {"f": 1}}


trees = st.recursive(st.integers(), lambda node: st.dictionaries(st.sampled_from("abc"), node, max_size=3), max_leaves=8)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(mappings, mappings, mappings)
def test_merging_twice_is_merging_the_merged(first: dict, second: dict, third: dict) -> None:
    assert merge(first, {}) == first
    assert merge({}, first) == first
    assert merge(first, first) == first
    # A mapping laid over a number and then over by a mapping is where the two orders may differ; the last value wins in both.
    for key, value in third.items():
        if not isinstance(value, dict):
            assert merge(merge(first, second), third)[key] == merge(first, merge(second, third))[key] == value


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(FULL), encoding="utf-8")
    study = load_study(path, {"pretrain": {"steps": 7}, "genomes": {"yeast": {"weight": 3}}})
    assert (study.pretrain.steps, study.pretrain.batch_size) == (7, 16)
    assert (study.genomes["yeast"].weight, study.genomes["yeast"].test) == (3.0, ("V",))
    with pytest.raises(GenomemError, match=r"pretrain\.stops: unknown key; did you mean 'steps'"):
        load_study(path, {"pretrain": {"stops": 7}})


def test_mixer_options_are_those_of_the_layers() -> None:
    assert set(MIXER_OPTIONS) == set(MIXERS)
    for name, section in MIXER_OPTIONS.items():
        parameters = inspect.signature(MIXERS[name]).parameters
        constructor = {key: parameter.default for key, parameter in parameters.items() if key != "dim"}
        assert section().model_dump(exclude={"mixer"}) == constructor
        assert section().mixer == name


def digests(study: Study) -> dict[str, str]:
    """Returns `stage:keys` -> digest of every job of the study."""
    jobs: dict[str, dict[str, Any]] = {stage: {} for stage in ("simulate", "evaluate_markov", "evaluate_comparison", "report")}
    jobs |= {f"{stage}:{key}": {"genome": key} for stage in ("download_genome", "tokenize_genome") for key in study.genomes}
    for dataset in study.benchmarks:
        jobs |= {f"{stage}:{dataset}": {"dataset": dataset} for stage in ("download_benchmark", "tokenize_benchmark", "evaluate_controls")}
        for model in study.models:
            keys = {"dataset": dataset, "model": model}
            jobs |= {f"finetune:{dataset}:{model}:{seed}": {**keys, "seed": seed} for seed in study.seeds}
            jobs[f"evaluate_classification:{dataset}:{model}"] = keys
    for model in study.pretrained_models:
        jobs |= {f"pretrain:{model}:{seed}": {"model": model, "seed": seed} for seed in study.pretrain.seeds}
        jobs |= {f"{stage}:{model}": {"model": model} for stage in ("evaluate_language", "evaluate_recall")}
    of_benchmarks = {"download_benchmark", "tokenize_benchmark", "evaluate_controls", "finetune", "evaluate_classification"}
    assert {job.split(":")[0] for job in jobs} == set(STAGES) - (set() if study.benchmarks else of_benchmarks)
    return {job: stage_digest(study, job.split(":")[0], **keys) for job, keys in jobs.items()}


SCORED = ["evaluate_language:*", "evaluate_comparison"]
RESCORED = [*SCORED, "evaluate_recall:*"]
LANGUAGE = ["pretrain:*", *RESCORED]
FINE_TUNED = [f"{job}:*:{model}" for model in ("titans", "attention") for job in ("finetune", "evaluate_classification")]
PRETRAINED = [*LANGUAGE, *FINE_TUNED, *(f"{job}:*" for job in FINE_TUNED)]
SECOND_SEED = [*(f"finetune:*:{model}:1" for model in ("titans", "attention")), *FINE_TUNED]
TITANS = ["pretrain:titans:*", "evaluate_*:titans", "evaluate_comparison", "finetune:*:titans:*", "evaluate_classification:*:titans"]
SIMULATED = ["simulate", "*_genome:sim", "*:promoters", "*:promoters:*"]
INTERVALS = [*RESCORED, "evaluate_controls:*", "evaluate_classification:*"]
ENHANCERS = ["finetune:enhancers:*", "evaluate_classification:enhancers:*"]


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        ({"name": "other"}, []),
        ({"description": "other"}, []),
        ({"seeds": [0, 1, 2]}, ["evaluate_classification:*"]),
        ({"pretrain": {"steps": 7}}, PRETRAINED),
        ({"finetune": {"epochs": 7}}, ["finetune:*", "evaluate_classification:*"]),
        ({"finetune": {"validation_fraction": 0.2}}, ["finetune:*", "evaluate_classification:*", "evaluate_controls:*"]),
        ({"pretrain": {"checkpoint_every": 7}}, []),
        ({"pretrain": {"seeds": [0, 7]}}, RESCORED),
        ({"pretrain": {"seeds": [0, 1]}}, [*RESCORED, *SECOND_SEED]),
        ({"pretrain": {"seeds": [7, 0]}}, [*RESCORED, *SECOND_SEED]),
        ({"evaluate": {"batch_size": 7}}, []),
        ({"evaluate": {"context_bp": 64}}, SCORED),
        ({"evaluate": {"baseline": "attention"}}, ["evaluate_comparison"]),
        ({"evaluate": {"recall": {"repeat_bp": 400, "gaps_bp": [0]}}}, ["evaluate_recall:*"]),
        ({"evaluate": {"markov_orders": [1]}}, ["evaluate_markov", *SCORED]),
        ({"evaluate": {"backoff_orders": [11]}}, ["evaluate_markov", *SCORED]),
        ({"evaluate": {"markov_max_bp": 1000}}, ["evaluate_markov", *SCORED]),
        ({"evaluate": {"kmer_sizes": [2]}}, ["evaluate_controls:*"]),
        ({"evaluate": {"overlap_kmer": 16}}, ["evaluate_controls:*"]),
        ({"evaluate": {"confidence": 0.9}}, INTERVALS),
        ({"evaluate": {"bootstrap_samples": 70}}, INTERVALS),
        ({"models": {"new": {"layers": ["attention"]}}}, ["evaluate_comparison"]),
        ({"models": {"titans": {"dim": 64}}}, TITANS),
        ({"models": {"titans": {"layers": ["titans_lmm"]}}}, TITANS),
        ({"models": {"titans": {"kmer_memory": {}}}}, TITANS),
        ({"models": {"titans": {"finetune": False}}}, []),
        ({"evaluate": {"quoted": [{"name": "a", "bits_per_base": 1.9, "protocol": "b"}]}}, []),
        ({"genomes": {"yeast": {"weight": 2}}}, PRETRAINED),
        ({"genomes": {"yeast": {"test": ["VI"]}}}, [*PRETRAINED, "evaluate_markov", "tokenize_genome:yeast"]),
        ({"genomes": {"yeast": {"sources": ["b.fa"]}}}, [*PRETRAINED, "evaluate_markov", "*_genome:yeast"]),
        ({"genomes": {"yeast": {"sequence_sha256": "a" * 64}}}, [*PRETRAINED, "evaluate_markov", "*_genome:yeast"]),
        ({"genomes": {"new": {"file": "new.fa"}}}, [*PRETRAINED, "evaluate_markov"]),
        ({"genomes": {"sim": {"simulate": {"seed": 2}}}}, [*PRETRAINED, *SIMULATED, "evaluate_markov"]),
        ({"benchmarks": {"new": {"directory": "new"}}}, []),
        ({"benchmarks": {"enhancers": {"metric": "mcc"}}}, [*ENHANCERS, "evaluate_controls:enhancers"]),
        (
            {"benchmarks": {"enhancers": {"max_length_bp": 100}}},
            [*ENHANCERS, "evaluate_controls:enhancers", "tokenize_benchmark:enhancers"],
        ),
        ({"benchmarks": {"enhancers": {"sources": ["b.zip"]}}}, [*ENHANCERS, "*:enhancers"]),
    ],
    ids=str,
)
def test_an_edit_changes_the_stages_that_depend_on_it_and_the_report(edit: dict[str, Any], changed: list[str]) -> None:
    before, after = digests(parse_study(FULL, "")), digests(parse_study(merge(FULL, edit), ""))
    differ = {job for job in before if before[job] != after[job]}
    assert differ == {"report"} | {job for job in before if any(fnmatch(job, pattern) for pattern in changed)}


def test_the_share_of_masked_bases_reruns_bidirectional_models_only() -> None:
    study = merge(FULL, BOTH_WAYS)
    before, after = digests(parse_study(study, "")), digests(parse_study(merge(study, {"pretrain": {"mask_fraction": 0.3}}), ""))
    differ = {job for job in before if before[job] != after[job]}
    assert differ == {"report"} | {job for job in before if "both_ways" in job.split(":")}


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        ({"sources": ["b.fa"]}, ["*_genome:yeast"]),
        ({"file": "b.fa"}, ["*_genome:yeast"]),
        ({"sequence_sha256": "b" * 64}, [*PRETRAINED, "evaluate_markov", "*_genome:yeast"]),
        ({"test": ["VI"]}, [*PRETRAINED, "evaluate_markov", "tokenize_genome:yeast"]),
    ],
    ids=str,
)
def test_where_pinned_bases_come_from_matters_to_no_training_and_no_evaluation(edit: dict[str, Any], changed: list[str]) -> None:
    pinned = merge(FULL, {"genomes": {"yeast": {"sequence_sha256": "a" * 64}}})
    before, after = digests(parse_study(pinned, "")), digests(parse_study(merge(pinned, {"genomes": {"yeast": edit}}), ""))
    differ = {job for job in before if before[job] != after[job]}
    assert differ == {"report"} | {job for job in before if any(fnmatch(job, pattern) for pattern in changed)}


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("simulate", ["simulate", *SIMULATED, *PRETRAINED, "evaluate_markov"]),
        ("download_genome", ["*_genome:yeast", *PRETRAINED, "evaluate_markov"]),
        ("download_benchmark", ["*:enhancers", "*:enhancers:*"]),
        ("tokenize_genome", ["tokenize_genome:*", *PRETRAINED, "evaluate_markov"]),
        ("tokenize_benchmark", ["tokenize_benchmark:*", "finetune:*", "evaluate_controls:*", "evaluate_classification:*"]),
        ("pretrain", PRETRAINED),
        ("finetune", ["finetune:*", "evaluate_classification:*"]),
        ("evaluate_markov", ["evaluate_markov", *SCORED]),
        ("evaluate_language", SCORED),
        ("evaluate_comparison", ["evaluate_comparison"]),
        ("evaluate_recall", ["evaluate_recall:*"]),
        ("evaluate_controls", ["evaluate_controls:*"]),
        ("evaluate_classification", ["evaluate_classification:*"]),
        ("report", []),
    ],
)
def test_a_new_version_of_a_stage_reruns_it_and_all_that_build_on_it(
    stage: str, changed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(STAGE_VERSIONS) == set(STAGES)
    study = parse_study(FULL, "")
    before = digests(study)
    monkeypatch.setitem(STAGE_VERSIONS, stage, STAGE_VERSIONS[stage] + 1)
    after = digests(study)
    differ = {job for job in before if before[job] != after[job]}
    assert differ == {"report"} | {job for job in before if any(fnmatch(job, pattern) for pattern in changed)}


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("pretrain", {"model": "titans"}),
        ("pretrain", {"model": "titans", "seed": 9}),
        ("finetune", {"model": "titans", "dataset": "enhancers", "seed": 9}),
    ],
)
def test_a_training_run_without_a_seed_of_the_study_has_no_digest(stage: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is none of"):
        stage_digest(parse_study(FULL, ""), stage, **keys)


def test_a_seed_has_the_same_digest_whatever_the_other_seeds_are() -> None:
    alone, among = (parse_study(merge(FULL, {"seeds": [1], "pretrain": {"seeds": seeds}}), "") for seeds in ([3], [0, 3]))
    assert stage_digest(alone, "pretrain", model="titans", seed=3) == stage_digest(among, "pretrain", model="titans", seed=3)
    assert stage_digest(among, "pretrain", model="titans", seed=0) != stage_digest(among, "pretrain", model="titans", seed=3)


def test_fine_tuning_starts_from_the_pretraining_run_of_its_own_seed_where_there_is_one_and_else_from_the_first() -> None:
    study = parse_study(merge(FULL, {"seeds": [0, 1, 2], "pretrain": {"seeds": [5, 1]}}), "")
    assert [study.pretraining_seed(seed) for seed in study.seeds] == [5, 1, 5]
    assert parse_study(FULL, "").pretraining_seed(1) == 0


@pytest.mark.parametrize("edit", [{"results": "elsewhere"}, {"resources": "elsewhere"}, {"mirror": "elsewhere"}], ids=str)
def test_where_things_lie_is_in_no_digest(edit: dict[str, Any]) -> None:
    assert digests(parse_study(FULL, "")) == digests(parse_study(merge(FULL, edit), ""))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_resolved_study_has_the_digests_of_its_file(path: Path) -> None:
    study = load_study(path)
    assert digests(parse_study(yaml.safe_load(dump_study(study)), "")) == digests(study)


def test_digests_tell_stages_and_keys_apart_and_ignore_the_order_of_keys() -> None:
    study = parse_study(FULL, "")
    values = digests(study)
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in values.values())
    assert len(set(values.values())) == len(values)
    assert digests(parse_study(dict(reversed(FULL.items())), "")) == values
