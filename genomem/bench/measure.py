"""What every measurement does inside its fresh process: the conditions, the clock, the peak of memory, the rate of plain products."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from genomem.errors import GenomemError

# Rows of the square matrices whose product is called large: enough to fill the device, little enough to be quick.
_LARGE = {"cpu": 2048, "cuda": 8192}
# Another pass is begun when this many times the slowest one so far still fits in the time.
_MARGIN = 1.5
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Conditions:
    """What all measurements of a run share.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: Threads that PyTorch computes with on the CPU.
        repeats: Timed passes after the warm-up.
        limit_seconds: Wall seconds that one measurement may take in all.
    """

    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    limit_seconds: float = 120.0

    def device_name(self) -> str:
        """Returns ``cpu``, or the GPU with its model.

        Raises:
            GenomemError: PyTorch sees no GPU.
        """
        if self.device == "cpu":
            return "cpu"
        if not torch.cuda.is_available():
            raise GenomemError("--device cuda: PyTorch sees no GPU here; leave --device out to measure on the CPU")
        return f"cuda ({torch.cuda.get_device_name()})"

    def flags(self) -> str:
        """Returns the conditions as they stand on the command line."""
        return f"--device {self.device} --threads {self.threads} --repeats {self.repeats} --limit-seconds {self.limit_seconds:g}"


@dataclass(frozen=True)
class Pass:
    """Wall seconds of one pass, and CPU seconds of all its threads."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Measurement:
    """What was measured of one subject at one size.

    Attributes:
        seconds: Median wall seconds of a pass.
        cpu_seconds: Median CPU seconds of a pass; None where there is no such thing.
        peak_memory_bytes: Most bytes held at once on top of what the process held before.
        passes: Timed passes.
        note: What a reader of the number must know.
    """

    seconds: float
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    passes: tuple[Pass, ...] = ()
    note: str = ""


def prepare(conditions: Conditions) -> None:
    """Sets threads and seed, and uses the libraries once, so that what they load stands on nobody's bill."""
    torch.set_num_threads(conditions.threads)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8, device=conditions.device)
    layer(torch.ones(8, 8, device=conditions.device)).sum().backward()


def time_passes(step: Callable[[], object], conditions: Conditions, deadline: float) -> tuple[Pass, ...]:
    """Calls `step` once to warm up, then up to `repeats` times on the clock.

    Args:
        step: The work of one pass.
        conditions: Of the run.
        deadline: When the process is ended, on `time.monotonic`; passes that might not end before are left out, but never the first.
    """
    slowest = _timed(step, conditions.device).seconds
    passes: list[Pass] = []
    while len(passes) < conditions.repeats and (not passes or time.monotonic() + _MARGIN * slowest < deadline):
        passes.append(_timed(step, conditions.device))
        slowest = max(slowest, passes[-1].seconds)
    return tuple(passes)


def summarise(passes: tuple[Pass, ...], conditions: Conditions, peak_memory_bytes: int | None = None, note: str = "") -> Measurement:
    """Returns the medians of the passes; the note says when there are fewer than asked for."""
    seconds, cpu_seconds = (statistics.median(getattr(one, column) for one in passes) for column in ("seconds", "cpu_seconds"))
    if len(passes) < conditions.repeats:
        fewer = f"{len(passes)} of {conditions.repeats} passes fitted in {conditions.limit_seconds:g} s"
        note = "; ".join(filter(None, [note, fewer]))
    return Measurement(seconds, cpu_seconds, peak_memory_bytes, passes, note)


def time_matrix_products(multiply_adds: int, conditions: Conditions, deadline: float) -> Measurement:
    """Returns the time that so many multiply-adds take at the rate of one large float32 product, measured now.

    PyTorch's settings for float32 are left as they are: on a GPU that is float32 and not TF32.
    """
    prepare(conditions)
    size = _LARGE[conditions.device]
    left, right, product = (torch.randn(size, size, device=conditions.device) for _ in range(3))
    one = summarise(time_passes(lambda: torch.mm(left, right, out=product), conditions, deadline), conditions)
    products = multiply_adds / size**3
    cpu_seconds = products * one.cpu_seconds if one.cpu_seconds and conditions.device == "cpu" else None
    rate = f"float32 products at {2e-9 * size**3 / one.seconds:,.0f} GFLOP/s"
    return Measurement(products * one.seconds, cpu_seconds, note="; ".join(filter(None, [rate, one.note])))


class PeakMemory:
    """The most bytes held at once since this was made, on top of what was held then.

    On the CPU it is the resident memory of the process, as Linux keeps it for this process alone (`ru_maxrss` starts from what the
    parent had); elsewhere `ru_maxrss`. On CUDA it is the memory of PyTorch's allocator.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            # Forgets the peak so far, where the system allows it.
            with contextlib.suppress(OSError):
                (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
            self._before = _resident_bytes("VmRSS")

    def bytes(self) -> int:
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else _resident_bytes("VmHWM")
        return max(0, peak - self._before)


def _resident_bytes(field: str) -> int:
    """Returns resident memory now (``VmRSS``) or at its peak (``VmHWM``); without Linux's /proc, the peak for both."""
    try:
        lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _timed(step: Callable[[], object], device: str) -> Pass:
    _synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _synchronise(device)
    return Pass(time.perf_counter() - wall, time.process_time() - cpu)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
