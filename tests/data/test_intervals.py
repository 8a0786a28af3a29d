"""Intervals: bounds, strand, and how they are shown."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genomem.data.intervals import Interval
from genomem.errors import GenomemError


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.sampled_from("+-"))
def test_length_is_end_minus_start(start, length, strand):
    interval = Interval("chr1", start, start + length, strand)
    assert len(interval) == length
    assert pickle.loads(pickle.dumps(interval)) == interval


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (-3, -1)])
def test_bad_bounds_are_refused_by_name(start, end):
    with pytest.raises(GenomemError, match=rf"chr1:{start}-{end}\(\+\): .*0-based"):
        Interval("chr1", start, end)


@pytest.mark.parametrize("strand", ["", ".", "1", "forward"])
def test_bad_strand_is_refused(strand):
    with pytest.raises(GenomemError, match="must be '\\+' or '-'"):
        Interval("chr1", 0, 1, strand)


def test_shown_as_bed_does():
    assert str(Interval("chrIV", 10, 20, "-")) == "chrIV:10-20(-)"
