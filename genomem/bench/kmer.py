"""`genomem bench kmer`: bases a second that the k-mer memory learns and reads, all orders and both strands, against a Python dictionary.

Every row at every length has a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from genomem.bench.fresh_process import FreshProcessError, run_fresh
from genomem.bench.measure import Conditions, Measurement, PeakMemory, prepare, summarise, time_passes
from genomem.bench.results import Curve, Lines, Results, draw_curves, environment, write_results
from genomem.data.fasta import read_fasta
from genomem.errors import GenomemError
from genomem.evaluation.kmers import join
from genomem.files import make_folder
from genomem.ops import reference
from genomem.ops.kmer_memory import (
    KmerSettings,
    new_tables,
    parallel_kmer_memory,
    read_kmers,
    recurrent_kmer_memory,
    table_statistics,
    write_kmers,
)
from genomem.progress import say, track
from genomem.record import Stopwatch
from genomem.report.tables import Column, Row, count, fixed, memory, text_column

TITLE = "Speed of the k-mer memory"
DICTIONARY = "dictionary"
# Enough for a steady rate; a dictionary takes some kilobytes a base.
DICTIONARY_BP = 20_000
COLUMNS = (
    Column("length_bp", "bases", count),
    text_column("title", "row"),
    Column("bases_per_second", "bases/s", count),
    Column("bases_per_cpu_second", "bases/CPU s", count),
    Column("seconds", "seconds", fixed(4)),
    Column("cpu_seconds", "CPU s", fixed(4)),
    Column("peak_memory_bytes", "peak", memory),
    text_column("note", "note"),
)
TITLES = {
    "learn": "learn",
    "learn_chained": "learn, chained tables",
    "read": "read",
    "both": "predict and learn",
    "tolerant": "predict and learn, tolerant contexts",
    "parallel": "predict and learn by sorting",
    DICTIONARY: "predict and learn, Python dictionary",
}
READING = (
    "All orders and both strands together. learn and predict and learn begin with empty tables each time; read has tables that have learnt "
    "the sequence. Times are medians, without compiling, which is done once for an installation.",
    "CPU s is the time of all threads together: it is the fairer number where other work ran on the machine.",
    "predict and learn by sorting is the parallel form in PyTorch; with --device cuda it alone runs on the GPU.",
    f"The Python dictionary is the definition of the memory, run on the first {DICTIONARY_BP:,} bases at most.",
    "For comparison: GeCo3 compresses yeast (12 million bases) at 480,000 bases/s at level 6 and 230,000 at level 12, measured once on one "
    "core. It does more than this: it mixes its models with a small network.",
)


@dataclass(frozen=True)
class KmerBenchSettings:
    """What is measured.

    Attributes:
        lengths: Bases of the sequence, T.
        orders: k of each table.
        slot_bits: A hashed table has 2 to this power slots.
        fasta: A file whose sequence is taken; None for random bases.
        rows: Names of `TITLES`; empty for all.
        conditions: Device, threads, repeats, limit.
    """

    lengths: tuple[int, ...] = (1_000_000, 4_000_000)
    orders: tuple[int, ...] = (11, 12, 14, 16, 20, 24)
    slot_bits: int = 24
    fasta: Path | None = None
    rows: tuple[str, ...] = ()
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def memory(self) -> KmerSettings:
        """The memory that is measured."""
        return KmerSettings(self.orders, slot_bits=self.slot_bits)


def bench_kmer(settings: KmerBenchSettings, folder: Path | None, show: Callable[[str], None]) -> None:
    """Measures every row at every length.

    Args:
        settings: What is measured.
        folder: Where `kmer.json`, `kmer.md` and `kmer.svg` are written; None: nowhere.
        show: Gets the lines of the table as they come.

    Raises:
        GenomemError: A row is unknown, the orders and slots do not fit, the file is no FASTA or too short, there is no such device, or
            `folder` is a file.
    """
    names, device = _chosen(settings), settings.conditions.device_name()
    if folder is not None:
        make_folder(folder)
    stopwatch, machine = Stopwatch(), environment(settings.conditions, device, ["numba"])
    lines = Lines(COLUMNS, {"title": max((TITLES[name] for name in names), key=len)})
    show(lines.heading)
    cells = []
    for cell in _measured(names, settings):
        cells.append(cell)
        show(lines.row(cell))
    if folder is not None:
        run = {key: value for key, value in stopwatch.run().items() if key in ("started", "wall_seconds")}
        shown = asdict(settings) | {"rows": names, "fasta": None if settings.fasta is None else str(settings.fasta)}
        results = Results("kmer", TITLE, _command(settings, names), COLUMNS, cells, machine, shown, READING, run)
        write_results(folder, results, _figure(cells))


def measure_cell(name: str, settings: KmerBenchSettings, length: int, deadline: float) -> Measurement:
    """Measures one row at one length, in the process that it is called in.

    Args:
        name: One of `TITLES`.
        settings: Of the run.
        length: T.
        deadline: When the process is ended, on `time.monotonic`.
    """
    conditions, bases = settings.conditions, read_bases(settings, length)
    prepare(conditions)
    # Compiles what is not compiled yet.
    _work(name, settings, bases[:64])()
    peak = PeakMemory(conditions.device if name == "parallel" else "cpu")
    passes = time_passes(_work(name, settings, bases), conditions, deadline)
    return summarise(passes, conditions, peak.bytes(), _fullness(name, settings, bases))


def read_bases(settings: KmerBenchSettings, length: int) -> np.ndarray:
    """Returns the sequence, `[length]` uint8: records of the file one after the other, 4 between them; or random bases.

    Raises:
        GenomemError: The file is no FASTA, or has fewer bases.
    """
    if settings.fasta is None:
        return np.random.default_rng(0).integers(0, 4, length, dtype=np.uint8)
    found = join(np.frombuffer(sequence, np.uint8) for _, sequence, _ in read_fasta(settings.fasta))[:length]
    if len(found) < length:
        raise GenomemError(f"{settings.fasta}: {len(found)} bases, and --lengths asks for {length}; ask for fewer")
    return np.minimum(found, 4)


def _work(name: str, settings: KmerBenchSettings, bases: np.ndarray) -> Callable[[], object]:
    """Returns one pass."""
    own, threads = _memory(name, settings), settings.conditions.threads
    if name == DICTIONARY:
        return lambda: reference.kmer_memory(bases[:DICTIONARY_BP].tolist(), own.orders)
    if name == "parallel":
        on_device = torch.from_numpy(bases).to(settings.conditions.device)
        return lambda: parallel_kmer_memory(own, on_device)
    if name == "read":
        tables = new_tables(own)
        write_kmers(tables, bases)
        return lambda: read_kmers(tables, bases, threads=threads)
    run = write_kmers if name in ("learn", "learn_chained") else recurrent_kmer_memory
    return lambda: run(new_tables(own), bases, threads=threads)


def _memory(name: str, settings: KmerBenchSettings) -> KmerSettings:
    if name == "learn_chained":
        return replace(settings.memory, layout="chained")
    return replace(settings.memory, tolerant_orders=tuple(order for order in settings.orders if order >= 16) if name == "tolerant" else ())


def _fullness(name: str, settings: KmerBenchSettings, bases: np.ndarray) -> str:
    """Returns how full the tables are after learning, of the row that learns and does nothing else; of others nothing."""
    if name != "learn":
        return ""
    tables = new_tables(settings.memory)
    write_kmers(tables, bases)
    found = [table_statistics(table) for table in tables.tables]
    return f"fullest {max(one.load for one in found):.0%}, {sum(one.dropped for one in found):,} writes dropped"


def _measured(names: tuple[str, ...], settings: KmerBenchSettings) -> Iterator[Row]:
    """Yields a row of the table for every length and name; what cannot be measured says why in its note."""
    cells = [(length, name) for length in sorted(set(settings.lengths)) for name in names]
    for length, name in track(cells, "bench kmer", unit="cells"):
        yield {"row": name, "title": TITLES[name], "length_bp": length} | _try(name, settings, length)


def _try(name: str, settings: KmerBenchSettings, length: int) -> Row:
    limit = settings.conditions.limit_seconds
    try:
        found = run_fresh(measure_cell, name, settings, length, time.monotonic() + limit, limit_seconds=limit)
    except FreshProcessError as error:
        say(f"{TITLES[name]}, {length} bases: {error}")
        return {"outcome": str(error), "note": str(error).split(":")[0]}
    bases = min(length, DICTIONARY_BP) if name == DICTIONARY else length
    speeds = {"bases_per_second": bases / found.seconds, "bases_per_cpu_second": bases / found.cpu_seconds if found.cpu_seconds else None}
    return asdict(found) | speeds | {"outcome": "measured"}


def _chosen(settings: KmerBenchSettings) -> tuple[str, ...]:
    unknown = [name for name in settings.rows if name not in TITLES]
    if unknown:
        raise GenomemError(f"--rows: unknown {', '.join(map(repr, unknown))}; known: {', '.join(TITLES)}")
    try:
        _memory("learn", settings)
    except ValueError as error:
        raise GenomemError(f"--orders, --slot-bits: {error}") from None
    read_bases(settings, max(settings.lengths))
    return tuple(name for name in TITLES if name in settings.rows or not settings.rows)


def _command(settings: KmerBenchSettings, names: tuple[str, ...]) -> str:
    """Returns the command that repeats the run."""
    flags = {name: ",".join(map(str, getattr(settings, name))) for name in ("lengths", "orders")} | {"slot-bits": str(settings.slot_bits)}
    flags |= {} if settings.fasta is None else {"fasta": str(settings.fasta)}
    flags |= {} if names == tuple(TITLES) else {"rows": ",".join(names)}
    return " ".join(["genomem bench kmer", *(f"--{flag} {value}" for flag, value in flags.items()), settings.conditions.flags()])


def _figure(cells: list[Row]) -> str:
    curves = []
    for name in dict.fromkeys(cell["row"] for cell in cells):
        speeds = ((cell["length_bp"], cell.get("bases_per_second")) for cell in cells if cell["row"] == name)
        curves.append(Curve(TITLES[name], [(length, speed) for length, speed in speeds if speed], is_guide=name == DICTIONARY))
    return draw_curves("kmer", curves, title=f"{TITLE}: higher is better", x="bases of the sequence", y="bases per second")
