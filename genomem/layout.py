"""Where everything lies: the one list of paths that the command line and the workflow share.

```
resources/<file>                                    downloads, laid out like a mirror, with <file>.provenance.json
results/<study>/
  study.yaml                                        the resolved study
  simulated/genomes/<genome>/{genome.fa.gz,genes.gff3,regions.bed}
  simulated/benchmarks/<dataset>/{train,test}/<class>.csv.gz
  tokens/genomes/<genome>/                          bases.u8, manifest.json
  tokens/benchmarks/<dataset>/                      sequences.u8, manifest.json
  pretrain/<model>/seed-<seed>/                     model.safetensors, model.json, metrics.jsonl, record.json
  checkpoints/pretrain/<model>/seed-<seed>/         to resume from; no declared output, so that a failed job keeps it
  finetune/<dataset>/<model>/seed-<seed>/           model.safetensors, model.json, metrics.jsonl, record.json
  evaluate/markov.json, markov.npz                  Markov models on the held-out chromosomes; scores of each base
  evaluate/language/<model>.json, <model>.npz       bits per base; their sums over blocks of neighbouring bases
  evaluate/comparison.json                          every language model against the baseline, block by block
  evaluate/recall/<model>.json                      bits per base on a repeat that was read before
  evaluate/controls/<dataset>.json
  evaluate/classification/<dataset>/<model>.json
  report.html, report.json                          the page, and all its figures as one file
  logs/
```
Every method takes a key of the study, or a Snakemake wildcard such as ``"{model}"``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genomem.config import Study

MIRROR_VARIABLE = "GENOMEM_MIRROR"


@dataclass(frozen=True)
class Layout:
    """The paths of one study."""

    study: Study

    @property
    def results(self) -> Path:
        return self.study.results or Path("results") / self.study.name

    @property
    def mirror(self) -> Path | None:
        """The folder that is looked in before any download: the study's setting, else the environment's."""
        if self.study.mirror is not None:
            return self.study.mirror
        value = os.environ.get(MIRROR_VARIABLE)
        return Path(value) if value else None

    @property
    def resolved_study(self) -> Path:
        return self.results / "study.yaml"

    def genome_file(self, genome: str) -> str:
        """Path of a downloaded genome below `resources` and below the mirror."""
        section = self.study.genomes[genome]
        return section.file or f"genomes/{genome}/{section.sources[0].url.partition('?')[0].rstrip('/').rsplit('/', 1)[-1]}"

    def benchmark_directory(self, dataset: str) -> str:
        """Folder of a downloaded benchmark below `resources` and below the mirror."""
        return self.study.benchmarks[dataset].directory or f"genomic_benchmarks/{dataset}"

    def genome_fasta(self, genome: str) -> Path:
        """The FASTA that `tokenize` reads, simulated or downloaded."""
        if self.study.genomes[genome].simulate:
            return self.simulated_genome(genome)
        return self.study.resources / self.genome_file(genome)

    def benchmark_source(self, dataset: str) -> Path:
        """The folder that `tokenize` reads, simulated or downloaded."""
        if self.study.benchmarks[dataset].simulate:
            return self.simulated_benchmark(dataset)
        return self.study.resources / self.benchmark_directory(dataset)

    def genome_provenance(self, genome: str) -> Path:
        return self.study.resources / f"{self.genome_file(genome)}.provenance.json"

    def benchmark_provenance(self, dataset: str) -> Path:
        return self.study.resources / f"{self.benchmark_directory(dataset)}.provenance.json"

    def simulated_genome(self, genome: str) -> Path:
        return self.results / "simulated" / "genomes" / genome / "genome.fa.gz"

    def simulated_benchmark(self, dataset: str) -> Path:
        return self.results / "simulated" / "benchmarks" / dataset

    @property
    def simulation_record(self) -> Path:
        return self.results / "simulated" / "record.json"

    def genome_store(self, genome: str) -> Path:
        return self.results / "tokens" / "genomes" / genome

    def benchmark_store(self, dataset: str) -> Path:
        return self.results / "tokens" / "benchmarks" / dataset

    def pretrained(self, model: str, seed: int | str) -> Path:
        return self.results / "pretrain" / model / f"seed-{seed}"

    def checkpoints(self, model: str, seed: int | str) -> Path:
        return self.results / "checkpoints" / "pretrain" / model / f"seed-{seed}"

    def finetuned(self, dataset: str, model: str, seed: int | str) -> Path:
        return self.results / "finetune" / dataset / model / f"seed-{seed}"

    @property
    def markov(self) -> Path:
        return self.results / "evaluate" / "markov.json"

    @property
    def markov_scores(self) -> Path:
        return self.results / "evaluate" / "markov.npz"

    def language(self, model: str) -> Path:
        return self.results / "evaluate" / "language" / f"{model}.json"

    def language_blocks(self, model: str) -> Path:
        return self.results / "evaluate" / "language" / f"{model}.npz"

    @property
    def comparison(self) -> Path:
        return self.results / "evaluate" / "comparison.json"

    def recall(self, model: str) -> Path:
        return self.results / "evaluate" / "recall" / f"{model}.json"

    def controls(self, dataset: str) -> Path:
        return self.results / "evaluate" / "controls" / f"{dataset}.json"

    def classification(self, dataset: str, model: str) -> Path:
        return self.results / "evaluate" / "classification" / dataset / f"{model}.json"

    @property
    def report(self) -> Path:
        return self.results / "report.html"

    def log(self, name: str) -> Path:
        return self.results / "logs" / f"{name}.log"
