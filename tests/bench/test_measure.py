"""The clock and the peak of memory: how often work runs, what is reported of it, never how long it took."""

from __future__ import annotations

import math
import time

import pytest

from genomem.bench.measure import Conditions, Pass, summarise, time_matrix_products, time_passes

FAR = math.inf


@pytest.mark.parametrize("repeats", [1, 3])
def test_work_runs_once_to_warm_up_and_then_on_the_clock(repeats):
    calls = []
    passes = time_passes(lambda: calls.append(1), Conditions(repeats=repeats), FAR)
    assert len(calls) == repeats + 1
    assert len(passes) == repeats
    assert all(one.seconds > 0 for one in passes)


def test_passes_that_might_not_end_in_time_are_left_out_but_not_the_first():
    calls = []
    passes = time_passes(lambda: calls.append(1), Conditions(repeats=5), time.monotonic())
    assert (len(calls), len(passes)) == (2, 1)


def test_medians_are_reported():
    passes = (Pass(9.0, 1.0), Pass(1.0, 2.0), Pass(2.0, 8.0))
    measurement = summarise(passes, Conditions(repeats=3), 1 << 20, "as found")
    assert (measurement.seconds, measurement.cpu_seconds, measurement.peak_memory_bytes) == (2.0, 2.0, 1 << 20)
    assert (measurement.passes, measurement.note) == (passes, "as found")


def test_fewer_passes_than_asked_for_are_said():
    measurement = summarise((Pass(1.0, 1.0),), Conditions(repeats=3, limit_seconds=90), note="odd")
    assert measurement.note == "odd; 1 of 3 passes fitted in 90 s"


def test_the_floor_grows_with_the_multiply_adds_at_one_rate(monkeypatch):
    monkeypatch.setattr("genomem.bench.measure.time_passes", lambda *_: (Pass(0.5, 0.25),))
    conditions = Conditions(repeats=1)
    measurement = time_matrix_products(3 * 2048**3, conditions, FAR)
    assert (measurement.seconds, measurement.cpu_seconds) == (1.5, 0.75)
    assert measurement.note == "float32 products at 34 GFLOP/s"
    assert time_matrix_products(0, conditions, FAR).seconds == 0
