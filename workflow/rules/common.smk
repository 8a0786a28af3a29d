# The study, and what several rules ask of it. No rule stands here.

import os
import re
import shutil
import sys
from pathlib import Path

from genomem.config import (
    DEFAULT_STUDY,
    dump_study,
    load_study,
    parse_study,
    stage_digest,
)
from genomem.errors import GenomemError
from genomem.files import atomic_path, check_folder
from genomem.layout import Layout


def read_study():
    """The study that the command line asks for; without --configfile the default one under --config."""
    if workflow.configfiles:
        origin = ", ".join(str(path) for path in workflow.configfiles)
        return parse_study(config, origin=origin)
    default = Path(str(workflow.current_basedir)).parents[1] / DEFAULT_STUDY
    return load_study(default, overrides=config)


def write_resolved_study():
    """Writes the study, every default spelt out, to where all jobs read it."""
    text = dump_study(study)
    path = layout.resolved_study
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def resolved_study(wildcards, output):
    """The path of the resolved study. Snakemake does not record a parameter that is made from
    `output`, so two studies that share a download do not take it from each other."""
    return str(layout.resolved_study)


def digest(stage):
    """A parameter that changes with the parts of the study that the stage depends on, and with no other."""
    return lambda wildcards: stage_digest(study, stage, **keys_of(wildcards))


def keys_of(wildcards):
    """The keys of the study among the wildcards of a job."""
    keys = {key: wildcards[key] for key in wildcards.keys() if key in KEYS}
    if "genome_file" in wildcards.keys():
        keys["genome"] = GENOME_FILES[wildcards.genome_file]
    if "benchmark_directory" in wildcards.keys():
        keys["dataset"] = BENCHMARK_DIRECTORIES[wildcards.benchmark_directory]
    if "seed" in keys:
        keys["seed"] = int(keys["seed"])
    return keys


def one_of(keys):
    """A regular expression that matches these keys of the study and nothing else."""
    return "|".join(re.escape(str(key)) for key in keys) or "(?!)"


def genome_store(genome):
    return [layout.genome_store(genome) / name for name in ("bases.u8", "manifest.json")]


def benchmark_store(dataset):
    names = ("sequences.u8", "index.npz", "manifest.json")
    return [layout.benchmark_store(dataset) / name for name in names]


def trained(folder):
    """The files that every training job leaves, weights first."""
    names = ("model.safetensors", "model.json", "metrics.jsonl", "record.json")
    return [folder / name for name in names]


def start_of_finetuning(wildcards):
    """The weights that a fine-tuning job goes on from; none where the model starts from scratch."""
    if not study.models[wildcards.model].pretrain:
        return []
    seed = study.pretraining_seed(int(wildcards.seed))
    return trained(layout.pretrained(wildcards.model, seed))[:2]


def origins():
    """Where the data came from: the record of the simulation, and the provenance of each download."""
    genomes = GENOME_FILES.values() if study.pretrained_models else []
    downloaded = [layout.genome_provenance(name) for name in genomes]
    downloaded += [layout.benchmark_provenance(name) for name in BENCHMARK_DIRECTORIES.values()]
    return downloaded + ([layout.simulation_record] if study.is_simulated else [])


def manifests():
    """What is in the stores; genomes are tokenized only when a model is pretrained on them."""
    genomes = study.genomes if study.pretrained_models else []
    stores = [layout.genome_store(name) for name in genomes]
    stores += [layout.benchmark_store(name) for name in study.benchmarks]
    return [store / "manifest.json" for store in stores]


def launcher(processes):
    """The command that runs a verb in this many processes, which find each other on one machine."""
    if processes > 1:
        return f"torchrun --standalone --nproc-per-node {processes} -m genomem"
    return "genomem"


KEYS = ("genome", "dataset", "model", "seed")
try:
    study = read_study()
    layout = Layout(study)
    for folder in (layout.results, study.resources):
        check_folder(folder)
except GenomemError as error:
    # WorkflowError would print three lines about this file, where the mistake is not.
    sys.exit(f"genomem: error: {error}")

GENOME_FILES = {layout.genome_file(name): name for name, genome in study.genomes.items() if not genome.simulate}
BENCHMARK_DIRECTORIES = {layout.benchmark_directory(name): name for name, benchmark in study.benchmarks.items() if not benchmark.simulate}
GENOME_STORES = [file for genome in study.genomes for file in genome_store(genome)]

# `.venv/bin/snakemake` works in a shell that has not activated the environment, too.
if shutil.which("genomem") is None:
    os.environ.update(PATH=os.pathsep.join([*os.get_exec_path(), str(Path(sys.executable).parent)]))
