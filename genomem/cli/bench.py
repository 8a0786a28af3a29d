"""The topics of `genomem bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from genomem.cli.arguments import seconds_above_zero, show_line, whole_number, whole_numbers, words


def add_topics(parser: argparse.ArgumentParser) -> None:
    """Adds a topic for each benchmark."""
    topics = parser.add_subparsers(title="topics", metavar="TOPIC", required=True)
    summary = "forward and backward of one memory layer, against peers, attention and matrix products"
    memory = topics.add_parser("memory", help=summary, description=summary[0].upper() + summary[1:] + ".")
    memory.add_argument("--lengths", type=whole_numbers, default=(1024, 4096, 16384, 65536), metavar="T,T", help="tokens of the sequence")
    memory.add_argument("--dim", type=whole_number, default=256, help="width of the layers")
    memory.add_argument("--heads", type=whole_number, default=4, help="heads of the layers that have several")
    memory.add_argument("--chunk", type=whole_number, default=64, help="tokens a chunk, of the layers that have chunks")
    memory.add_argument("--rows", type=words, default=(), metavar="ROW,ROW", help="some rows only; a wrong name lists them all")
    _conditions(memory).set_defaults(run=_bench_memory)
    summary = "HiPPO states of a long signal, against one product a token and matrix products"
    hippo = topics.add_parser("hippo", help=summary, description=summary[0].upper() + summary[1:] + ".")
    hippo.add_argument("--sizes", type=whole_numbers, default=(64, 256), metavar="N,N", help="coefficients a channel")
    hippo.add_argument("--channels", type=whole_numbers, default=(1, 64, 256), metavar="D,D", help="channels of the signal")
    hippo.add_argument("--tokens", type=whole_number, default=131_072, help="length of the signal")
    hippo.add_argument("--segment", type=whole_number, default=512, help="tokens between two states")
    hippo.add_argument("--rows", type=words, default=(), metavar="ROW,ROW", help="some rows only; a wrong name lists them all")
    _conditions(hippo).set_defaults(run=_bench_hippo)
    _add_sequence_dimension(topics)
    _add_kmer(topics)


def _add_sequence_dimension(topics) -> None:
    summary = "forward and backward of sequence-dimension layers, against a Transformer with and without its n-by-n matrix"
    parser = topics.add_parser("sequence_dimension", help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("--lengths", type=whole_numbers, default=(1000, 4096, 16384, 65536), metavar="T,T", help="tokens of a sequence")
    parser.add_argument("--batch-tokens", type=whole_number, default=8000, help="tokens of a batch, which has one sequence or more")
    parser.add_argument("--dim", type=whole_number, default=128, help="width of the layers")
    parser.add_argument("--layers", type=whole_number, default=2, help="layers of each stack")
    parser.add_argument("--heads", type=whole_number, default=4, help="heads of a layer")
    parser.add_argument("--slots", type=whole_number, default=32, help="slots of a head")
    parser.add_argument("--block", type=whole_number, default=64, help="columns that are seen one by one")
    _conditions(parser).set_defaults(run=_bench_sequence_dimension)


def _add_kmer(topics) -> None:
    summary = "bases a second that the k-mer memory learns and reads, against a dictionary"
    parser = topics.add_parser("kmer", help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("--lengths", type=whole_numbers, default=(1_000_000, 4_000_000), metavar="T,T", help="bases of the sequence")
    parser.add_argument("--orders", type=whole_numbers, default=(11, 12, 14, 16, 20, 24), metavar="K,K", help="bases of the contexts")
    parser.add_argument("--slot-bits", type=whole_number, default=24, help="binary logarithm of the slots of a hashed table")
    parser.add_argument("--fasta", type=Path, metavar="FILE", help="take its sequence; random bases otherwise")
    parser.add_argument("--rows", type=words, default=(), metavar="ROW,ROW", help="some rows only; a wrong name lists them all")
    _conditions(parser).set_defaults(run=_bench_kmer)


def _conditions(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the layers run")
    parser.add_argument("--threads", type=whole_number, default=1, help="threads of PyTorch on the CPU")
    parser.add_argument("--repeats", type=whole_number, default=3, help="timed passes after the warm-up; the median counts")
    parser.add_argument(
        "--limit-seconds", type=seconds_above_zero, default=120.0, metavar="S", help="the most time for one row at one length"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write the results there, as JSON, Markdown and SVG")
    return parser


def _bench_memory(arguments: argparse.Namespace) -> None:
    from genomem.bench.measure import Conditions
    from genomem.bench.memory import MemorySettings, bench_memory

    conditions = Conditions(arguments.device, arguments.threads, arguments.repeats, arguments.limit_seconds)
    settings = MemorySettings(arguments.lengths, arguments.dim, arguments.heads, arguments.chunk, arguments.rows, conditions)
    bench_memory(settings, arguments.out, show_line)
    if arguments.out:
        print(f"results: {(arguments.out / 'memory.md').resolve()}")


def _bench_sequence_dimension(arguments: argparse.Namespace) -> None:
    from genomem.bench.measure import Conditions
    from genomem.bench.sequence_dimension import SequenceDimensionSettings, bench_sequence_dimension

    conditions = Conditions(arguments.device, arguments.threads, arguments.repeats, arguments.limit_seconds)
    names = ("lengths", "batch_tokens", "dim", "layers", "heads", "slots", "block")
    settings = SequenceDimensionSettings(**{name: getattr(arguments, name) for name in names}, conditions=conditions)
    bench_sequence_dimension(settings, arguments.out, show_line)
    if arguments.out:
        print(f"results: {(arguments.out / 'sequence_dimension.md').resolve()}")


def _bench_hippo(arguments: argparse.Namespace) -> None:
    from genomem.bench.hippo import HippoSettings, bench_hippo
    from genomem.bench.measure import Conditions

    conditions = Conditions(arguments.device, arguments.threads, arguments.repeats, arguments.limit_seconds)
    settings = HippoSettings(arguments.sizes, arguments.channels, arguments.tokens, arguments.segment, arguments.rows, conditions)
    bench_hippo(settings, arguments.out, show_line)
    if arguments.out:
        print(f"results: {(arguments.out / 'hippo.md').resolve()}")


def _bench_kmer(arguments: argparse.Namespace) -> None:
    from genomem.bench.kmer import KmerBenchSettings, bench_kmer
    from genomem.bench.measure import Conditions

    conditions = Conditions(arguments.device, arguments.threads, arguments.repeats, arguments.limit_seconds)
    names = ("lengths", "orders", "slot_bits", "fasta", "rows")
    bench_kmer(KmerBenchSettings(**{name: getattr(arguments, name) for name in names}, conditions=conditions), arguments.out, show_line)
    if arguments.out:
        print(f"results: {(arguments.out / 'kmer.md').resolve()}")
