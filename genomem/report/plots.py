"""Figures as inline SVG: dots with intervals and learning curves, in one restrained palette.

One point is one CSS pixel, text stays text, and all names in the SVG are made from the figure's own
name, so that the same records give the same bytes and figures on one page do not share an id.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from genomem.report.benchmarks import METRIC_NAMES, MODELS, best_control, headline, score_rows
from genomem.report.collect import Curve, Findings
from genomem.report.language import BACKOFF, BITS, NEURAL, PLAIN, QUOTED, best_markov, bits_rows, has_several_seeds, position_shares
from genomem.report.recall import recalled

# Okabe and Ito's colour-blind-safe colours, the yellow left out because it is too light for lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
CONTROL_COLOUR, GUIDE_COLOUR, TEXT_COLOUR, GRID_COLOUR = "#767676", "#9a9a9a", "#333333", "#e4e4e4"
WIDTH, ROW_HEIGHT = 1010, 24
MAX_CURVE_POINTS = 200
MAX_LABEL = 26
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "text.color": TEXT_COLOUR,
    "axes.edgecolor": GUIDE_COLOUR,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID_COLOUR,
    "grid.linewidth": 0.8,
    "xtick.color": TEXT_COLOUR,
    "ytick.color": TEXT_COLOUR,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
}


MARKERS = {NEURAL: "o", BACKOFF: "D", PLAIN: "s", QUOTED: "x"}


@dataclass(frozen=True)
class Plot:
    """A figure of the page: its name, what it shows in a line, how to read it, and the SVG element."""

    name: str
    title: str
    caption: str
    svg: str


@rc_context(STYLE)
def bits_plot(findings: Findings) -> Plot:
    """Draws bits per base of every model, one panel for each kind of position."""
    rows, shares = bits_rows(findings), position_shares(findings)
    kinds = [kind for kind in ("all", "unmasked", "repeat", "sure") if any(row[kind] is not None for row in rows)]
    figure, axes = _figure(len(rows) * ROW_HEIGHT + 80, 1, len(kinds), sharey=True)
    best = best_markov(findings, "plain")
    for axis, kind in zip(axes, kinds, strict=True):
        for place, row in enumerate(rows):
            if row[kind] is not None:
                interval = findings.language[row["model"]].result["interval"].get(kind) if row["group"] == NEURAL else None
                _dot(axis, place, row[kind], interval, _row_colour(findings, row), MARKERS[row["group"]])
        if best and best["bits"][kind] is not None:
            axis.axvline(best["bits"][kind], color=GUIDE_COLOUR, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        axis.set_title(BITS[kind] + (f", {100 * shares[kind]:.1f} %" if kind != "all" else ""), pad=8)
        axis.set_xlabel("bits per base")
        axis.locator_params(axis="x", nbins=5)
        for place in range(1, len(rows)):
            if rows[place]["group"] != rows[place - 1]["group"]:
                axis.axhline(place - 0.5, color=GUIDE_COLOUR, linewidth=0.8, zorder=1)
    _label_rows(axes[0], [row["model"] for row in rows])
    label = "; ".join(f"{row['model']} {row['all']:.3f}" for row in rows)
    guide = f"The dashed line is the best plain Markov model over all positions, {best['name']}. " if best else ""
    caption = f"{guide}Bars are intervals. Each panel has its own scale; the percentage is its share of all positions."
    return Plot("bits", "Bits per base on held-out chromosomes: lower is better", caption, _svg(figure, "bits", f"Bits per base: {label}"))


@rc_context(STYLE)
def recall_plot(findings: Findings) -> Plot | None:
    """Draws the gain from a repeat against the distance of the copies, one line a model; None for one or two distances."""
    gaps = recalled(findings)["gaps"]
    if len(gaps) < 3:
        return None
    distances = [gap["distance_bp"] for gap in gaps]
    figure, (axis,) = _figure(300, 1, 1)
    for model, record in findings.recall.items():
        colour, found = _colour(findings, model), record.result["gaps"]
        axis.plot(distances, [gap["gain"] for gap in found], "o-", color=colour, markersize=5, label=_short(model))
        for distance, gap in zip(distances, found, strict=True):
            axis.plot([distance, distance], gap["interval"], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
    axis.axhline(0, color=GUIDE_COLOUR, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    axis.set_xscale("log")
    axis.set_xticks(distances, [f"{distance:,}" for distance in distances])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("bases from the start of the first copy to the start of the second")
    axis.set_ylabel("gain, bits per base")
    axis.legend(loc="upper right")
    title = "Gain from a repeat that was read before: higher is better"
    least, most = (limit(gap["table_gain"] for gap in gaps) for limit in (min, max))
    caption = f"Bars are intervals; a model without memory lies on the dashed line. The table gains {least:.3f} to {most:.3f}."
    ends = "; ".join(f"{model} {record.result['gaps'][0]['gain']:.4f}" for model, record in findings.recall.items())
    return Plot("recall", title, caption, _svg(figure, "recall", f"{title}. At {distances[0]:,} bases: {ends}"))


def pretraining_plots(findings: Findings) -> list[Plot]:
    """Draws the learning curves of the models that predict the next base and, apart from them, of those that predict masked bases."""
    study = findings.study
    plots = [_pretraining_plot(findings, study.language_models, "")] if study.language_models else []
    return plots + ([_pretraining_plot(findings, study.masked_models, "masked_")] if study.masked_models else [])


@rc_context(STYLE)
def _pretraining_plot(findings: Findings, models: list[str], kind: str) -> Plot:
    """Draws train and validation bits against tokens, one line a model and seed; `kind` stands before the names of the bits in the log."""
    name, unit = f"{kind}pretraining", "bits per masked base" if kind else "bits per base"
    curves = {(model, seed): findings.pretraining_curves[model, seed] for model in models for seed in findings.study.pretrain.seeds}
    figure, axes = _figure(330, 1, 2, sharey=True)
    most = max((line["tokens"] for curve in curves.values() for line in curve), default=1)
    scale, thousands = (1e6, "millions") if most >= 2e6 else (1e3, "thousands")
    for axis, key, title in zip(axes, (f"{kind}train_bits", f"{kind}validation_bits"), ("Train", "Validation"), strict=True):
        for (model, seed), curve in curves.items():
            tokens, bits = _points(curve, "tokens", key)
            marker = "o" if len(tokens) < 30 else None
            label = _short(model) if seed == findings.study.pretrain.seeds[0] else None
            axis.plot(tokens / scale, bits, color=_colour(findings, model), marker=marker, markersize=4, label=label)
        axis.set_title(title, pad=8)
        axis.set_xlabel(f"tokens seen ({thousands})")
    _leave_out_start(axes)
    axes[0].set_ylabel(unit)
    axes[1].legend(loc="upper right")
    several = has_several_seeds(findings)
    last = {run: _points(curve, "tokens", f"{kind}validation_bits")[1] for run, curve in curves.items()}
    names = {(model, seed): f"{model}, seed {seed}," if several else model for model, seed in curves}
    label = "; ".join(f"{names[run]} ends at {bits[-1]:.3f} validation bits" for run, bits in last.items() if len(bits))
    weight = findings.study.pretrain.repeat_weight
    weighted = f", in which a repeat weighs {weight:g} of another base" if weight < 1 else ""
    apart = "Bits per masked base, which are not comparable with bits per base. " if kind else ""
    caption = (
        f"{apart}Train is the loss{weighted}, averaged over up to {MAX_CURVE_POINTS} stretches of the run. "
        "Validation is read on the validation chromosomes. The scale leaves out the highest of the first steps."
        f"{' One line a seed.' if several else ''}"
    )
    title = "Learning curves of pretraining on masked bases" if kind else "Learning curves of pretraining"
    return Plot(name, title, caption, _svg(figure, name, f"Learning curves: {label}"))


@rc_context(STYLE)
def scores_plot(findings: Findings, dataset: str) -> Plot:
    """Draws the headline score of models and controls with intervals, every seed as a faint dot."""
    metric, rows = headline(findings, dataset), score_rows(findings, dataset)
    control, score = best_control(findings, dataset)
    figure, (axis,) = _figure(len(rows) * ROW_HEIGHT + 62, 1, 1)
    for place, row in enumerate(rows):
        is_model = row["group"] == MODELS
        colour = _colour(findings, row["row"]) if is_model else CONTROL_COLOUR
        if row.get(metric) is None:
            continue
        seeds = row.get("seeds", [])
        axis.plot(seeds, [place + 0.28] * len(seeds), "o", color=colour, alpha=0.5, markersize=3.5, markeredgewidth=0, zorder=2)
        _dot(axis, place, row[metric], row["interval"], colour, "o" if is_model else "s")
    axis.axvline(score, color=GUIDE_COLOUR, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    axis.axhline(len(findings.classifiers) - 0.5, color=GUIDE_COLOUR, linewidth=0.8)
    axis.set_xlabel(METRIC_NAMES[metric])
    _label_rows(axis, [row["row"] for row in rows])
    label = "; ".join(f"{row['row']} {row[metric]:.3f}" for row in rows if row.get(metric) is not None)
    title = f"{dataset}: {METRIC_NAMES[metric]} on the test set; higher is better"
    small = " Small dots are single seeds." if len(findings.study.seeds) > 1 else ""
    caption = f"Large dots are means, bars are intervals, squares are controls; the dashed line is the best control, {control}.{small}"
    return Plot(f"scores_{dataset}", title, caption, _svg(figure, f"scores_{dataset}", f"{title}: {label}"))


@rc_context(STYLE)
def finetuning_plot(findings: Findings, dataset: str) -> Plot:
    """Draws the validation score at each epoch, one panel a model, one line a seed; a dot is the epoch that was kept."""
    metric, models = headline(findings, dataset), findings.classifiers
    columns = min(4, len(models))
    figure, axes = _figure(190 * -(-len(models) // columns) + 20, -(-len(models) // columns), columns, sharex=True, sharey=True)
    for axis, model in zip(axes, models, strict=False):
        for seed in findings.study.seeds:
            epochs, scores = _points(findings.finetuning_curves[dataset, model, seed], "epoch", f"validation_{metric}")
            axis.plot(epochs, scores, color=_colour(findings, model), linewidth=1.2, alpha=0.75)
            kept = epochs == findings.finetuning[dataset, model, seed].result["best_epoch"]
            axis.plot(epochs[kept], scores[kept], "o", color=_colour(findings, model), markersize=5)
        axis.set_title(_short(model), pad=6)
        axis.locator_params(axis="x", nbins=5, integer=True)
        axis.set_xlabel("epoch")
    for axis in axes[len(models) :]:
        axis.set_visible(False)
    axes[0].set_ylabel(f"validation {METRIC_NAMES[metric]}")
    title = f"{dataset}: validation {METRIC_NAMES[metric]} while fine-tuning"
    caption = "One line a seed; the dot is the epoch whose weights were kept and tested."
    return Plot(f"finetuning_{dataset}", title, caption, _svg(figure, f"finetuning_{dataset}", f"{title}: {', '.join(models)}"))


def _leave_out_start(axes: Sequence[Axes]) -> None:
    """Ends the scale where the first steps would squeeze all others into a line."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for axis in axes for line in axis.get_lines()])
    low, high = (values.min(), np.quantile(values, 0.96)) if len(values) else (0.0, 0.0)
    if high > low:
        axes[0].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _figure(height: int, rows: int, columns: int, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure of the page's width and its axes, row by row."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout=ConstrainedLayoutEngine(wspace=0.04))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def _dot(axis: Axes, place: float, value: float, interval: Sequence[float] | None, colour: str, marker: str) -> None:
    if interval is not None:
        axis.plot(interval, [place, place], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt", zorder=2)
    axis.plot([value], [place], marker, color=colour, markersize=7 if marker == "o" else 5.5, zorder=3)


def _label_rows(axis: Axes, labels: list[str]) -> None:
    axis.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axis.set_ylim(len(labels) - 0.4, -0.6)


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def _colour(findings: Findings, model: str) -> str:
    """A model has one colour on the whole page."""
    return PALETTE[findings.models.index(model) % len(PALETTE)]


def _row_colour(findings: Findings, row: dict[str, Any]) -> str:
    return _colour(findings, row["model"]) if row["group"] == NEURAL else CONTROL_COLOUR


def _points(curve: Curve, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two columns of the lines that have both, thinned to means of equal stretches where there are many."""
    lines = [line for line in curve if line.get(x) is not None and line.get(y) is not None]
    columns = [np.array([line[key] for line in lines], dtype=float) for key in (x, y)]
    if len(lines) > MAX_CURVE_POINTS:
        columns = [np.array([part.mean() for part in np.array_split(column, MAX_CURVE_POINTS)]) for column in columns]
    return columns[0], columns[1]


def _svg(figure: Figure, name: str, label: str) -> str:
    """Returns the figure as one `<svg>` element that a screen reader announces as an image with `label`."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    for pattern in (r'\bid="', r'"#', r"url\(#"):
        body = re.sub(pattern, lambda match: f"{match.group()}{name}-", body)
    width, height = figure.get_size_inches() * 72
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width:g} {height:g}"'
    return f'{head} role="img" aria-label="{_attribute(label)}" style="max-width: {width:g}px">{body}'


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
