"""`genomem inspect hippo`: what a HiPPO-LegS state still holds of a chromosome, as tracks, a table and a figure.

```
<out>/<signal>.bedgraph            the signal itself, in bins
<out>/<signal>_at_<end>.bedgraph   what the state holds of it when it has read the bases up to `end`
<out>/r2.tsv                       end, signal, bases a window, windows, and the share of their variance that is held
<out>/hippo.svg                    signals and what is held of them; that share by window
```
Signals are `gc` and, where any base is, `soft_masked`. Coordinates are those of the record, 0-based, half-open; bins without a known base
have no line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from genomem.analysis.columns import Stretch
from genomem.analysis.hippo import LEAST_WINDOWS, SIGNALS, Bins, Held, bin_shares, read_back
from genomem.errors import GenomemError
from genomem.files import atomic_path, make_folder
from genomem.report.plots import GUIDE_COLOUR, PALETTE, STYLE

# Points of the grey line of a signal in the figure.
DRAWN_POINTS = 500


@dataclass(frozen=True)
class HippoView:
    """How a chromosome is read.

    Attributes:
        size: Coefficients a signal, N.
        bin_bp: Bases a bin.
        ends: Where the state is looked at, 0-based positions behind the last base read; none is the end of the stretch.
    """

    size: int = 64
    bin_bp: int = 1000
    ends: tuple[int, ...] = ()


def inspect_hippo(stretch: Stretch, view: HippoView, folder: Path, show: Callable[[str], None]) -> None:
    """Writes the files and shows the shares of variance that are held.

    Raises:
        GenomemError: An end lies outside of the stretch or has too few bins before it, the stretch is too short or has no known base, or
            `folder` is a file.
    """
    bins = bin_shares(stretch, view.bin_bp)
    places = _places(stretch, view, len(bins.is_known))
    make_folder(folder)
    found = list(read_back(bins, view.size, places))
    for name, shares in bins.shares.items():
        _write_track(folder / f"{name}.bedgraph", stretch, bins, shares, SIGNALS[name])
        for held in found:
            end, title = _end(stretch, bins, held), f"{SIGNALS[name]} held by HiPPO-LegS, N = {view.size}"
            _write_track(folder / f"{name}_at_{end}.bedgraph", stretch, bins, held.values[name], title)
    _write_scores(folder / "r2.tsv", stretch, bins, found)
    with atomic_path(folder / "hippo.svg") as temporary:
        _draw(temporary, stretch, bins, found, view.size)
    show(f"{stretch.label}: {len(bins.is_known):,} bins of {bins.bin_bp:,} bases, {view.size} coefficients a signal")
    for held in found:
        _show_scores(held, _end(stretch, bins, held), show)


def _places(stretch: Stretch, view: HippoView, count: int) -> list[int]:
    """Returns how many bins are read at each end."""
    last = stretch.start + len(stretch.bases)
    for end in view.ends:
        if not stretch.start + LEAST_WINDOWS * view.bin_bp <= end <= last:
            raise GenomemError(
                f"--ends {end}: {stretch.label} can be looked at from {stretch.start + LEAST_WINDOWS * view.bin_bp} ({LEAST_WINDOWS} bins) "
                f"to {last}; choose an end in between"
            )
    return sorted({(end - stretch.start) // view.bin_bp for end in view.ends} or {count})


def _end(stretch: Stretch, bins: Bins, held: Held) -> int:
    return stretch.start + held.bins * bins.bin_bp


def _write_track(path: Path, stretch: Stretch, bins: Bins, values: np.ndarray, title: str) -> None:
    starts = stretch.start + bins.bin_bp * np.arange(len(values))
    lines = [f'track type=bedGraph name="{title}"']
    for start, value, is_known in zip(starts.tolist(), values.tolist(), bins.is_known.tolist(), strict=False):
        if is_known:
            lines.append(f"{stretch.record}\t{start}\t{start + bins.bin_bp}\t{value:.5f}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_scores(path: Path, stretch: Stretch, bins: Bins, found: Iterable[Held]) -> None:
    lines = ["end\tsignal\twindow_bp\twindows\tr2"]
    for held in found:
        for name, scores in held.scores.items():
            lines += [f"{_end(stretch, bins, held)}\t{name}\t{score.window_bp}\t{score.windows}\t{score.r2:.6f}" for score in scores]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _show_scores(held: Held, end: int, show: Callable[[str], None]) -> None:
    show(f"R2 of what is held when the bases up to {end:,} are read:")
    show("  ".join(["window, bases", *(SIGNALS[name].rjust(17) for name in held.scores)]))
    by_window: dict[int, dict[str, float]] = {}
    for name, scores in held.scores.items():
        for score in scores:
            by_window.setdefault(score.window_bp, {})[name] = score.r2
    for window, row in by_window.items():
        show("  ".join([f"{window:13,}", *((f"{row[name]:.3f}" if name in row else "-").rjust(17) for name in held.scores)]))


@rc_context(STYLE | {"svg.hashsalt": "hippo"})
def _draw(path: Path, stretch: Stretch, bins: Bins, found: Sequence[Held], size: int) -> None:
    """Draws a row a signal: the signal (grey) with what is held of it at each end, and R2 by window."""
    figure = Figure(figsize=(13, 3.2 * len(bins.shares) + 0.6), layout="constrained")
    axes = figure.subplots(len(bins.shares), 2, squeeze=False, width_ratios=(3, 1), sharex="col")
    for (track, scores), name in zip(axes, bins.shares, strict=True):
        _draw_signal(track, stretch, bins, name)
        for place, held in enumerate(found):
            colour, label = PALETTE[place % len(PALETTE)], f"held at {_end(stretch, bins, held):,}"
            track.plot(_megabases(stretch, bins, np.arange(held.bins)), held.values[name], color=colour, label=label)
            points = [(score.window_bp, score.r2) for score in held.scores[name]]
            if points:
                scores.plot(*zip(*points, strict=True), "o-", markersize=4, color=colour)
        track.set_ylabel(SIGNALS[name])
        scores.set(xscale="log", ylabel="R2")
        scores.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        scores.xaxis.set_minor_formatter(NullFormatter())
    axes[-1, 0].set_xlabel(f"{stretch.record}, megabases")
    axes[-1, 1].set_xlabel("bases a window")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=6)
    figure.suptitle(f"What {size} HiPPO-LegS coefficients hold of {stretch.record}", x=0.01, horizontalalignment="left", fontweight="bold")
    figure.savefig(path, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _draw_signal(axis: Axes, stretch: Stretch, bins: Bins, name: str) -> None:
    """Draws the means of equal groups of bins, with gaps where nothing is known."""
    count = len(bins.is_known)
    groups = np.array_split(np.arange(count), min(DRAWN_POINTS, count))
    values = [bins.shares[name][group][bins.is_known[group]].mean() if bins.is_known[group].any() else np.nan for group in groups]
    places = _megabases(stretch, bins, np.array([group.mean() for group in groups]))
    axis.plot(places, values, color=GUIDE_COLOUR, linewidth=0.8, label="in the sequence")


def _megabases(stretch: Stretch, bins: Bins, bins_before: np.ndarray) -> np.ndarray:
    return (stretch.start + (bins_before + 0.5) * bins.bin_bp) / 1e6
