"""The verbs around the k-mer memory: learn tables, and score a sequence beside compressors."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genomem.cli.arguments import whole_number, whole_numbers, words


def add_verbs(verbs) -> None:
    """Adds `memorize` and `compress-score`."""
    summary = "not a stage: learn the k-mers of FASTA files into a file of tables"
    memorize = verbs.add_parser("memorize", help=summary, description="Learn the k-mers of FASTA files into a file of tables, in one pass.")
    memorize.add_argument("fasta", type=Path, nargs="+", metavar="FASTA", help="plain, gzip or bgzip")
    memorize.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tables, such as yeast.safetensors")
    memorize.add_argument("--orders", type=whole_numbers, default=(11, 12, 14, 16, 20, 24), metavar="K,K", help="rising, from 1 to 24")
    slots = "a hashed table has 2 to this power slots; else from the size of the files: three quarters full if no k-mer comes twice"
    memorize.add_argument("--slot-bits", type=whole_number, metavar="N", help=slots)
    memorize.add_argument("--layout", choices=("open", "chained"), default="open", help="of hashed tables; both hold the same")
    memorize.add_argument("--count-bits", type=int, choices=(8, 16), default=16, help="of a count; those of a row are halved on overflow")
    memorize.add_argument("--one-strand", action="store_true", help="leave out the other strand")
    memorize.set_defaults(run=_memorize)
    summary = "not a stage: bits per base of a sequence, from nothing or given others, beside compressors"
    score = verbs.add_parser("compress-score", help=summary, description="Bits per base of a sequence, each predicted before it is learnt.")
    score.add_argument("fasta", type=Path, metavar="FASTA", help="file of the sequence")
    score.add_argument("--chrom", type=words, default=(), metavar="NAME,NAME", help="some records only")
    given = score.add_mutually_exclusive_group()
    given.add_argument("--given", type=Path, nargs="+", default=(), metavar="FASTA", help="what is read before and not scored")
    given.add_argument("--memory", type=Path, metavar="FILE", help="tables of `genomem memorize` to start from")
    score.add_argument("--out", type=Path, metavar="FOLDER", help="also write the record there, as JSON")
    score.set_defaults(run=_compress_score)


def table_lines(columns, rows: Iterable[dict[str, Any]]) -> list[str]:
    """Returns heading and rows of a table for a terminal, its columns aligned."""
    texts = [[column.title for column in columns], *([column.text(row) for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*texts, strict=True)]
    return ["  ".join(_cell(*part) for part in zip(columns, line, widths, strict=True)).rstrip() for line in texts]


def _cell(column, text: str, width: int) -> str:
    return text.rjust(width) if column.is_number else text.ljust(width)


def _memorize(arguments: argparse.Namespace) -> None:
    from genomem.analysis.kmer_tables import build_settings, memorize, most_bases

    settings = build_settings(
        most_bases(arguments.fasta),
        slot_bits=arguments.slot_bits,
        orders=arguments.orders,
        layout=arguments.layout,
        count_bits=arguments.count_bits,
        inverted_repeats=not arguments.one_strand,
    )
    learnt = memorize(arguments.fasta, arguments.out, settings)
    dropped = f", {learnt.dropped:,} writes dropped because a table was full" if learnt.dropped else ""
    print(
        f"{arguments.out}: {learnt.bases:,} bases learnt, {learnt.state_bytes:,} bytes, {learnt.seconds:.1f} s, "
        f"{learnt.bases / learnt.seconds:,.0f} bases/s{dropped}"
    )


def _compress_score(arguments: argparse.Namespace) -> None:
    from genomem.analysis.compression import Request, compress_score
    from genomem.report.tables import Column, count, fixed, memory, text_column

    options = [("--chrom", ",".join(arguments.chrom)), ("--given", " ".join(map(str, arguments.given))), ("--memory", arguments.memory)]
    command = " ".join(["genomem compress-score", str(arguments.fasta), *(f"{name} {value}" for name, value in options if value)])
    request = Request(arguments.fasta, arguments.chrom, tuple(arguments.given), arguments.memory)
    record = compress_score(request, arguments.out, command)
    order, share = record["settings"]["sure_order"], record["settings"]["sure_probability"]
    columns = (
        text_column("row", "row"),
        Column("bits_all", "bits/base", fixed(4)),
        Column("bits_sure", "where sure", fixed(4)),
        Column("bits_unsure", "elsewhere", fixed(4)),
        Column("seconds", "seconds", fixed(1)),
        Column("state_bytes", "state", memory),
        text_column("note", "note"),
    )
    print("\n".join(table_lines(columns, record["rows"])))
    positions = record["positions"]
    print(
        f"{count(positions['all'])} bases scored, {count(positions['sure'])} of them sure (order {order} has seen the context and gives "
        f"a base {share:g} or more), {count(positions['skipped'])} skipped that are not A, C, G or T"
    )
    if arguments.out:
        print(f"record: {(arguments.out / 'compress_score.json').resolve()}")
