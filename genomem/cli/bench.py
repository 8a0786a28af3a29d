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
