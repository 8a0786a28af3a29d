"""The schema of a study: every section and key, with its default and what it means; `mixers` has the options of its layers.

`config/README.md` is generated from both.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from genomem.config.kmer_memory import KmerMemory
from genomem.config.mixers import Attention, BlockSparseAttention, Layer, TitansMAC
from genomem.config.section import Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


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


class SequenceModel(Section):
    """Token embedding with motif detectors, blocks of mixer and gated MLP, heads."""

    architecture: Literal["sequence_model"] = "sequence_model"
    dim: int = Field(128, ge=4)
    layers: tuple[Layer, ...] = Field(min_length=1, description="a mixer name, or a mapping with `mixer` and its options")
    repeat: int = Field(1, ge=1, description="how often the list of layers is repeated")
    stem_kernel: int = Field(1, ge=1, description="bases that the motif detectors beside the embedding see; 1 turns them off")
    mlp_ratio: float = Field(2.0, ge=0, description="hidden width of the gated MLP over dim; 0 leaves the MLP out")
    dropout: float = Field(0.0, ge=0, lt=1)
    bidirectional: bool = Field(
        False,
        description="reads both directions and both strands, and is pretrained on masked bases: it classifies a sequence and its reverse"
        " complement alike (on a `stranded` benchmark it reads the given strand alone), and has no bits per base",
    )
    kmer_memory: KmerMemory | None = Field(
        None, description="a memory of k-mers beside the network, in pretraining and bits per base; a classifier has none"
    )
    pretrain: bool = Field(True, description="pretrain as a language model first; false trains from scratch on each benchmark")
    finetune: bool = Field(True, description="fine-tune on each benchmark; false for a model that is a language model alone")

    @field_validator("layers", mode="before")
    @classmethod
    def _named_layers(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [{"mixer": item} if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _check(self) -> SequenceModel:
        if not (self.pretrain or self.finetune):
            raise ValueError("finetune: with `pretrain: false` nothing would be trained; make one of the two true")
        if self.kmer_memory and not self.pretrain:
            raise ValueError("kmer_memory: a model with `pretrain: false` is a classifier, which has none; leave it out")
        if self.kmer_memory and self.bidirectional:
            raise ValueError("kmer_memory: it knows what came before a base, and a bidirectional model has no before; keep one of the two")
        for place, layer in enumerate(self.layers):
            if isinstance(layer, TitansMAC) and layer.full_segments and not self.bidirectional:
                raise ValueError(f"layers.{place}.full_segments: tokens would see those behind them; it needs `bidirectional: true`")
        return self


def _attends_to_all(layer: Layer) -> bool:
    """True for a layer with positions over the whole of what came before."""
    return isinstance(layer, BlockSparseAttention) or (isinstance(layer, Attention) and layer.window is None)


class CNN(Section):
    """The GenomicBenchmarks CNN (264k parameters at 1,024 bases), for classification only."""

    architecture: Literal["cnn"] = "cnn"
    pretrain: Literal[False] = False


Model = Annotated[SequenceModel | CNN, Field(discriminator="architecture")]


def is_bidirectional(model: Model) -> bool:
    """True for a model that reads both directions and both strands."""
    return isinstance(model, SequenceModel) and model.bidirectional


class Pretrain(Section):
    """Language modelling on the training chromosomes: of the next base, or of masked bases where a model is bidirectional."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,),
        min_length=1,
        description="one pretraining run each; a fine-tuning run starts from the pretraining run of its own seed where there is one, else"
        " from the first",
    )
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
    mask_fraction: float = Field(0.15, gt=0, lt=1, description="bases of a window that a bidirectional model predicts; 8 in 10 are hidden")
    repeat_weight: Fraction = Field(0.1, description="loss weight of soft-masked (lower-case) bases")
    reverse_complement: bool = Field(True, description="each window is read from either strand with probability 1/2")
    precision: Literal["float32", "bfloat16"] = "float32"
    validate_every: int = Field(500, ge=1, description="steps between validations")
    validation_bp: int = Field(100_000, ge=1, description="held-out bases that each validation reads")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed stands twice")
        return value


class Finetune(Section):
    """Classification on each benchmark, one run a seed."""

    epochs: int = Field(10, ge=1)
    patience: int = Field(3, ge=1, description="epochs without a better validation score before it stops")
    batch_size: int = Field(32, ge=2)
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
    reverse_complement: bool = Field(
        True, description="on benchmarks that are not stranded: flip at random in training, average both strands in validation and test"
    )
    precision: Literal["float32", "bfloat16"] = "float32"


