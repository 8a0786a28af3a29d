"""One process at a time on one file."""

from __future__ import annotations

import threading
import time

import pytest

from genomem.data.disk import disk_errors, exclusive
from genomem.errors import GenomemError


def test_only_one_at_a_time_works_on_a_file(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(4):
            with exclusive(tmp_path / "file"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 24
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_does_not_hold(tmp_path):
    (tmp_path / ".file.lock").touch()
    with exclusive(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(GenomemError, match="none: No such file"), disk_errors(tmp_path / "other"), open(tmp_path / "none"):
        pass
