"""Fine-tuning: a classifier on one benchmark, one seed, with early stopping on validation."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.config import Study, stage_digest
from genomem.data.batches import labelled_batch, shuffled_rows
from genomem.data.benchmark import Benchmark, LabelledSequences, open_benchmark, training_parts
from genomem.data.tokenizer import COMPLEMENT, VOCAB_SIZE
from genomem.errors import GenomemError
from genomem.files import check_folder, write_json_lines
from genomem.layout import Layout
from genomem.metrics import score
from genomem.models import build_classifier, count_parameters
from genomem.progress import track
from genomem.record import RunRecord, Stopwatch, describe_environment
from genomem.training.checkpoint import load_weights, save_weights, weights_sha256
from genomem.training.device import build_accelerator, describe_device
from genomem.training.optimizer import build_optimizer, set_learning_rate, warmup_cosine

VALIDATION_BATCH = 128


def finetune(study: Study, dataset: str, name: str, seed: int) -> None:
    """Trains one classifier and writes the weights of its best epoch, its metrics log and its record.

    The test part is not opened here. Epochs are chosen by the benchmark's metric on validation: the benchmark's own
    dev part, or a tenth of train picked by a hash of the sequence.
    """
    watch = Stopwatch()
    run = Finetuning(study, dataset, name, seed)
    run.train()
    run.write(watch)


class Finetuning:
    """One fine-tuning run."""

    def __init__(self, study: Study, dataset: str, name: str, seed: int) -> None:
        self.study, self.dataset, self.name, self.seed, self.settings = study, dataset, name, seed, study.finetune
        self.section, self.layout = study.benchmarks[dataset], Layout(study)
        check_folder(self.layout.finetuned(dataset, name, seed))
        self.accelerator = build_accelerator(self.settings.precision, single_process="finetune")
        self.benchmark = open_benchmark(study, dataset)
        self.training, self.validation = training_parts(self.benchmark, self.settings.validation_fraction)
        torch.manual_seed(seed)
        model = classifier(study, name, self.benchmark, stranded=self.section.stranded)
        if study.models[name].pretrain:
            start = study.pretraining_seed(seed)
            digest = stage_digest(study, "pretrain", model=name, seed=start)
            load_weights(self.layout.pretrained(name, start), model, stage="pretrain", digest=digest, only="backbone.")
        optimizer = build_optimizer(model, learning_rate=self.settings.learning_rate, weight_decay=self.settings.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.flips = self.settings.reverse_complement and not self.section.stranded
        self.log: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def train(self) -> None:
        """Runs epochs until validation has not improved for `patience` of them."""
        title = f"finetune {self.name} on {self.dataset}, seed {self.seed}"
        for epoch in track(range(1, self.settings.epochs + 1), title, unit="epochs", status=self._status):
            train_loss = self._epoch(epoch)
            scores = self._validate()
            if not (math.isfinite(train_loss) and scores):
                raise GenomemError(
                    f"{title}: the loss is not finite in epoch {epoch}; lower finetune.learning_rate ({self.settings.learning_rate})"
                )
            self.log.append({"epoch": epoch, "train_loss": train_loss, **{f"validation_{key}": value for key, value in scores.items()}})
            better = (scores[self.section.metric], -scores["loss"]) > self.best.get("rank", (-math.inf, -math.inf))
            if better:
                weights = copy.deepcopy(self.accelerator.unwrap_model(self.model).state_dict())
                self.best = {"rank": (scores[self.section.metric], -scores["loss"]), "epoch": epoch, "scores": scores, "weights": weights}
            elif epoch - self.best["epoch"] >= self.settings.patience:
                break
        self.accelerator.unwrap_model(self.model).load_state_dict(self.best["weights"])

    def _epoch(self, epoch: int) -> float:
        """Trains on every sequence once; returns the mean loss in nats."""
        settings, count = self.settings, len(self.training)
        per_epoch = math.ceil(count / settings.batch_size)
        steps, total = settings.epochs * per_epoch, 0.0
        self.model.train()
        for index, rows in enumerate(shuffled_rows(count, settings.batch_size, seed=self.seed, epoch=epoch)):
            step = (epoch - 1) * per_epoch + index
            factor = warmup_cosine(step, steps=steps, warmup=round(settings.warmup * steps), final=0.0)
            set_learning_rate(self.optimizer, settings.learning_rate * factor)
            flip = np.random.default_rng([self.seed, epoch, 1 + index]).random(len(rows)) < 0.5 if self.flips else None
            batch = labelled_batch(self.training, rows, length=fixed_length(self.model), flip=flip)
            logits = self.model(batch.tokens.to(self.accelerator.device), batch.mask.to(self.accelerator.device))
            loss = F.cross_entropy(logits.float(), batch.labels.to(self.accelerator.device))
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            total += loss.item() * len(rows)
        return total / count

    def _validate(self) -> dict[str, float]:
        """Returns the loss in nats and every metric on validation; nothing where a prediction is not finite."""
        probabilities = predict(
            self.model, self.validation, device=self.accelerator.device, batch_size=VALIDATION_BATCH, both_strands=self.flips
        )
        if not np.isfinite(probabilities).all():
            return {}
        likelihood = probabilities[np.arange(len(self.validation)), self.validation.labels]
        return {"loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean()), **score(self.validation.labels, probabilities)}

    def _status(self) -> str:
        metric = self.section.metric
        return f"{metric} {self.log[-1][f'validation_{metric}']:.3f} on validation" if self.log else ""

    def write(self, watch: Stopwatch) -> None:
        """Writes weights, metrics and, last, the record."""
        folder = self.layout.finetuned(self.dataset, self.name, self.seed)
        model = self.accelerator.unwrap_model(self.model)
        digest = stage_digest(self.study, "finetune", dataset=self.dataset, model=self.name, seed=self.seed)
        save_weights(
            folder, model, self.study.models[self.name], vocab_size=VOCAB_SIZE, classes=list(self.benchmark.classes), digest=digest
        )
        write_json_lines(folder / "metrics.jsonl", self.log)
        record = RunRecord(
            stage="finetune",
            study=self.study.name,
            digest=digest,
            keys={"dataset": self.dataset, "model": self.name, "seed": self.seed},
            result={
                "parameters": count_parameters(model),
                "pretrained": self.study.models[self.name].pretrain,
                "best_epoch": self.best["epoch"],
                "epochs": len(self.log),
                "train_sequences": len(self.training),
                "validation_sequences": len(self.validation),
                "validation": self.best["scores"],
                "weights_sha256": weights_sha256(model),
            },
            data=self.benchmark.manifest["files"],
            environment=describe_environment(describe_device(self.accelerator.device)),
            run=watch.run(),
        )
        record.write(folder / "record.json")


def classifier(study: Study, name: str, benchmark: Benchmark, *, stranded: bool) -> nn.Module:
    """Returns the untrained classifier of a model for a benchmark.

    Args:
        stranded: The strand carries the label, as the study says of the benchmark.
    """
    length, settings = int(benchmark.manifest["length_bp"]["max"]), study.finetune
    return build_classifier(
        study.models[name],
        VOCAB_SIZE,
        len(benchmark.classes),
        length=length,
        pooling=settings.pooling,
        dropout=settings.dropout,
        complement=COMPLEMENT,
        stranded=stranded,
    )


def fixed_length(model: nn.Module) -> int | None:
    """Returns the input length that a model is built for, or None where any length serves."""
    return getattr(model, "length", None)


@torch.inference_mode()
def predict(model: nn.Module, part: LabelledSequences, *, device: torch.device, batch_size: int, both_strands: bool) -> np.ndarray:
    """Returns class probabilities `[n, C]` float64.

    Args:
        both_strands: Averages the probabilities of each sequence and its reverse complement.
    """
    model.eval()
    # Batches of similar length waste little on padding; the result goes back in the part's own order.
    order = np.argsort([len(sequence) for sequence in part.sequences], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    strands = (False, True) if both_strands else (False,)
    probabilities = [torch.stack([_probabilities(model, part, rows, flip, device) for flip in strands]).mean(0) for rows in batches]
    result = np.empty((len(part), probabilities[0].shape[1]))
    result[order] = torch.cat(probabilities).numpy()
    return result


def _probabilities(model: nn.Module, part: LabelledSequences, rows: np.ndarray, flip: bool, device: torch.device) -> Tensor:
    batch = labelled_batch(part, rows, length=fixed_length(model), flip=np.full(len(rows), flip))
    return model(batch.tokens.to(device), batch.mask.to(device)).double().softmax(-1).cpu()
