"""Signals ask a run to stop, and leave the process as it was."""

from __future__ import annotations

import os
import signal

import pytest

from genomem.training.interruption import SIGNALS, stop_on_signals


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    former = [signal.getsignal(each) for each in SIGNALS]
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert [signal.getsignal(each) for each in SIGNALS] == former


def test_a_second_ctrl_c_stops_at_once_and_restores_the_handlers() -> None:
    former = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == former
