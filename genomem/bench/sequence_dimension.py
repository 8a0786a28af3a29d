"""`genomem bench sequence_dimension`: a stack of sequence-dimension layers against a Transformer of the same width and as many layers.

The Transformer stands in the table twice: holding the n-by-n matrix of every head, as it is written, and with a fused kernel that never
holds it. Weights and outputs of the two are the same. Every row at every length has a process of its own.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genomem.bench.fresh_process import FreshProcessError, run_fresh
from genomem.bench.measure import Conditions, Measurement, PeakMemory, prepare, summarise, time_passes
from genomem.bench.results import Curve, Lines, Results, draw_curves, environment, write_results
from genomem.errors import GenomemError
from genomem.files import make_folder
from genomem.layers import build_mixer
from genomem.models.block import Block
from genomem.progress import say, track
from genomem.record import Stopwatch
from genomem.report.tables import Column, Row, count, fixed, memory, text_column

TITLE = "Time and memory of the sequence dimension"
OURS, MATRIX, FUSED = "sequence_dimension", "transformer", "transformer_fused"
TITLES = {OURS: "sequence_dimension", MATRIX: "Transformer, n x n matrix", FUSED: "Transformer, fused kernel"}
MLP_RATIO = 2
# Beyond this the matrices of one layer and their gradients fill the memory of a workstation.
LONGEST_MATRIX = 8192
COLUMNS = (
    Column("length_tokens", "tokens", count),
    Column("batch", "batch", count),
    text_column("title", "row"),
    Column("parameters", "parameters", count),
    Column("seconds", "seconds", fixed(4)),
    Column("cpu_seconds", "CPU s", fixed(4)),
    Column("peak_memory_bytes", "peak", memory),
    *(
        Column(f"{part}_over_{row}", f"{part}/{short}", fixed(2))
        for row, short in ((MATRIX, "n x n"), (FUSED, "fused"))
        for part in ("time", "peak")
    ),
    Column("slope", "slope", fixed(2)),
    text_column("note", "note"),
)
READING = (
    "One forward and one backward pass of a stack of blocks (mixer and gated MLP), gradients of its input and its weights included. "
    "Times are medians.",
    "CPU s is the time of all threads together: it is the fairer number where other work ran on the machine, so that ratios and slopes are "
    "of CPU s, or of seconds on a GPU.",
    "peak is the most memory held at once for weights, input, activations and gradients, on top of the process with all its libraries.",
    "time/n x n and peak/n x n are ours over those of the Transformer that holds its matrices; /fused, over the fused kernel's.",
    "slope is that of log time over log tokens, from the shortest length with one sequence in a batch to this: 1 is linear, 2 quadratic.",
)


@dataclass(frozen=True)
class SequenceDimensionSettings:
    """What is measured.

    Attributes:
        lengths: Tokens of a sequence, T.
        batch_tokens: Tokens of a batch: as many sequences as fit in, at least one.
        dim: Width D.
        layers: Blocks.
        heads: H.
        slots: m of our layer.
        block: C of our layer.
        conditions: Device, threads, repeats, limit.
    """

    lengths: tuple[int, ...] = (1000, 4096, 16384, 65536)
    batch_tokens: int = 8000
    dim: int = 128
    layers: int = 2
    heads: int = 4
    slots: int = 32
    block: int = 64
    conditions: Conditions = field(default_factory=Conditions)

    def batch(self, length: int) -> int:
        """Returns the sequences of a batch."""
        return max(1, self.batch_tokens // length)


def bench_sequence_dimension(settings: SequenceDimensionSettings, folder: Path | None, show: Callable[[str], None]) -> None:
    """Measures every row at every length, and writes the results.

    Args:
        settings: What is measured.
        folder: Where the results are written, as JSON, Markdown and SVG; None: nowhere.
        show: Gets the lines of the table as they come.

    Raises:
        GenomemError: A size does not fit, there is no such device, or `folder` is a file.
    """
    device = _checked(settings)
    if folder is not None:
        make_folder(folder)
    stopwatch, machine = Stopwatch(), environment(settings.conditions, device)
    lines = Lines(COLUMNS, {"title": max(TITLES.values(), key=len)})
    show(lines.heading)
    cells: list[Row] = []
    for length in sorted(set(settings.lengths)):
        for row in _with_ratios(list(_at_length(length, settings)), cells):
            show(lines.row(row))
            cells.append(row)
    if folder is not None:
        run = {key: value for key, value in stopwatch.run().items() if key in ("started", "wall_seconds")}
        results = Results(OURS, TITLE, _command(settings), COLUMNS, cells, machine, asdict(settings), READING, run)
        write_results(folder, results, _figure(cells, settings))


def measure_stack(name: str, settings: SequenceDimensionSettings, length: int, deadline: float) -> tuple[int, Measurement]:
    """Returns the parameters of a stack and what was measured of it, in the process that it is called in.

    Args:
        name: One of `TITLES`.
        settings: Of the run.
        length: T.
        deadline: When the process is ended, on `time.monotonic`.
    """
    conditions = settings.conditions
    prepare(conditions)
    # A rehearsal on a narrow stack: what libraries load and allocate on first use is no memory of the layers.
    _work(name, replace(settings, dim=8 * settings.heads), 1, 2 * settings.block)[0]()
    peak = PeakMemory(conditions.device)
    step, stack, hidden = _work(name, settings, settings.batch(length), length)
    passes = time_passes(step, conditions, deadline)
    note = "" if hidden.grad is not None and hidden.grad.isfinite().all() else "gradient is not finite"
    return sum(parameter.numel() for parameter in stack.parameters()), summarise(passes, conditions, peak.bytes(), note)


def _work(name: str, settings: SequenceDimensionSettings, batch: int, length: int) -> tuple[Callable[[], None], nn.Module, Tensor]:
    """Builds the stack and its input; returns one pass, forward and backward, the stack and the input."""
    device, shape = settings.conditions.device, (batch, length, settings.dim)
    stack = nn.ModuleList(Block(settings.dim, _mixer(name, settings), MLP_RATIO * settings.dim, 0.0) for _ in range(settings.layers))
    stack = stack.to(device)
    hidden, upstream = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)

    def step() -> None:
        stack.zero_grad()
        hidden.grad = None
        with _kernel(name):
            output = hidden
            for block in stack:
                output, _ = block(output, None, None, None)
        output.backward(upstream)

    return step, stack, hidden


def _mixer(name: str, settings: SequenceDimensionSettings) -> nn.Module:
    if name == OURS:
        return build_mixer(OURS, settings.dim, heads=settings.heads, slots=settings.slots, block=settings.block)
    return build_mixer("attention", settings.dim, heads=settings.heads)


def _kernel(name: str) -> AbstractContextManager:
    """Has attention computed as it is written where the row holds the matrix."""
    return sdpa_kernel(SDPBackend.MATH) if name == MATRIX else contextlib.nullcontext()


def _at_length(length: int, settings: SequenceDimensionSettings) -> Iterator[Row]:
    """Yields a row of the table for every stack; what cannot be measured says why in its note."""
    for name in track(list(TITLES), f"bench {OURS}, {length} tokens", unit="rows"):
        yield {"row": name, "title": TITLES[name], "length_tokens": length, "batch": settings.batch(length)} | _try(name, settings, length)


def _try(name: str, settings: SequenceDimensionSettings, length: int) -> Row:
    limit = settings.conditions.limit_seconds
    if name == MATRIX and length > LONGEST_MATRIX:
        gigabytes = 4e-9 * settings.batch(length) * settings.heads * length**2
        return {"outcome": "too long", "note": f"not run over {LONGEST_MATRIX:,} tokens: one layer's matrices are {gigabytes:,.0f} GB"}
    try:
        parameters, found = run_fresh(measure_stack, name, settings, length, time.monotonic() + limit, limit_seconds=limit)
    except FreshProcessError as error:
        say(f"{TITLES[name]}, {length} tokens: {error}")
        return {"outcome": str(error), "note": str(error).split(":")[0]}
    return asdict(found) | {"outcome": "measured", "parameters": parameters}


def _with_ratios(rows: list[Row], earlier: list[Row]) -> list[Row]:
    """Returns the rows of one length with the ratios of ours to the others, and with slopes from the shortest earlier length."""
    by_name = {row["row"]: row for row in rows}
    for row in rows:
        first = next((cell for cell in earlier if cell["row"] == row["row"] and cell["batch"] == 1 and _time(cell)), None)
        if first and _time(row):
            row["slope"] = math.log(_time(row) / _time(first)) / math.log(row["length_tokens"] / first["length_tokens"])
    ours = by_name[OURS]
    for name in (MATRIX, FUSED):
        ours[f"time_over_{name}"] = _ratio(_time(ours), _time(by_name[name]))
        ours[f"peak_over_{name}"] = _ratio(ours.get("peak_memory_bytes"), by_name[name].get("peak_memory_bytes"))
    return rows


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def _time(row: Row) -> float:
    """Returns the seconds that ratios are made of; 0 where nothing was measured."""
    return row.get("cpu_seconds") or row.get("seconds") or 0.0


def _checked(settings: SequenceDimensionSettings) -> str:
    """Returns the name of the device."""
    if settings.dim % (2 * settings.heads):
        raise GenomemError(f"--dim {settings.dim} is not a multiple of twice --heads {settings.heads}; change one of them")
    return settings.conditions.device_name()


def _command(settings: SequenceDimensionSettings) -> str:
    """Returns the command that repeats the run."""
    names = ("batch_tokens", "dim", "layers", "heads", "slots", "block")
    flags = {"lengths": ",".join(map(str, settings.lengths))} | {name.replace("_", "-"): getattr(settings, name) for name in names}
    return " ".join(["genomem bench", OURS, *(f"--{flag} {value}" for flag, value in flags.items()), settings.conditions.flags()])


def _figure(cells: list[Row], settings: SequenceDimensionSettings) -> str:
    curves = []
    for name, title in TITLES.items():
        mine = [cell for cell in cells if cell["row"] == name and _time(cell)]
        curves.append(Curve(title, [(cell["length_tokens"], cell["batch"] * cell["length_tokens"] / _time(cell)) for cell in mine]))
    title = f"Forward and backward of {settings.layers} blocks, width {settings.dim}: higher is better"
    return draw_curves(OURS, curves, title=title, x="tokens in the sequence", y="tokens per second of CPU or GPU")
