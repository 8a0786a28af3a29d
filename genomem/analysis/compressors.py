"""General-purpose compressors and GeCo3 on a sequence of A, C, G and T, from nothing or behind other sequences.

Given other sequences, a compressor pays for both together what it pays more than for the given ones alone.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

LETTERS = np.frombuffer(b"ACGT", np.uint8)
GECO3 = "GeCo3"
GECO3_LEVELS = (6, 12)
ZSTD_LEVEL = 19
_XZ_PRESET = 9 | lzma.PRESET_EXTREME
_LEAST_DICTIONARY = 1 << 26
_MOST_DICTIONARY = 1536 << 20


@dataclass(frozen=True)
class Size:
    """What a compressor made of a sequence.

    Attributes:
        bits: Of the sequence; None where it was not measured.
        seconds: In all.
        peak_memory_bytes: Of a program of its own.
        note: Form of the input, or why nothing was measured.
    """

    bits: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    note: str = ""


def compressed_sizes(codes: np.ndarray, given: np.ndarray) -> dict[str, Size]:
    """Returns what each compressor makes of a sequence, by name.

    Args:
        codes: ``[n]`` uint8, 0 to 3 for A, C, G and T.
        given: ``[m]``, likewise, may be empty.
    """
    sizes = {"xz -9e": _smaller(_xz, codes, given), f"zstd -{ZSTD_LEVEL}": _zstd(codes, given)}
    return sizes | {f"GeCo3 -l {level}": _geco3(level, codes, given) for level in GECO3_LEVELS}


def as_text(codes: np.ndarray) -> bytes:
    """Returns base numbers as letters."""
    return LETTERS[codes].tobytes()


def as_packed(codes: np.ndarray) -> bytes:
    """Returns base numbers as two bits a base, the first base highest; the last byte is filled with A."""
    quads = np.append(codes, np.zeros(-len(codes) % 4, np.uint8)).reshape(-1, 4)
    return (quads @ np.array([64, 16, 4, 1], np.uint8)).astype(np.uint8).tobytes()


def _smaller(compress: Callable[[bytes], int], codes: np.ndarray, given: np.ndarray) -> Size:
    """Returns the smaller of both forms; a compressor gives the bytes that it makes of bytes."""
    began = time.perf_counter()
    bits = {}
    for name, form in FORMS.items():
        before = compress(form(given)) if len(given) else 0
        bits[name] = 8 * (compress(form(np.concatenate([given, codes]))) - before)
    best = min(bits, key=bits.__getitem__)
    return Size(bits[best], time.perf_counter() - began, note=best)


FORMS: dict[str, Callable[[np.ndarray], bytes]] = {"four bases a byte": as_packed, "text": as_text}


def _xz(data: bytes) -> int:
    dictionary = min(max(len(data), _LEAST_DICTIONARY), _MOST_DICTIONARY)
    return len(lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "preset": _XZ_PRESET, "dict_size": dictionary}]))


def _zstd(codes: np.ndarray, given: np.ndarray) -> Size:
    # The standard library has it from Python 3.14.
    try:
        zstd = import_module("compression.zstd")
    except ImportError:
        return Size(note="this Python has no compression.zstd")
    window = min(max((len(codes) + len(given)).bit_length(), 10), 27)
    options = {zstd.CompressionParameter.compression_level: ZSTD_LEVEL, zstd.CompressionParameter.window_log: window}
    return _smaller(lambda data: len(zstd.compress(data, options=options)), codes, given)


def _geco3(level: int, codes: np.ndarray, given: np.ndarray) -> Size:
    program = shutil.which(GECO3)
    if program is None:
        return Size(note="not on the path")
    began = time.perf_counter()
    try:
        before, _ = _run_geco3(program, level, given) if len(given) else (0, 0)
        size, peak = _run_geco3(program, level, np.concatenate([given, codes]))
    except (OSError, subprocess.CalledProcessError) as error:
        return Size(note=f"failed: {error}")
    return Size(8 * (size - before), time.perf_counter() - began, peak)


def _run_geco3(program: str, level: int, codes: np.ndarray) -> tuple[int, int]:
    """Returns the bytes that GeCo3 makes of a sequence, and the most memory that it had."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "bases")
        source.write_bytes(as_text(codes))
        peak = _peak_memory([program, "-l", str(level), source.name], folder)
        return Path(folder, "bases.co").stat().st_size, peak


def _peak_memory(command: list[str], folder: str) -> int:
    """Runs a program and returns the most resident bytes that it had.

    Raises:
        subprocess.CalledProcessError: It ended with an error.
    """
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss * 1024
