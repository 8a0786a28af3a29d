"""Runs a function in a Python process of its own, so that its time, its memory and its crashes are its own.

The process starts empty, in its own session (Ctrl-C reaches the caller alone, who ends it), and what it prints goes to standard error.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

from genomem.errors import GenomemError

Result = TypeVar("Result")

_COMMAND = "from genomem.bench.fresh_process import answer; answer()"
_GRACE_SECONDS = 5.0


class FreshProcessError(Exception):
    """The function came to no result; the message says in a few words why, such as ``RuntimeError: ...`` or ``over 120 s``."""


def run_fresh(function: Callable[..., Result], *arguments: object, limit_seconds: float) -> Result:
    """Returns ``function(*arguments)``, computed in a fresh process.

    Args:
        function: A function that can be imported by its name.
        arguments: What can be pickled, as must the result.
        limit_seconds: Wall seconds from the start of the process, its imports included, after which it is ended.

    Raises:
        GenomemError: The function raised it.
        FreshProcessError: The function raised another exception, took too long, or its process died.
    """
    command, task = [sys.executable, "-c", _COMMAND], pickle.dumps((function, arguments))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            answer, _ = process.communicate(pickle.dumps(limit_seconds) + task, timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            raise FreshProcessError(f"over {limit_seconds:g} s") from None
        finally:
            process.kill()
    if not answer:
        raise FreshProcessError(_death(process.returncode))
    kind, content = pickle.loads(answer)
    if kind is not None:
        raise kind(content)
    return content


def _death(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def answer() -> None:
    """The life of the process: reads its limit, the function and the arguments, and writes ``(exception to raise or None, content)``."""
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        # Ends the process where its caller no longer can.
        signal.setitimer(signal.ITIMER_REAL, pickle.load(sys.stdin.buffer) + _GRACE_SECONDS)
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
            content = pickle.dumps((None, function(*arguments)))
        except GenomemError as error:
            content = pickle.dumps((GenomemError, str(error)))
        except Exception as error:
            content = pickle.dumps((FreshProcessError, _first_line(error)))
        output.write(content)


def _first_line(error: Exception) -> str:
    """Returns ``Class: first line of the message``."""
    return ": ".join(filter(None, [type(error).__name__, *str(error).strip().splitlines()[:1]]))
