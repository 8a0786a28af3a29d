"""A function in a process of its own: its result, its exceptions, its death, its time."""

from __future__ import annotations

import functools
import operator
import os
import signal
import subprocess
import sys
import time

import pytest

from genomem.bench.fresh_process import FreshProcessError, run_fresh
from genomem.config import load_study
from genomem.errors import GenomemError

LIMIT = 60.0


def test_the_result_comes_back_from_another_process():
    process = run_fresh(os.getpid, limit_seconds=LIMIT)
    assert process not in (os.getpid(), os.getppid())


def test_ctrl_c_in_a_terminal_does_not_reach_the_process():
    assert run_fresh(os.getsid, 0, limit_seconds=LIMIT) != os.getsid(0)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (operator.truediv, (1, 0), "ZeroDivisionError: division by zero"),
        (functools.partial(int, base=99), ("1",), "ValueError: int() base must be >= 2 and <= 36, or 0"),
        (signal.raise_signal, (signal.SIGKILL,), "killed by SIGKILL"),
        (os._exit, (7,), "ended with exit code 7"),
    ],
    ids=["division", "message", "killed", "exit"],
)
def test_a_failure_says_what_it_was(function, arguments, message):
    with pytest.raises(FreshProcessError) as failure:
        run_fresh(function, *arguments, limit_seconds=LIMIT)
    assert str(failure.value) == message


def test_a_mistake_of_the_user_stays_one(tmp_path):
    with pytest.raises(GenomemError, match=r"nowhere\.yaml"):
        run_fresh(load_study, tmp_path / "nowhere.yaml", limit_seconds=LIMIT)


def test_what_takes_too_long_is_ended():
    with pytest.raises(FreshProcessError, match=r"^over 0\.5 s$"):
        run_fresh(time.sleep, 3600, limit_seconds=0.5)


def test_an_interrupted_caller_ends_the_process(monkeypatch):
    started = []

    def interrupt(process, *arguments, **options):
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_fresh(time.sleep, 3600, limit_seconds=LIMIT)
    assert started[0].wait(timeout=LIMIT) == -signal.SIGKILL


def test_what_the_function_prints_is_no_result(capfd):
    assert run_fresh(print, "a line of a peer", limit_seconds=LIMIT) is None
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "a line of a peer\n"


def test_the_process_starts_without_what_the_caller_has_loaded():
    import torch

    assert torch.__name__ in sys.modules
    assert run_fresh(eval, "'torch' in __import__('sys').modules", limit_seconds=LIMIT) is False
