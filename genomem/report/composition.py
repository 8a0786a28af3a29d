"""What the neural models are made of, and whether they differ in more than the mixer."""

from __future__ import annotations

from itertools import combinations

from genomem.config import CNN, Layer, Model, SequenceModel
from genomem.report.collect import Findings
from genomem.report.language import ranked_models

MOST_SIZE_RATIO = 1.2


def model_sentences(findings: Findings) -> list[str]:
    """Returns what each pretrained model is made of, fewest bits first, and whether they differ in more than the mixer.

    Bidirectional models, which have no bits, stand at the end: nothing is said of how they differ from the others.
    """
    models = {name: findings.study.models[name] for name in ranked_models(findings)}
    sizes = [findings.language[name].result["parameters"] for name in models]
    sentences = [f"{name}: {_made_of(model)}." for name, model in models.items()]
    differences = []
    if not all(_is_same_trunk(first, second) for first, second in combinations(models.values(), 2)):
        differences.append("in what stands around the mixer")
    if sizes and max(sizes) > MOST_SIZE_RATIO * min(sizes):
        differences.append(f"by more than {100 * (MOST_SIZE_RATIO - 1):.0f} % in parameters")
    if differences:
        verdict = "the comparison is between whole models and does not isolate the mixer"
        sentences.append(f"These models differ {' and '.join(differences)}: {verdict}.")
    return sentences + [f"{name}: {_made_of(findings.study.models[name])}." for name in findings.study.masked_models]


def _made_of(model: Model) -> str:
    """Returns the parts in words: ``motif stem of 12 bases, then 4 × (causal_conv (kernel 5), titans_lmm), 128 channels``."""
    if isinstance(model, CNN):
        return "the GenomicBenchmarks CNN"
    stem = f"motif stem of {model.stem_kernel} bases" if model.stem_kernel > 1 else "no convolutional stem"
    trunk = f"{stem}, then {model.repeat} × ({', '.join(map(_layer, model.layers))}), {model.dim} channels"
    if model.kmer_memory:
        trunk += f", with a k-mer memory of orders {', '.join(map(str, model.kmer_memory.orders))} ({model.kmer_memory.use})"
    return f"{trunk}, bidirectional: each layer reads from both ends, and the model reads both strands" if model.bidirectional else trunk


def _layer(layer: Layer) -> str:
    """Returns the mixer's name with the options that are not the default ones; the compute chunk changes no result."""
    options = layer.model_dump(exclude_defaults=True, exclude={"mixer", "chunk_size"})
    return layer.mixer + (f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else "")


def _is_same_trunk(first: Model, second: Model) -> bool:
    """True when the two differ by nothing but one mixer that stands in for another, wherever it stands."""
    if not (isinstance(first, SequenceModel) and isinstance(second, SequenceModel)):
        return first == second
    layers = [model.layers * model.repeat for model in (first, second)]
    if (first.dim, first.stem_kernel, first.mlp_ratio, len(layers[0])) != (
        second.dim,
        second.stem_kernel,
        second.mlp_ratio,
        len(layers[1]),
    ) or first.kmer_memory != second.kmer_memory:
        return False
    swapped = {(one.mixer, other.mixer) for one, other in zip(*layers, strict=True) if one != other}
    return len(swapped) <= 1 and all(one != other for one, other in swapped)
