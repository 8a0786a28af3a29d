"""The study: one YAML file that is the whole experiment.

Snakemake and the command line read it through the same schema. Unknown keys are refused,
every section is frozen, and `stage_digest` says which results a change of the study touches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from genomem.errors import GenomemError

DEFAULT_STUDY = Path("config/quickstart.yaml")

# A name becomes a folder and a Snakemake wildcard, so it holds neither a path separator nor a space.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the study: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


# ---------------------------------------------------------------- data


class Source(Section):
    """One place that a file can be had from."""

    url: str = Field(min_length=1, description="http://, https://, ftp://, file:// or a path on this machine")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the file as this source packs it")


def _as_sources(value: Any) -> Any:
    """Lets `sources: /data/my.fa.gz` stand for the list with that one source."""
    items = value if isinstance(value, list | tuple) else [value]
    return [{"url": item} if isinstance(item, str) else item for item in items]


class SimulatedGenome(Section):
    """A genome made from a seed, with the traits that `genomem.data.simulate` describes."""

    seed: int = Field(ge=0)
    chromosomes: int = Field(5, ge=1, le=100)
    chromosome_bp: int = Field(250_000, ge=20_000)


class Genome(Section):
    """A reference genome: where it comes from and which chromosomes are held out."""

    file: str | None = Field(
        None, description="path below `resources` and below the mirror; default genomes/<name>/<file name of the source>"
    )
    sources: tuple[Source, ...] = Field((), description="tried in this order, after the mirror")
    sequence_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="digest of names, lengths and upper-case bases; holds for any packing"
    )
    simulate: SimulatedGenome | None = Field(None, description="make this genome instead of fetching it")
    validation: tuple[str, ...] = Field((), description="chromosomes held out for validation: names, or patterns such as chrUn_*")
    test: tuple[str, ...] = Field((), description="chromosomes held out for the final evaluation, likewise")
    exclude: tuple[str, ...] = Field((), description="chromosomes left out altogether, likewise")
    weight: float = Field(1.0, gt=0, description="how often pretraining draws from it, relative to its training bases")

    _sources = field_validator("sources", mode="before")(_as_sources)
    _file = field_validator("file")(lambda value: _relative(value))

    @model_validator(mode="after")
    def _check(self) -> Genome:
        if (self.simulate is None) == (not self.sources and self.file is None):
            raise ValueError("needs either `simulate` or `sources` (or a `file` that lies in the mirror)")
        roles = [*self.validation, *self.test, *self.exclude]
        twice = sorted({name for name in roles if roles.count(name) > 1})
        if twice:
            raise ValueError(f"chromosome {twice[0]!r} stands in more than one of validation, test and exclude")
        return self


class SimulatedBenchmark(Section):
    """A classification set cut from a simulated genome, in the GenomicBenchmarks layout."""

    genome: Name
    task: Literal["promoters", "coding"]
    train: int = Field(2000, ge=20, description="sequences, all classes together")
    test: int = Field(600, ge=20, description="sequences, all classes together")
    length_bp: int = Field(200, ge=80, le=5000)


class Benchmark(Section):
    """A labelled set of sequences with its own train and test parts."""

    directory: str | None = Field(None, description="folder below `resources` and below the mirror; default genomic_benchmarks/<name>")
    sources: tuple[Source, ...] = Field((), description="an archive (.zip, .tar.gz) or a folder; tried in this order, after the mirror")
    simulate: SimulatedBenchmark | None = Field(None, description="cut this set from a simulated genome instead of fetching it")
    stranded: bool = Field(False, description="the strand carries the label (promoters): no reverse-complement augmentation or averaging")
    metric: Literal["accuracy", "mcc"] = Field("accuracy", description="what early stopping watches, and the headline of the table")
    max_length_bp: int | None = Field(None, ge=1, description="longer sequences are cropped around their centre")

    _sources = field_validator("sources", mode="before")(_as_sources)
    _directory = field_validator("directory")(lambda value: _relative(value))

    @model_validator(mode="after")
    def _check(self) -> Benchmark:
        if self.simulate is not None and (self.sources or self.directory):
            raise ValueError("has both `simulate` and `sources` or `directory`; keep one")
        return self


def _relative(value: str | None) -> str | None:
    if value is not None and (PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
        raise ValueError(f"{value!r} must be a path inside `resources` (no leading /, no ..); put an outside file under `sources`")
    return value


# ---------------------------------------------------------------- models


class TitansLMM(Section):
    """Exact linear neural memory (Titans LMM, gradient block 1)."""

    mixer: Literal["titans_lmm"] = "titans_lmm"
    heads: int = Field(4, ge=1)
    conv_kernel: int = Field(4, ge=1, description="taps of the causal convolution on query, key and value; 1 turns it off")
    momentum: bool = True
    forget: bool = True
    output_gate: bool = True
    chunk_size: int = Field(32, ge=1, description="compute chunk; never changes the result")


class Attention(Section):
    """Causal softmax attention with rotary positions (Llama)."""

    mixer: Literal["attention"] = "attention"
    heads: int = Field(4, ge=1)
    window: int | None = Field(None, ge=1, description="how many tokens back a token sees, itself included; none: all")
    rope_base: float = Field(10_000.0, gt=1)


class CausalConv(Section):
    """Gated dilated causal convolution."""

    mixer: Literal["causal_conv"] = "causal_conv"
    kernel: int = Field(9, ge=1)
    dilation: int = Field(1, ge=1)


Layer = Annotated[TitansLMM | Attention | CausalConv, Field(discriminator="mixer")]


class SequenceModel(Section):
    """Token embedding with motif detectors, blocks of mixer and gated MLP, heads."""

    architecture: Literal["sequence_model"] = "sequence_model"
    dim: int = Field(128, ge=4)
    layers: tuple[Layer, ...] = Field(min_length=1, description="a mixer name, or a mapping with `mixer` and its options")
    repeat: int = Field(1, ge=1, description="how often the list of layers is repeated")
    stem_kernel: int = Field(1, ge=1, description="bases that the motif detectors beside the embedding see; 1 turns them off")
    mlp_ratio: float = Field(2.0, ge=0, description="hidden width of the gated MLP over dim; 0 leaves the MLP out")
    dropout: float = Field(0.0, ge=0, lt=1)
    pretrain: bool = Field(True, description="pretrain as a language model first; false trains from scratch on each benchmark")

    @field_validator("layers", mode="before")
    @classmethod
    def _named_layers(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [{"mixer": item} if isinstance(item, str) else item for item in value]


class CNN(Section):
    """The GenomicBenchmarks CNN (264k parameters at 1,024 bases), for classification only."""

    architecture: Literal["cnn"] = "cnn"
    pretrain: Literal[False] = False


Model = Annotated[SequenceModel | CNN, Field(discriminator="architecture")]


# ---------------------------------------------------------------- training and evaluation


class Pretrain(Section):
    """Next-nucleotide language modelling on the training chromosomes."""

    seed: int = Field(0, ge=0)
    context_bp: int = Field(1024, ge=8, description="bases in a training window")
    batch_size: int = Field(16, ge=1, description="windows in a step, over all processes and accumulation")
    accumulation: int = Field(1, ge=1, description="micro-batches in a step")
    steps: int = Field(1000, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    final_learning_rate: float = Field(0.1, ge=0, le=1, description="at the end of the cosine, as a fraction of learning_rate")
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    gradient_clip: float = Field(1.0, gt=0)
    repeat_weight: Fraction = Field(0.1, description="loss weight of soft-masked (lower-case) bases")
    reverse_complement: bool = Field(True, description="each window is read from either strand with probability 1/2")
    precision: Literal["float32", "bfloat16"] = "float32"
    validate_every: int = Field(500, ge=1, description="steps between validations")
    validation_bp: int = Field(100_000, ge=1, description="held-out bases that each validation reads")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")


class Finetune(Section):
    """Classification on each benchmark, one run a seed."""

    epochs: int = Field(10, ge=1)
    patience: int = Field(3, ge=1, description="epochs without a better validation score before it stops")
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    pooling: Literal["mean", "mean_max"] = Field(
        "mean", description="over real tokens: the mean, or the mean beside the maximum of each channel"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="before the classification head")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="of train, by a hash of the sequence; unused where the benchmark has a dev part"
    )
    reverse_complement: bool = Field(True, description="augmentation on benchmarks that are not stranded")
    precision: Literal["float32", "bfloat16"] = "float32"


class Evaluate(Section):
    """The final evaluation: held-out chromosomes, test sets, and what both are judged against."""

    context_bp: int = Field(1024, ge=8, description="window of the language model's scoring; each base sees at least half of it")
    markov_orders: tuple[Annotated[int, Field(ge=0, le=12)], ...] = Field(tuple(range(9)), min_length=1)
    backoff_orders: tuple[Annotated[int, Field(ge=1, le=31)], ...] = (12, 16, 24)
    markov_max_bp: int = Field(
        200_000_000, ge=1, description="training bases that the Markov models are fitted on, at most; the cut is recorded"
    )
    kmer_sizes: tuple[Annotated[int, Field(ge=1, le=8)], ...] = (1, 2, 3, 4, 5, 6)
    overlap_kmer: int = Field(
        32, ge=8, le=32, description="a test sequence that shares one k-mer of this size with train counts as a near duplicate"
    )
    reverse_complement: bool = Field(True, description="average both strands' probabilities on benchmarks that are not stranded")
    batch_size: int = Field(64, ge=1)
    bootstrap_samples: int = Field(1000, ge=10)
    confidence: float = Field(0.95, gt=0.5, lt=1)


class Study(Section):
    """A whole experiment. `load_study` reads one; `config/` holds three."""

    name: Name
    description: str = ""
    results: Path | None = Field(None, description="folder of all results; default results/<name>")
    resources: Path = Field(Path("resources"), description="folder of downloads, laid out like a mirror and shared by studies")
    mirror: Path | None = Field(None, description="looked in before any download; default $GENOMEM_MIRROR")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="one fine-tuning run each")
    genomes: dict[Name, Genome] = Field(min_length=1)
    benchmarks: dict[Name, Benchmark] = {}
    models: dict[Name, Model] = Field(min_length=1)
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()

    @field_validator("models", mode="before")
    @classmethod
    def _default_architecture(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {"architecture": "sequence_model", **model} if isinstance(model, dict) else model for name, model in value.items()}

    @model_validator(mode="after")
    def _check(self) -> Study:
        for name, benchmark in self.benchmarks.items():
            origin = benchmark.simulate
            if origin and (origin.genome not in self.genomes or self.genomes[origin.genome].simulate is None):
                simulated = [key for key, genome in self.genomes.items() if genome.simulate]
                raise ValueError(
                    f"benchmarks.{name}.simulate.genome: {origin.genome!r} is not a simulated genome of this study; it has {simulated}"
                )
            if origin and not self.genomes[origin.genome].test:
                raise ValueError(
                    f"benchmarks.{name}.simulate.genome: {origin.genome!r} holds out no test chromosome to cut the test part from"
                )
        if self.pretrained_models:
            for role in ("validation", "test"):
                if not any(getattr(genome, role) for genome in self.genomes.values()):
                    raise ValueError(
                        f"genomes: no chromosome is held out for {role}, and pretraining needs one; name it under genomes.<name>.{role}"
                    )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed stands twice")
        return self

    @property
    def pretrained_models(self) -> list[str]:
        """Names of the models that are pretrained."""
        return [name for name, model in self.models.items() if model.pretrain]

    @property
    def is_simulated(self) -> bool:
        """True when any genome of the study is simulated."""
        return any(genome.simulate for genome in self.genomes.values())


# ---------------------------------------------------------------- reading


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_study(path: Path | str, overrides: dict[str, Any] | None = None) -> Study:
    """Reads a study file.

    Args:
        path: A YAML file; `config/` holds examples.
        overrides: Nested mapping laid over the file's, key by key (Snakemake's `--config`).

    Raises:
        GenomemError: The file is missing, is not YAML, or does not fit the schema.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise GenomemError(f"{path}: no such study file; config/ holds examples") from None
    except IsADirectoryError:
        raise GenomemError(f"{path}: is a folder; name a study file such as {DEFAULT_STUDY}") from None
    except UnicodeDecodeError:
        raise GenomemError(f"{path}: is not a text file; a study is YAML in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise GenomemError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise GenomemError(f"{path}: a study is a mapping of keys such as name, genomes and models; this file holds {_kind(tree)}")
    return parse_study(merge(tree, overrides or {}), origin=str(path))


def parse_study(tree: dict[str, Any], origin: str) -> Study:
    """Checks a nested mapping against the schema. `origin` names it in errors.

    Raises:
        GenomemError: One line with the key's path, what is wrong, and what is allowed.
    """
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = _explain(problems[0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GenomemError(f"{origin}: {first}{more}") from None


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` with `overrides` laid over it; mappings are merged key by key, all else is replaced."""
    merged = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def dump_study(study: Study) -> str:
    """Returns the resolved study, every default written out, as YAML that `load_study` reads."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _explain(problem: Mapping[str, Any]) -> str:
    """Turns one pydantic problem into one line: path, what is wrong, what is allowed."""
    section, keys = _locate(problem["loc"])
    path = ".".join(keys) or "study"
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        allowed = sorted(section.model_fields) if section else []
        near = get_close_matches(keys[-1], allowed, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{path}: unknown key; {hint}allowed keys: {', '.join(allowed)}"
    if kind == "union_tag_invalid":
        tag = problem["ctx"]["discriminator"].strip("'")
        return f"{path}.{tag}: unknown {tag} {problem['ctx']['tag']!r}; known: {problem['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{path}: needs the key {problem['ctx']['discriminator']}"
    if kind == "missing":
        return f"{path}: this key is required"
    if kind == "value_error":
        return f"{path}: {problem['ctx']['error']}" if keys else str(problem["ctx"]["error"])
    got = "" if isinstance(value, dict | list) else f", not {value!r}"
    return f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}{got}"


def _locate(loc: tuple[str | int, ...]) -> tuple[type[Section] | None, list[str]]:
    """Follows a pydantic location through the schema: the section that holds the last key, and the user's keys.

    Pydantic puts the tag of a discriminated union into the location; users wrote no such key, so it is dropped.
    """
    section: type[Section] | None = Study
    keys: list[str] = []
    is_name = False
    tags: dict[str, type[Section]] | None = None
    for place, step in enumerate(loc, start=1):
        if tags is not None and not is_name and step in tags:
            section, tags = tags[str(step)], None
            continue
        keys.append(str(step))
        if is_name:
            is_name = False
        elif section is not None and step in section.model_fields and place < len(loc):
            section, tags, is_name = _SECTIONS.get((section, str(step)), _Below(None))
    return section, keys


class _Below(NamedTuple):
    """What stands below a key: its section, the tags that pydantic puts in front of one, and whether names or numbers come first."""

    section: type[Section] | None
    tags: dict[str, type[Section]] | None = None
    is_named: bool = False


_MODELS: dict[str, type[Section]] = {"sequence_model": SequenceModel, "cnn": CNN}
MIXER_OPTIONS: dict[str, type[Section]] = {"titans_lmm": TitansLMM, "attention": Attention, "causal_conv": CausalConv}
_SECTIONS: dict[tuple[type[Section], str], _Below] = {
    (Study, "genomes"): _Below(Genome, is_named=True),
    (Study, "benchmarks"): _Below(Benchmark, is_named=True),
    (Study, "models"): _Below(SequenceModel, _MODELS, is_named=True),
    (Study, "pretrain"): _Below(Pretrain),
    (Study, "finetune"): _Below(Finetune),
    (Study, "evaluate"): _Below(Evaluate),
    (Genome, "simulate"): _Below(SimulatedGenome),
    (Genome, "sources"): _Below(Source, is_named=True),
    (Benchmark, "simulate"): _Below(SimulatedBenchmark),
    (Benchmark, "sources"): _Below(Source, is_named=True),
    (SequenceModel, "layers"): _Below(None, MIXER_OPTIONS, is_named=True),
}


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


# ---------------------------------------------------------------- digests


def stage_digest(study: Study, stage: str, *, genome: str = "", dataset: str = "", model: str = "") -> str:
    """Returns the digest of all that a stage's result depends on in the study: 16 hexadecimal digits.

    A stage reads its own sections and the digests of the stages before it, so a change reruns
    what depends on it and nothing else. Paths (`results`, `resources`, `mirror`), `name` and
    `description` decide where things lie, not what they are, and are in no digest.

    Args:
        stage: One of `STAGES`.
        genome, dataset, model: The keys of the study that the stage works on, where it has one.
    """
    return _digest([stage, STAGES[stage](study, genome, dataset, model)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _dump(section: Section, exclude: set[str] | None = None) -> Any:
    return section.model_dump(mode="json", exclude=exclude)


def _simulations(study: Study) -> Any:
    genomes = {k: [_dump(g.simulate), g.validation, g.test, g.exclude] for k, g in study.genomes.items() if g.simulate}
    benchmarks = {k: _dump(b.simulate) for k, b in study.benchmarks.items() if b.simulate}
    return [genomes, benchmarks]


def _genome_source(study: Study, genome: str) -> Any:
    section = study.genomes[genome]
    return _simulations(study) if section.simulate else _dump(section, {"validation", "test", "exclude", "weight"})


def _benchmark_source(study: Study, dataset: str) -> Any:
    section = study.benchmarks[dataset]
    return _simulations(study) if section.simulate else _dump(section, {"stranded", "metric", "max_length_bp"})


def _all_genomes(study: Study) -> Any:
    return {name: [_genome_source(study, name), _dump(genome)] for name, genome in study.genomes.items()}


def _pretraining(study: Study, model: str) -> Any:
    return [_dump(study.pretrain), _dump(study.models[model]), _all_genomes(study)]


def _finetuning(study: Study, dataset: str, model: str) -> Any:
    before = _pretraining(study, model) if study.models[model].pretrain else None
    return [before, _dump(study.finetune), _dump(study.models[model]), _dump(study.benchmarks[dataset]), _benchmark_source(study, dataset)]


def _everything(study: Study) -> Any:
    return _dump(study, {"results", "resources", "mirror"})


STAGES = {
    "simulate": lambda study, genome, dataset, model: _simulations(study),
    "download_genome": lambda study, genome, dataset, model: _genome_source(study, genome),
    "download_benchmark": lambda study, genome, dataset, model: _benchmark_source(study, dataset),
    "tokenize_genome": lambda study, genome, dataset, model: [_genome_source(study, genome), _dump(study.genomes[genome], {"weight"})],
    "tokenize_benchmark": lambda study, genome, dataset, model: [
        _benchmark_source(study, dataset),
        study.benchmarks[dataset].max_length_bp,
    ],
    "pretrain": lambda study, genome, dataset, model: _pretraining(study, model),
    "finetune": lambda study, genome, dataset, model: _finetuning(study, dataset, model),
    "evaluate_markov": lambda study, genome, dataset, model: [_dump(study.evaluate), _all_genomes(study)],
    "evaluate_language": lambda study, genome, dataset, model: [_dump(study.evaluate), _pretraining(study, model)],
    "evaluate_controls": lambda study, genome, dataset, model: [
        _dump(study.evaluate),
        _dump(study.benchmarks[dataset]),
        _benchmark_source(study, dataset),
        study.finetune.validation_fraction,
    ],
    "evaluate_classification": lambda study, genome, dataset, model: [
        _dump(study.evaluate),
        study.seeds,
        _finetuning(study, dataset, model),
    ],
    "report": lambda study, genome, dataset, model: _everything(study),
}
