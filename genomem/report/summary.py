"""The study in one paragraph: sentences made from the records, with the numbers that matter and what they do not show."""

from __future__ import annotations

from genomem.report import language
from genomem.report.benchmarks import METRIC_NAMES, best_control, headline, is_above_controls
from genomem.report.collect import Findings
from genomem.report.tables import fixed

MAX_NAMED = 6


def summary(findings: Findings) -> str:
    """Returns the headline paragraph."""
    sentences = [*_language(findings), *_benchmarks(findings)]
    return " ".join(sentences) or "This study has neither a pretrained model nor a benchmark, so there is nothing to report."


def simulation_notice(findings: Findings) -> str:
    """Returns the banner's sentence; empty for a study of real data alone."""
    study = findings.study
    simulated = [name for name, genome in study.genomes.items() if genome.simulate]
    simulated += [name for name, benchmark in study.benchmarks.items() if benchmark.simulate]
    if not simulated:
        return ""
    everything = len(simulated) == len(study.genomes) + len(study.benchmarks)
    what = "These genomes and benchmarks are simulated" if study.benchmarks else "These genomes are simulated"
    subject = what if everything else f"Some of this study's data is simulated ({', '.join(simulated)})"
    return f"{subject}: the figures say that the machinery works, not how a model does on real DNA."


def _language(findings: Findings) -> list[str]:
    ranked = language.ranked_models(findings)
    masked = language.masked_sentences(findings)
    if not ranked:
        return masked or ["No model was pretrained."]
    best = findings.language[ranked[0]].result
    low, high = best["interval"]["all"]
    number = len(language.test_chromosomes(findings))
    chromosomes = f"{number} held-out chromosome{'s' * (number != 1)}"
    against = [f"{_gap(best['bits']['all'], model['bits']['all'])} {label.format(**model)}" for model, label in _rivals(findings)]
    confidence = f"{100 * findings.study.evaluate.confidence:g} % interval"
    if language.has_several_seeds(findings):
        confidence = f"mean of {len(findings.study.pretrain.seeds)} pretraining seeds, {confidence}"
    first = f"{ranked[0]} reaches {best['bits']['all']:.3f} bits per base on {chromosomes} ({confidence} {low:.3f} to {high:.3f})"
    sentences = [f"{', '.join([first, ' and '.join(against)])}." if against else f"{first}."]
    others = [f"{model} {findings.language[model].result['bits']['all']:.3f}" for model in ranked[1 : MAX_NAMED + 1]]
    label = "The other models that predict the next base" if masked else "The other pretrained models"
    return [*sentences, *([f"{label}: {', '.join(others)}."] if others else []), *masked]


def _rivals(findings: Findings) -> list[tuple[dict, str]]:
    """The Markov models that the headline is held against: the best plain one and the best with back-off."""
    labels = {"plain": "the best plain Markov model (order {order})", "backoff": "the best back-off model (order {order})"}
    rivals = [(language.best_markov(findings, kind), label) for kind, label in labels.items()]
    return [(model, label) for model, label in rivals if model]


def _gap(bits: float, rival: float) -> str:
    """`bits` seen from `rival`: ``0.031 below``, ``0.010 above``, ``level with``."""
    difference = rival - bits
    if abs(difference) < 0.0005:
        return "level with"
    return f"{abs(difference):.3f} {'below' if difference > 0 else 'above'}"


def _benchmarks(findings: Findings) -> list[str]:
    if not findings.datasets:
        return ["The study has no benchmarks."]
    above = [d for d in findings.datasets if any(is_above_controls(findings, d, model) for model in findings.classifiers)]
    if len(findings.datasets) <= MAX_NAMED // 2:
        return [_dataset(findings, dataset) for dataset in findings.datasets]
    below = [dataset for dataset in findings.datasets if dataset not in above]
    count = f"On {len(above)} of {len(findings.datasets)} benchmarks at least one model's interval lies above the best control"
    return [f"{count}; on {', '.join(below)} none does." if below else f"{count}."]


def _dataset(findings: Findings, dataset: str) -> str:
    metric, (control, score) = headline(findings, dataset), best_control(findings, dataset)
    results = {model: findings.classification[dataset, model].result for model in findings.classifiers}
    best = max(results, key=lambda model: results[model]["mean"][metric])
    low, high = results[best]["interval"][metric]
    show = fixed(3)
    verdict = "its interval above" if low > score else "its interval not above"
    numbers = f"{show(results[best]['mean'][metric])} ({show(low)} to {show(high)})"
    return f"On {dataset} the highest {METRIC_NAMES[metric]} is {best}'s {numbers}, {verdict} the best control, {control} ({show(score)})."