class Recall(Section):
    """A stretch of the test chromosomes seen again later in the same sequence: bits per base on both copies."""

    repeat_bp: int = Field(1000, ge=64, description="bases of the stretch; the second copy is scored without its first 32 as well")
    gaps_bp: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1000), min_length=1, description="bases between the copies; rising")
    lead_bp: int = Field(48, ge=0, description="bases before the first copy")
    samples: int = Field(64, ge=2, description="stretches, none of which overlaps another")
    seed: int = Field(0, ge=0, description="of the places of the stretches, and of what stands in the gaps")

    @field_validator("gaps_bp")
    @classmethod
    def _rising_gaps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("each gap must be longer than the one before")
        return value

    @property
    def longest_bp(self) -> int:
        """Bases of the longest sequence: lead-in, two copies and the longest gap."""
        return self.lead_bp + 2 * self.repeat_bp + self.gaps_bp[-1]


class Quoted(Section):
    """A figure from elsewhere, for the report to show beside its own and marked as quoted."""

    name: str = Field(min_length=1, max_length=60)
    bits_per_base: float = Field(gt=0)
    protocol: str = Field(min_length=1, description="of which bases, given what, and where the figure is from")


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
    batch_size: int = Field(64, ge=1)
    baseline: Name | None = Field(None, description="model that every other language model is compared with, block by block")
    quoted: tuple[Quoted, ...] = Field((), description="bits per base of the same test chromosomes from elsewhere, shown as quoted")
    recall: Recall | None = Field(None, description="what a language model pays for a repeat that it has read before; none: not run")
    bootstrap_samples: int = Field(1000, ge=10)
    confidence: float = Field(0.95, gt=0.5, lt=1)


class Study(Section):
    """A whole experiment. `load_study` reads one; `config/` holds examples."""

    name: Name
    description: str = ""
    results: Path | None = Field(None, description="folder of all results; default results/<name>")
    resources: Path = Field(Path("resources"), description="folder of downloads, laid out like a mirror and shared by studies")
    mirror: Path | None = Field(None, description="looked in before any download; default $GENOMEM_MIRROR")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="one fine-tuning run each")
    genomes: dict[Name, Genome] = Field(min_length=1)
    benchmarks: dict[Name, Benchmark] = Field({})
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
        for role, needed in (("validation", self.pretrained_models), ("test", self.language_models)):
            if needed and not any(getattr(genome, role) for genome in self.genomes.values()):
                raise ValueError(
                    f"genomes: no chromosome is held out for {role}, and pretraining needs one; name it under genomes.<name>.{role}"
                )
        if self.benchmarks and not self.classifiers:
            raise ValueError("benchmarks: every model has `finetune: false`; leave the benchmarks out, or let a model be fine-tuned")
        self._check_context()
        if self.evaluate.baseline is not None and self.evaluate.baseline not in self.language_models:
            raise ValueError(
                f"evaluate.baseline: {self.evaluate.baseline!r} is not a language model of this study; it has {self.language_models}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed stands twice")
        return self

    def _check_context(self) -> None:
        """Refuses to score attention at distances that it was not trained on: that would measure the positions, not the model."""
        trained, lengths = self.pretrain.context_bp, {"evaluate.context_bp": self.evaluate.context_bp}
        if self.evaluate.recall:
            lengths["evaluate.recall, lead_bp with two of repeat_bp and the longest of gaps_bp"] = self.evaluate.recall.longest_bp
        for key, scored in lengths.items():
            for name in self.language_models if scored > trained else ():
                layers = getattr(self.models[name], "layers", ())
                if any(_attends_to_all(layer) for layer in layers):
                    raise ValueError(
                        f"{key}: {scored} is more than pretrain.context_bp {trained}, and the attention of models.{name}"
                        " was trained on no such distance; lower it, or give the attention a window"
                    )

    def pretraining_seed(self, seed: int) -> int:
        """Returns the seed of the pretraining run that the fine-tuning run of `seed` starts from."""
        return seed if seed in self.pretrain.seeds else self.pretrain.seeds[0]

    @property
    def pretrained_models(self) -> list[str]:
        """Names of the models that are pretrained."""
        return [name for name, model in self.models.items() if model.pretrain]

    @property
    def classifiers(self) -> list[str]:
        """Names of the models that are fine-tuned on each benchmark."""
        return [name for name, model in self.models.items() if not isinstance(model, SequenceModel) or model.finetune]

    @property
    def masked_models(self) -> list[str]:
        """Names of the models that are pretrained on masked bases, the bidirectional ones; they have no bits per base."""
        return [name for name in self.pretrained_models if is_bidirectional(self.models[name])]

    @property
    def language_models(self) -> list[str]:
        """Names of the models that are pretrained on the next base: they give a sequence a probability, and so bits per base."""
        return [name for name in self.pretrained_models if name not in self.masked_models]

    @property
    def compared_models(self) -> list[str]:
        """Names of the language models that are compared with `evaluate.baseline`; none where it is not set."""
        return [name for name in self.language_models if name != self.evaluate.baseline] if self.evaluate.baseline else []

    @property
    def recall_models(self) -> list[str]:
        """Names of the language models that `evaluate.recall` is run for; none where it is not set."""
        return self.language_models if self.evaluate.recall else []

    @property
    def is_simulated(self) -> bool:
        """True when any genome of the study is simulated."""
        return any(genome.simulate for genome in self.genomes.values())
