"""`genomem bench memory`: forward and backward of one layer, ours against peers, attention, and the floor of its matrix products.

A row is a layer, or the floor: the time that the matrix products of our layer would take at the rate of one large product, measured in
the same run. Every row at every length has a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from genomem.bench.fresh_process import FreshProcessError, run_fresh
from genomem.bench.measure import Conditions, Measurement, PeakMemory, prepare, summarise, time_matrix_products, time_passes
from genomem.bench.operations import FORWARD_AND_BACKWARD, titans_lmm_multiply_adds
from genomem.bench.results import Curve, Lines, Results, draw_curves, environment, write_results
from genomem.errors import GenomemError
from genomem.files import make_folder
from genomem.layers import build_mixer
from genomem.progress import say, track
from genomem.record import Stopwatch
from genomem.report.tables import Column, Row, count, fixed, memory, text_column

TITLE = "Speed and memory of one layer"
FLOOR, OURS = "floor", "titans_lmm"
INSTALL_PEERS = "not installed: pip install 'genomem[bench]'"
COLUMNS = (
    Column("length_tokens", "tokens", count),
    text_column("title", "row"),
    Column("tokens_per_second", "tokens/s", count),
    Column("seconds", "seconds", fixed(4)),
    Column("cpu_seconds", "CPU s", fixed(4)),
    Column("peak_memory_bytes", "peak", memory),
    Column("floor_ratio", "floor/time", fixed(2)),
    text_column("note", "note"),
)


@dataclass(frozen=True)
class MemorySettings:
    """What is measured.

    Attributes:
        lengths: Tokens of the one sequence in a batch, T.
        dim: Width D of every layer.
        heads: H, where a layer has heads.
        chunk_size: Tokens a chunk, where a layer has chunks.
        rows: Names of `ROWS`; empty for all.
        conditions: Device, threads, repeats, limit.
    """

    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    dim: int = 256
    heads: int = 4
    chunk_size: int = 64
    rows: tuple[str, ...] = ()
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(frozen=True)
class Layer:
    """A layer that is measured.

    Attributes:
        title: In the table; may name fields of the settings.
        build: Imports what the layer needs and builds it. The layer returns its output first.
        autocast: Whether it runs under autocast to bfloat16.
        package: The optional package that it comes from.
    """

    title: str
    build: Callable[[MemorySettings], nn.Module]
    autocast: bool = False
    package: str = ""


def _titans_lmm(settings: MemorySettings) -> nn.Module:
    return build_mixer(OURS, settings.dim, heads=settings.heads, chunk_size=settings.chunk_size)


def _titans_lmm_deep(settings: MemorySettings) -> nn.Module:
    return build_mixer(OURS, settings.dim, heads=settings.heads, depth=2, gradient_block=settings.chunk_size)


def _attention(settings: MemorySettings) -> nn.Module:
    return build_mixer("attention", settings.dim, heads=settings.heads)


def _titans_pytorch(settings: MemorySettings) -> nn.Module:
    from titans_pytorch import NeuralMemory

    return NeuralMemory(dim=settings.dim, chunk_size=settings.chunk_size)


def _titans_pytorch_heads(settings: MemorySettings) -> nn.Module:
    from titans_pytorch import NeuralMemory

    return NeuralMemory(dim=settings.dim, chunk_size=settings.chunk_size, heads=settings.heads, dim_head=settings.dim // settings.heads)


LAYERS = {
    OURS: Layer("titans_lmm", _titans_lmm),
    "titans_lmm_bfloat16": Layer("titans_lmm bfloat16", _titans_lmm, autocast=True),
    "titans_lmm_deep": Layer("titans_lmm depth 2", _titans_lmm_deep),
    "titans_pytorch": Layer("titans-pytorch defaults", _titans_pytorch, package="titans-pytorch"),
    "titans_pytorch_heads": Layer("titans-pytorch {heads} heads", _titans_pytorch_heads, package="titans-pytorch"),
    "attention": Layer("attention", _attention),
}
READING = (
    "One forward and one backward pass of one layer over one sequence, gradients of its input and its weights included. Times are medians.",
    "CPU s is the time of all threads together: it is the fairer number where other work ran on the machine.",
    "peak is the most memory held at once for weights, input, activations and gradients, on top of the process with all its libraries.",
    "matrix-product floor is three times the multiply-adds of a forward pass of titans_lmm (the backward pass counts as two), at the rate "
    "of one large float32 product, measured at each length. floor/time is the floor over the layer's time: 1.00 would be products alone.",
    "titans-pytorch learns a deep memory (two matrices, hidden width 4 times the input) with gradients taken at older weights, and reads "
    "the memory before the chunk: another model than titans_lmm, so that comparison is of what each package gives for the same width, "
    "not of two programs for one equation. titans_lmm depth 2 has a memory of the same shape; its reads see the writes of their own chunk.",
)
# The floor comes first, so that the line of every other row can be held against it.
ROWS = (FLOOR, *LAYERS)


def bench_memory(settings: MemorySettings, folder: Path | None, show: Callable[[str], None]) -> None:
    """Measures every row at every length.

    Args:
        settings: What is measured.
        folder: Where `memory.json`, `memory.md` and `memory.svg` are written; None: nowhere.
        show: Gets the lines of the table as they come.

    Raises:
        GenomemError: A row is unknown, a size does not fit, there is no such device, or `folder` is a file.
    """
    names, device = _chosen(settings), settings.conditions.device_name()
    if folder is not None:
        make_folder(folder)
    stopwatch, machine = Stopwatch(), environment(settings.conditions, device, {layer.package for layer in LAYERS.values()} - {""})
    lines = Lines(COLUMNS, {"title": max((_title(name, settings) for name in names), key=len)})
    show(lines.heading)
    cells = []
    for cell in _measured(names, settings):
        cells.append(cell)
        show(lines.row(cell))
    if folder is not None:
        run = {key: value for key, value in stopwatch.run().items() if key in ("started", "wall_seconds")}
        shown = asdict(settings) | {"rows": names}
        results = Results("memory", TITLE, _command(settings, names), COLUMNS, cells, machine, shown, READING, run)
        write_results(folder, results, _figure(cells, settings))


def measure_cell(name: str, settings: MemorySettings, length: int, deadline: float) -> Measurement:
    """Measures one row at one length, in the process that it is called in.

    Args:
        name: One of `ROWS`.
        settings: Of the run.
        length: T.
        deadline: When the process is ended, on `time.monotonic`.
    """
    if name != FLOOR:
        return _measure_layer(LAYERS[name], settings, length, deadline)
    forward = titans_lmm_multiply_adds(length, settings.dim, settings.heads, settings.chunk_size)
    return time_matrix_products(FORWARD_AND_BACKWARD * forward, settings.conditions, deadline)


def _measure_layer(layer: Layer, settings: MemorySettings, length: int, deadline: float) -> Measurement:
    conditions = settings.conditions
    prepare(conditions)
    # A rehearsal on a narrow layer: what libraries load and allocate on first use is no memory of the layer.
    _work(layer, replace(settings, dim=8 * settings.heads), 2 * settings.chunk_size)[0]()
    peak = PeakMemory(conditions.device)
    step, hidden = _work(layer, settings, length)
    passes = time_passes(step, conditions, deadline)
    note = "" if hidden.grad is not None and hidden.grad.isfinite().all() else "gradient is not finite"
    return summarise(passes, conditions, peak.bytes(), note)


def _work(layer: Layer, settings: MemorySettings, length: int) -> tuple[Callable[[], None], Tensor]:
    """Builds the layer and its input `[1, T, D]`; returns one pass, forward and backward, and the input."""
    device = settings.conditions.device
    module = layer.build(settings).to(device)
    hidden = torch.randn(1, length, settings.dim, device=device, requires_grad=True)
    upstream = torch.randn(1, length, settings.dim, device=device)

    def step() -> None:
        module.zero_grad()
        hidden.grad = None
        with torch.autocast(device, torch.bfloat16, enabled=layer.autocast):
            output = module(hidden)[0]
        output.backward(upstream.to(output.dtype))

    return step, hidden


def _measured(names: tuple[str, ...], settings: MemorySettings) -> Iterator[Row]:
    """Yields a row of the table for every length and name; what cannot be measured says why in its note."""
    absent = {name for name in names if name != FLOOR and _is_absent(LAYERS[name].package)}
    for name in sorted(absent):
        say(f"{_title(name, settings)}: {INSTALL_PEERS}")
    floor: dict[int, float] = {}
    cells = [(length, name) for length in sorted(set(settings.lengths)) for name in names]
    for length, name in track(cells, "bench memory", unit="cells"):
        found: Row = {"outcome": INSTALL_PEERS, "note": INSTALL_PEERS} if name in absent else _try(name, settings, length)
        if name == FLOOR and "seconds" in found:
            floor[length] = found["seconds"]
        if name == OURS and "seconds" in found and length in floor:
            found["floor_ratio"] = floor[length] / found["seconds"]
        yield {"row": name, "title": _title(name, settings), "length_tokens": length} | found


def _try(name: str, settings: MemorySettings, length: int) -> Row:
    limit = settings.conditions.limit_seconds
    try:
        found = run_fresh(measure_cell, name, settings, length, time.monotonic() + limit, limit_seconds=limit)
    except FreshProcessError as error:
        say(f"{_title(name, settings)}, {length} tokens: {error}")
        return {"outcome": str(error), "note": str(error).split(":")[0]}
    return asdict(found) | {"outcome": "measured", "tokens_per_second": length / found.seconds}


def _chosen(settings: MemorySettings) -> tuple[str, ...]:
    unknown = [name for name in settings.rows if name not in ROWS]
    if unknown:
        raise GenomemError(f"--rows: unknown {', '.join(map(repr, unknown))}; known: {', '.join(ROWS)}")
    if settings.dim % (2 * settings.heads):
        raise GenomemError(f"--dim {settings.dim} is not a multiple of twice --heads {settings.heads}; change one of them")
    return tuple(name for name in ROWS if name in settings.rows or not settings.rows)


def _is_absent(package: str) -> bool:
    return bool(package) and find_spec(package.replace("-", "_")) is None


def _title(name: str, settings: MemorySettings) -> str:
    return "matrix-product floor" if name == FLOOR else LAYERS[name].title.format(heads=settings.heads)


def _command(settings: MemorySettings, names: tuple[str, ...]) -> str:
    """Returns the command that repeats the run."""
    flags = {"lengths": ",".join(map(str, settings.lengths)), "dim": settings.dim, "heads": settings.heads, "chunk": settings.chunk_size}
    flags |= {"rows": ",".join(names)} if names != ROWS else {}
    return " ".join(["genomem bench memory", *(f"--{flag} {value}" for flag, value in flags.items()), settings.conditions.flags()])


def _figure(cells: list[Row], settings: MemorySettings) -> str:
    curves = []
    for name in dict.fromkeys(cell["row"] for cell in cells):
        speeds = ((cell["length_tokens"], cell.get("tokens_per_second")) for cell in cells if cell["row"] == name)
        curves.append(Curve(_title(name, settings), [(length, speed) for length, speed in speeds if speed], is_guide=name == FLOOR))
    title = f"Forward and backward of one layer, width {settings.dim}: higher is better"
    return draw_curves("memory", curves, title=title, x="tokens in the sequence", y="tokens per second")
