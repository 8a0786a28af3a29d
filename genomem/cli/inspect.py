"""The topics of `genomem inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path

from genomem.cli.arguments import add_model, add_verb, read_finetuned_study, read_pretrained_study, show_line, whole_number, whole_numbers
from genomem.cli.kmer import table_lines
from genomem.errors import GenomemError


def add_topics(parser: argparse.ArgumentParser) -> None:
    """Adds a topic for each kind of memory."""
    topics = parser.add_subparsers(title="topics", metavar="TOPIC", required=True)
    _add_columns(topics)
    _add_hippo(topics)
    _add_kmer(topics)


def _add_columns(topics) -> None:
    summary = "columns, slots, repeats and k-mer distances of a sequence-dimension layer on a stretch of DNA"
    parser = add_model(add_verb(topics, "columns", _inspect_columns, summary))
    parser.add_argument("--dataset", help="a key under `benchmarks:`, to look into the model fine-tuned on it; else the pretrained one")
    parser.add_argument("--seed", type=int, help="of the training run; else the study's first")
    parser.add_argument("--layer", type=whole_number, default=1, help="which of the model's sequence-dimension layers, from 1")
    parser.add_argument("--fasta", type=Path, required=True, help="file with the stretch")
    parser.add_argument("--record", help="its record; else the first")
    parser.add_argument("--start", type=int, default=0, help="first base, 0-based")
    parser.add_argument("--end", type=int, help="base behind the last; else the end of the record")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files are written")


def _inspect_columns(arguments: argparse.Namespace) -> None:
    study = read_finetuned_study(arguments) if arguments.dataset else read_pretrained_study(arguments)
    seeds = study.seeds if arguments.dataset else study.pretrain.seeds
    seed = seeds[0] if arguments.seed is None else arguments.seed
    if seed not in seeds:
        raise GenomemError(f"{arguments.study}: no seed {seed}; it has {', '.join(map(str, seeds))}")
    from genomem.analysis.column_files import inspect_columns
    from genomem.analysis.columns import Subject, read_stretch

    stretch = read_stretch(arguments.fasta, arguments.record, arguments.start, arguments.end)
    subject = Subject(arguments.model, seed, arguments.dataset or "", arguments.layer)
    inspect_columns(study, subject, stretch, arguments.out, show_line)
    print(f"files: {arguments.out.resolve()}")


def _add_hippo(topics) -> None:
    summary = "what a HiPPO state of a few numbers still holds of the GC content and soft-masking along a chromosome"
    parser = topics.add_parser("hippo", help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("--fasta", type=Path, required=True, help="file with the chromosome")
    parser.add_argument("--record", help="its record; else the first")
    parser.add_argument("--start", type=int, default=0, help="first base, 0-based")
    parser.add_argument("--end", type=int, help="base behind the last; else the end of the record")
    parser.add_argument("--size", type=whole_number, default=64, metavar="N", help="coefficients a signal")
    parser.add_argument("--bin", type=whole_number, default=1000, metavar="BP", help="bases a step of the signal")
    parser.add_argument("--ends", type=whole_numbers, default=(), metavar="E,E", help="where the state is looked at; else at the end")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files are written")
    parser.set_defaults(run=_inspect_hippo)


def _inspect_hippo(arguments: argparse.Namespace) -> None:
    from genomem.analysis.columns import read_stretch
    from genomem.analysis.hippo_files import HippoView, inspect_hippo

    stretch = read_stretch(arguments.fasta, arguments.record, arguments.start, arguments.end)
    inspect_hippo(stretch, HippoView(arguments.size, arguments.bin, arguments.ends), arguments.out, show_line)
    print(f"files: {arguments.out.resolve()}")


def _add_kmer(topics) -> None:
    summary = "how full the k-mer tables of `genomem memorize` are: rows, probes, collisions, what was dropped"
    parser = topics.add_parser("kmer", help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("file", type=Path, metavar="FILE", help="the tables, such as yeast.safetensors")
    parser.add_argument("--json", action="store_true", help="print JSON, with settings and sources")
    parser.set_defaults(run=_inspect_kmer)


def _inspect_kmer(arguments: argparse.Namespace) -> None:
    import json

    from genomem.analysis.kmer_tables import describe_tables
    from genomem.report.tables import Column, count, fixed, percent

    found = describe_tables(arguments.file)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    columns = (
        Column("order", "order"),
        Column("rows", "rows", count),
        Column("used", "used", count),
        Column("load", "load", percent),
        Column("mean_probes", "mean probes", fixed(2)),
        Column("longest_probe", "longest", count),
        Column("collisions", "collisions", count),
        Column("dropped", "dropped", count),
        Column("halved", "halved", count),
        Column("state_bytes", "bytes", count),
    )
    print("\n".join(table_lines(columns, found["orders"])))
    sources = ", ".join(source["file"] for source in found["sources"])
    print(f"{count(found['bases'])} bases of {sources}, {count(found['state_bytes'])} bytes in all")
