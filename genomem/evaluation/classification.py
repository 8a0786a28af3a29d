"""The final evaluation of a classifier: the test set, once, with every seed."""

from __future__ import annotations

import numpy as np

from genomem.config import Study, stage_digest
from genomem.data.benchmark import open_benchmark
from genomem.layout import Layout
from genomem.metrics import METRICS, bootstrap, score
from genomem.models import count_parameters
from genomem.progress import track
from genomem.record import RunRecord, Stopwatch, describe_environment
from genomem.training.checkpoint import load_weights
from genomem.training.device import build_accelerator, describe_device
from genomem.training.finetune import classifier, predict


def evaluate_classification(study: Study, dataset: str, name: str) -> None:
    """Scores the test part with each seed's weights and writes mean, spread over seeds, and bootstrap intervals."""
    watch = Stopwatch()
    layout, settings, section = Layout(study), study.evaluate, study.benchmarks[dataset]
    accelerator = build_accelerator(study.finetune.precision, single_process="evaluate")
    benchmark = open_benchmark(study, dataset)
    test = benchmark.part("test")
    model = accelerator.prepare(classifier(study, name, benchmark, stranded=section.stranded))
    both_strands = study.finetune.reverse_complement and not section.stranded
    probabilities = []
    for seed in track(study.seeds, f"evaluate {name} on {dataset}", unit="seeds"):
        digest = stage_digest(study, "finetune", dataset=dataset, model=name, seed=seed)
        load_weights(layout.finetuned(dataset, name, seed), accelerator.unwrap_model(model), stage="finetune", digest=digest)
        probabilities.append(predict(model, test, device=accelerator.device, batch_size=settings.batch_size, both_strands=both_strands))
    seeds = [{"seed": seed, **score(test.labels, p)} for seed, p in zip(study.seeds, probabilities, strict=True)]
    by_metric = {metric: np.array([row[metric] for row in seeds]) for metric in METRICS}
    result = {
        "parameters": count_parameters(model),
        "pretrained": study.models[name].pretrain,
        "test_sequences": len(test),
        "both_strands": both_strands,
        "seeds": seeds,
        "mean": {metric: float(values.mean()) for metric, values in by_metric.items()},
        "sd": {metric: float(values.std(ddof=1)) if len(values) > 1 else None for metric, values in by_metric.items()},
        "range": {metric: [float(values.min()), float(values.max())] for metric, values in by_metric.items()},
        "interval": bootstrap(test.labels, np.stack(probabilities), samples=settings.bootstrap_samples, confidence=settings.confidence),
    }
    record = RunRecord(
        stage="evaluate_classification",
        study=study.name,
        digest=stage_digest(study, "evaluate_classification", dataset=dataset, model=name),
        keys={"dataset": dataset, "model": name},
        result=result,
        data=benchmark.manifest["files"],
        environment=describe_environment(describe_device(accelerator.device)),
        run=watch.run(),
    )
    record.write(layout.classification(dataset, name))
