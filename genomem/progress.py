"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LOG_INTERVAL_SECONDS = 15.0


def say(message: str) -> None:
    """Prints one line on standard error, at once, without breaking a progress bar."""
    if sys.stderr.isatty():
        tqdm.write(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr, flush=True)


def track(
    items: Iterable[Item],
    title: str,
    *,
    total: int | None = None,
    start: int = 0,
    unit: str = "it",
    status: Callable[[], str] | None = None,
) -> Iterator[Item]:
    """Yields `items` and shows how far the work has come.

    Args:
        items: What to go through.
        title: What the work is, such as ``pretrain titans_lmm``.
        total: Number of items in all, `start` included; taken from `items` when it has a length.
        start: Items that were done before (a resumed run).
        unit: What one item is called.
        status: Called at each refresh; its text stands behind the bar (loss, speed).
    """
    if total is None and hasattr(items, "__len__"):
        total = start + len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from _bar(items, title, total, start, unit, status)
    else:
        yield from _lines(items, title, total, start, unit, status)


def _bar(items, title, total, start, unit, status):
    with tqdm(items, desc=title, total=total, initial=start, unit=unit, unit_scale=True, dynamic_ncols=True, file=sys.stderr) as bar:
        for item in bar:
            yield item
            if status is not None:
                bar.set_postfix_str(status(), refresh=False)


def _lines(items, title, total, start, unit, status):
    began = last = time.monotonic()
    count = start
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= LOG_INTERVAL_SECONDS and count != total:
            last = now
            _line(title, count, total, unit, status, _remaining(count - start, now - began, total, start))
    _line(title, count, total, unit, status, f"done in {time.monotonic() - began:.0f} s")


def _line(title, count, total, unit, status, timing):
    amount = f"{count}/{total} {unit}" if total else f"{count} {unit}"
    say("  ".join(filter(None, [f"{title}: {amount}", status() if status else "", timing])))


def _remaining(done: int, seconds: float, total: int | None, start: int) -> str:
    if not total or not done:
        return ""
    return f"{seconds / done * (total - start - done):.0f} s left"
