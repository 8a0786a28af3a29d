"""`genomem bench hippo`: HiPPO-LegS states of a long signal, ours against one product a token and the floor of our matrix products.

Every row at every number of coefficients and channels has a process of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from genomem.bench.fresh_process import FreshProcessError, run_fresh
from genomem.bench.measure import Conditions, Measurement, PeakMemory, prepare, summarise, time_matrix_products, time_passes
from genomem.bench.results import Curve, Lines, Results, draw_curves, environment, write_results
from genomem.errors import GenomemError
from genomem.files import make_folder
from genomem.ops.hippo import KEPT_BYTES, chunked_legs, forget_operators, legs_flow
from genomem.ops.hippo_legs import legs_integrals
from genomem.progress import say, track
from genomem.record import Stopwatch
from genomem.report.tables import Column, Row, count, fixed, memory, text_column

TITLE = "HiPPO-LegS states of a long signal"
FLOOR = "floor"
# Tokens of the loop: enough to be far above the cost of starting it, few enough for their step matrices to fit the memory.
LOOP_TOKENS = 512
COLUMNS = (
    Column("coefficients", "N", count),
    Column("channels", "channels", count),
    text_column("title", "row"),
    Column("elements_per_second", "elements/s", count),
    Column("seconds", "seconds", fixed(4)),
    Column("cpu_seconds", "CPU s", fixed(4)),
    Column("peak_memory_bytes", "peak", memory),
    Column("floor_ratio", "floor/time", fixed(2)),
    text_column("note", "note"),
)
TITLES = {
    FLOOR: "matrix-product floor",
    "chunked": "chunked",
    "chunked_building": "chunked, operators built",
    "loop": "one product a token",
}
READING = (
    "An element is one token of one channel. chunked returns the state after every segment and after the last token; its operators depend "
    "on the length of the past and not on the signal, and are kept between calls. In chunked, operators built they are made anew.",
    "CPU s is the time of all threads together: it is the fairer number where other work ran on the machine. Times are medians.",
    f"one product a token is a loop over {LOOP_TOKENS} tokens in PyTorch, with exact step matrices that are there beforehand.",
    "matrix-product floor is the multiply-adds of chunked at the rate of one large float32 product. One channel has products of a matrix "
    "and a vector, which wait for memory: there the floor is out of reach.",
    "For comparison: the C++ kernel of the HiPPO authors (github.com/HazyResearch/hippo-code; bilinear steps of the order of N) on "
    "one channel and one core of an AMD EPYC (Zen 5): 1.81 million elements/s at N = 64 and 0.59 million at N = 256.",
)


@dataclass(frozen=True)
class HippoSettings:
    """What is measured.

    Attributes:
        sizes: Coefficients a channel, N.
        channels: D.
        tokens: Of the one signal in a batch, T.
        segment: Tokens between two states, S.
        rows: Names of `TITLES`; empty for all.
        conditions: Device, threads, repeats, limit.
    """

    sizes: tuple[int, ...] = (64, 256)
    channels: tuple[int, ...] = (1, 64, 256)
    tokens: int = 131_072
    segment: int = 512
    rows: tuple[str, ...] = ()
    conditions: Conditions = field(default_factory=Conditions)


def bench_hippo(settings: HippoSettings, folder: Path | None, show: Callable[[str], None]) -> None:
    """Measures every row with every number of coefficients and channels.

    Args:
        settings: What is measured.
        folder: Where `hippo.json`, `hippo.md` and `hippo.svg` are written; None: nowhere.
        show: Gets the lines of the table as they come.

    Raises:
        GenomemError: A row is unknown, the operators would not be kept, there is no such device, or `folder` is a file.
    """
    names, device = _chosen(settings), settings.conditions.device_name()
    if folder is not None:
        make_folder(folder)
    stopwatch, machine = Stopwatch(), environment(settings.conditions, device)
    lines = Lines(COLUMNS, {"title": max((TITLES[name] for name in names), key=len)})
    show(lines.heading)
    cells = []
    for cell in _measured(names, settings):
        cells.append(cell)
        show(lines.row(cell))
    if folder is not None:
        run = {key: value for key, value in stopwatch.run().items() if key in ("started", "wall_seconds")}
        shown = asdict(settings) | {"rows": names}
        results = Results("hippo", TITLE, _command(settings, names), COLUMNS, cells, machine, shown, READING, run)
        write_results(folder, results, _figure(cells, settings))


def measure_cell(name: str, settings: HippoSettings, size: int, channels: int, deadline: float) -> Measurement:
    """Measures one row, in the process that it is called in.

    Args:
        name: One of `TITLES`.
        settings: Of the run.
        size: N.
        channels: D.
        deadline: When the process is ended, on `time.monotonic`.
    """
    conditions = settings.conditions
    if name == FLOOR:
        return time_matrix_products(channels * _multiply_adds(settings, size), conditions, deadline)
    prepare(conditions)
    peak = PeakMemory(conditions.device)
    with torch.inference_mode():
        step = _loop(settings, size, channels) if name == "loop" else _chunked(settings, size, channels, is_cold=name != "chunked")
        return summarise(time_passes(step, conditions, deadline), conditions, peak.bytes())


def _multiply_adds(settings: HippoSettings, size: int) -> int:
    """Returns N a token, and ``2 N^2`` a segment: M and J M J count in full, the zeros above their diagonals too."""
    return settings.tokens * size + 2 * size**2 * math.ceil(settings.tokens / settings.segment)


def _chunked(settings: HippoSettings, size: int, channels: int, is_cold: bool) -> Callable[[], object]:
    signal = torch.randn(1, settings.tokens, channels, device=settings.conditions.device)

    def step() -> object:
        if is_cold:
            forget_operators()
        return chunked_legs(signal, size=size, segment=settings.segment)

    return step


def _loop(settings: HippoSettings, size: int, channels: int) -> Callable[[], object]:
    device = torch.device(settings.conditions.device)
    before = torch.arange(LOOP_TOKENS, dtype=torch.float64, device=device)
    ratio = before / (before + 1)
    flows = legs_flow(ratio, size).float()
    cells = (legs_integrals(torch.ones_like(ratio), size) - legs_integrals(ratio, size)).mT[..., None].float()
    tokens = torch.randn(LOOP_TOKENS, 1, channels, device=device)

    def step() -> object:
        state = torch.zeros(size, channels, device=device)
        for flow, cell, token in zip(flows.unbind(), cells.unbind(), tokens.unbind(), strict=True):
            state = torch.addmm(cell * token, flow, state)
        return state

    return step


def _measured(names: tuple[str, ...], settings: HippoSettings) -> Iterator[Row]:
    """Yields a row of the table for every size, number of channels and name; what cannot be measured says why in its note."""
    floor: dict[tuple[int, int], float] = {}
    cells = [(size, channels, name) for size in settings.sizes for channels in settings.channels for name in names]
    for size, channels, name in track(cells, "bench hippo", unit="cells"):
        found = _try(name, settings, size, channels)
        if name == FLOOR and "seconds" in found:
            floor[size, channels] = found["seconds"]
        if name == "chunked" and "seconds" in found and (size, channels) in floor:
            found["floor_ratio"] = floor[size, channels] / found["seconds"]
        yield {"row": name, "title": TITLES[name], "coefficients": size, "channels": channels} | found


def _try(name: str, settings: HippoSettings, size: int, channels: int) -> Row:
    limit = settings.conditions.limit_seconds
    try:
        found = run_fresh(measure_cell, name, settings, size, channels, time.monotonic() + limit, limit_seconds=limit)
    except FreshProcessError as error:
        say(f"{TITLES[name]}, N = {size}, {channels} channels: {error}")
        return {"outcome": str(error), "note": str(error).split(":")[0]}
    elements = (LOOP_TOKENS if name == "loop" else settings.tokens) * channels
    return asdict(found) | {"outcome": "measured", "elements_per_second": elements / found.seconds}


def _chosen(settings: HippoSettings) -> tuple[str, ...]:
    unknown = [name for name in settings.rows if name not in TITLES]
    if unknown:
        raise GenomemError(f"--rows: unknown {', '.join(map(repr, unknown))}; known: {', '.join(TITLES)}")
    most = settings.segment * (KEPT_BYTES // (2 * torch.float32.itemsize * max(settings.sizes) ** 2))
    if settings.tokens > most:
        raise GenomemError(
            f"--tokens {settings.tokens}: the operators of more than {most} tokens are not kept at N = {max(settings.sizes)}; take fewer"
        )
    return tuple(name for name in TITLES if name in settings.rows or not settings.rows)


def _command(settings: HippoSettings, names: tuple[str, ...]) -> str:
    """Returns the command that repeats the run."""
    flags = {"sizes": ",".join(map(str, settings.sizes)), "channels": ",".join(map(str, settings.channels))}
    flags |= {"tokens": str(settings.tokens), "segment": str(settings.segment)}
    flags |= {"rows": ",".join(names)} if names != tuple(TITLES) else {}
    return " ".join(["genomem bench hippo", *(f"--{flag} {value}" for flag, value in flags.items()), settings.conditions.flags()])


def _figure(cells: list[Row], settings: HippoSettings) -> str:
    curves = []
    for size, name in dict.fromkeys((cell["coefficients"], cell["row"]) for cell in cells):
        own = [cell for cell in cells if (cell["coefficients"], cell["row"]) == (size, name)]
        points = [(cell["channels"], cell["elements_per_second"]) for cell in own if "elements_per_second" in cell]
        curves.append(Curve(f"{TITLES[name]}, N = {size}", points, is_guide=name == FLOOR))
    title = f"HiPPO-LegS states every {settings.segment} tokens: higher is better"
    return draw_curves("hippo", curves, title=title, x="channels", y="elements per second")
