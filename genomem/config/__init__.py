"""The study: one YAML file that is the whole experiment.

Snakemake and the command line read it through the same schema; `stage_digest` says which results a change touches.
"""

from genomem.config.digests import STAGE_VERSIONS, STAGES, stage_digest
from genomem.config.kmer_memory import KmerMemory
from genomem.config.mixers import MIXER_OPTIONS, Attention, CausalConv, Layer, TitansLMM
from genomem.config.reading import DEFAULT_STUDY, dump_study, load_study, merge, parse_study
from genomem.config.schema import (
    CNN,
    Benchmark,
    Evaluate,
    Finetune,
    Genome,
    Model,
    Pretrain,
    Quoted,
    Recall,
    SequenceModel,
    SimulatedBenchmark,
    SimulatedGenome,
    Source,
    Study,
    is_bidirectional,
)
from genomem.config.section import Section

__all__ = [
    "CNN",
    "DEFAULT_STUDY",
    "MIXER_OPTIONS",
    "STAGES",
    "STAGE_VERSIONS",
    "Attention",
    "Benchmark",
    "CausalConv",
    "Evaluate",
    "Finetune",
    "Genome",
    "KmerMemory",
    "Layer",
    "Model",
    "Pretrain",
    "Quoted",
    "Recall",
    "Section",
    "SequenceModel",
    "SimulatedBenchmark",
    "SimulatedGenome",
    "Source",
    "Study",
    "TitansLMM",
    "dump_study",
    "is_bidirectional",
    "load_study",
    "merge",
    "parse_study",
    "stage_digest",
]
