"""Pretraining: prediction of the next base, or of masked bases, on the training chromosomes, with Accelerate."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.config import Study, is_bidirectional, stage_digest
from genomem.data.batches import BASES, LanguageBatch, Places, WindowSampler, language_batch
from genomem.data.genome import open_genome
from genomem.data.tokenizer import COMPLEMENT, VOCAB_SIZE
from genomem.errors import GenomemError
from genomem.files import check_folder, write_json_lines
from genomem.layout import Layout
from genomem.models import build_model, count_parameters, kmer_settings
from genomem.progress import track
from genomem.record import RunRecord, Stopwatch, describe_environment
from genomem.training.checkpoint import Checkpoints, save_weights, weights_sha256
from genomem.training.device import build_accelerator, describe_device
from genomem.training.interruption import StopRequest, stop_on_signals
from genomem.training.kmer_counts import bases_digest, held_out_counts, learnt_tables, training_counts
from genomem.training.masking import MASK_STREAM, VALIDATION_SEED, masked_batch
from genomem.training.optimizer import build_optimizer, set_learning_rate, warmup_cosine
from genomem.training.scoring import cut_windows, masked_bits_per_base, predict, spaced_places, window_bits_per_base

LOG_EVERY = 25


def pretrain(study: Study, name: str, seed: int) -> None:
    """Pretrains one model of the study with one of `pretrain.seeds` and writes its weights, metrics log and record.

    Goes on from the newest checkpoint of the same study digest. A signal (Ctrl-C, SIGTERM, SIGUSR1) saves a
    checkpoint at the end of the step and raises `KeyboardInterrupt`.

    Raises:
        GenomemError: The batch cannot be shared evenly, the stores are missing, or the loss is not finite.
    """
    watch = Stopwatch()
    run = Pretraining(study, name, seed)
    with stop_on_signals() as stop:
        run.train(stop)
    if run.accelerator.is_main_process:
        run.write(watch)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


class Pretraining:
    """One pretraining run: what it reads, what it trains, and how far it has come.

    A bidirectional model predicts masked bases, any other the next one. A masked score is another quantity than bits per base, so the
    log and the record hold it under other names: `masked_train_bits`, `masked_validation_bits`.
    """

    def __init__(self, study: Study, name: str, seed: int) -> None:
        self.study, self.name, self.seed, self.settings = study, name, seed, study.pretrain
        self.layout = Layout(study)
        self.accelerator = build_accelerator(self.settings.precision)
        self.parts = self.accelerator.num_processes * self.settings.accumulation
        if self.settings.batch_size % self.parts:
            raise GenomemError(
                f"pretrain.batch_size: {self.settings.batch_size} windows cannot be shared by {self.accelerator.num_processes} processes"
                f" x accumulation {self.settings.accumulation}; make it a multiple of {self.parts}"
            )
        for folder in (self.layout.pretrained(name, seed), self.layout.checkpoints(name, seed)):
            check_folder(folder)
        self.genomes = {key: open_genome(study, key) for key in study.genomes}
        self.data = {key: genome.sequence_sha256 for key, genome in self.genomes.items()}
        self.digest = stage_digest(study, "pretrain", model=name, seed=seed)
        self.sampler = WindowSampler(
            [(genome, study.genomes[key].weight) for key, genome in self.genomes.items()],
            context_bp=self.settings.context_bp,
            batch_size=self.settings.batch_size,
            reverse_complement=self.settings.reverse_complement,
            seed=seed,
        )
        held_out = [genome.bases(chrom) for genome in self.genomes.values() for chrom in genome.chromosomes("validation")]
        places = spaced_places(held_out, self.settings.context_bp + 1, self.settings.validation_bp)
        self.validation = cut_windows(held_out, places, self.settings.context_bp + 1)
        if not len(self.validation):
            raise GenomemError(
                f"pretrain.context_bp: no validation chromosome has {self.settings.context_bp + 1} bases; shorten the context"
            )
        self.is_masked = is_bidirectional(study.models[name])
        self.kind = "masked_" if self.is_masked else ""
        torch.manual_seed(seed)
        model = build_model(study.models[name], VOCAB_SIZE, complement=COMPLEMENT, bases=BASES)
        optimizer = build_optimizer(
            model, learning_rate=self.settings.learning_rate, weight_decay=self.settings.weight_decay, betas=self.settings.betas
        )
        self.checkpoints = Checkpoints(self.layout.checkpoints(name, seed) / self.digest, self.data)
        self.resumed_from, self.log = self.checkpoints.restore(model, optimizer)
        self.seconds_before = self.log[-1]["seconds"] if self.log else 0.0
        self.counts, self.validation_counts = self._kmer_counts(held_out, places)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def _kmer_counts(self, held_out: list[np.ndarray], places: Places) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns what the k-mer memory knows before each base of training, by step, and of the validation windows; None without one."""
        memory = getattr(self.study.models[self.name], "kmer_memory", None)
        if memory is None or memory.start == "empty":
            return None, None
        settings, path = kmer_settings(memory), self.checkpoints.folder / f"kmer_counts-{bases_digest(self.data)}.npy"
        with self.accelerator.main_process_first():
            counts = training_counts(settings, self.sampler, self.settings.steps, path, f"{self.title}: k-mer memory")
        tables = learnt_tables(settings, self.sampler.chromosomes)
        return counts, held_out_counts(tables, held_out, places, self.settings.context_bp)

    @property
    def title(self) -> str:
        """What the run is called where it speaks to the user."""
        return f"pretrain {self.name}, seed {self.seed}"

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper of data parallelism."""
        return self.accelerator.unwrap_model(self.model)

    def train(self, stop: StopRequest) -> None:
        """Runs the steps that are left."""
        began = time.monotonic() - self.seconds_before
        steps: Iterable[int] = range(self.resumed_from, self.settings.steps)
        if self.accelerator.is_main_process:
            steps = track(steps, self.title, total=self.settings.steps, start=self.resumed_from, unit="steps", status=self._status)
        for step in steps:
            loss, norm, rate = self._step(step)
            done = step + 1
            last = done == self.settings.steps
            if done % LOG_EVERY == 0 or last:
                seconds = round(time.monotonic() - began, 2)
                bits = {f"{self.kind}train_bits": loss.item() / math.log(2)}
                self._write_log(done, **bits, learning_rate=rate, gradient_norm=norm.item(), seconds=seconds)
            if done % self.settings.validate_every == 0 or last:
                bits = {f"{self.kind}validation_bits": self._validation_bits()}
                self._write_log(done, **bits, seconds=round(time.monotonic() - began, 2))
            if done % self.settings.checkpoint_every == 0 and not last:
                self._save(done)
            if self._should_stop(stop) and not last:
                self._save(done)
                raise KeyboardInterrupt(f"step {done} is saved; the same command goes on from there")

    def _step(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Takes one optimiser step; returns the loss in nats a base over the global batch, the gradient norm and the learning rate."""
        settings = self.settings
        factor = warmup_cosine(step, steps=settings.steps, warmup=settings.warmup_steps, final=settings.final_learning_rate)
        set_learning_rate(self.optimizer, settings.learning_rate * factor)
        # Dropout is a function of (seed, step, rank), so a resumed run draws the same masks.
        torch.manual_seed((self.seed * 1_000_003 + step) * 64 + self.accelerator.process_index)
        batch = self._batch(step)
        total = batch.weights.sum().clamp(min=1e-6).item()
        self.model.train()
        loss = torch.zeros((), device=self.accelerator.device)
        for index in range(settings.accumulation):
            part = batch.part(self.accelerator.process_index * settings.accumulation + index, self.parts).to(self.accelerator.device)
            is_last = index == settings.accumulation - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                part_loss = self._loss(part) / total
                # Data parallelism averages gradients over processes; the loss is a sum over them.
                self.accelerator.backward(part_loss * self.accelerator.num_processes)
            loss += part_loss.detach()
        loss = self.accelerator.reduce(loss, reduction="sum")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise GenomemError(
                f"{self.title}: the loss or its gradient is not finite at step {step + 1};"
                f" lower pretrain.learning_rate ({settings.learning_rate}) or raise pretrain.warmup_steps ({settings.warmup_steps})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, settings.learning_rate * factor

    def _batch(self, step: int) -> LanguageBatch:
        """Returns the global batch of a step, the same on every process."""
        windows, settings = self.sampler.windows(step), self.settings
        if not self.is_masked:
            return language_batch(windows, settings.repeat_weight, None if self.counts is None else self.counts[step])
        seed = (self.seed, step, MASK_STREAM)
        # The last base of a window is there for a model that predicts the next one.
        return masked_batch(windows[:, :-1], fraction=settings.mask_fraction, repeat_weight=settings.repeat_weight, seed=seed)

    def _loss(self, batch: LanguageBatch) -> Tensor:
        """Returns the weighted sum of -ln p over a part of the batch."""
        logits = self.model(batch.tokens) if self.is_masked else predict(self.model, batch)[0]
        nats = F.cross_entropy(logits[..., BASES].float().flatten(0, 1), batch.targets.flatten(), reduction="none")
        return (nats * batch.weights.flatten()).sum()

    def _validation_bits(self) -> float:
        """Returns the mean over what is scored in the validation windows; processes share the windows."""
        self.bare_model.eval()
        size, rank = max(1, self.settings.batch_size // self.parts), self.accelerator.process_index
        chunks = [slice(start, start + size) for start in range(0, len(self.validation), size)]
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for rows in chunks[rank :: self.accelerator.num_processes]:
            bits = self._masked_bits(rows) if self.is_masked else self._next_base_bits(rows)
            total += torch.tensor([np.nansum(bits, dtype=np.float64), np.isfinite(bits).sum()], device=total.device)
        bits_sum, count = self.accelerator.reduce(total, reduction="sum").tolist()
        if not count:
            raise GenomemError("genomes: the validation chromosomes hold nothing but N where pretraining looks; hold out another one")
        return bits_sum / count

    def _next_base_bits(self, rows: slice) -> np.ndarray:
        """Returns bits per base over the second half of some validation windows."""
        counts = None if self.validation_counts is None else self.validation_counts[rows]
        bits = window_bits_per_base(self.bare_model, self.validation[rows], self.accelerator.device, counts)
        return bits[:, self.settings.context_bp // 2 :]

    def _masked_bits(self, rows: slice) -> np.ndarray:
        """Returns bits per masked base over some validation windows."""
        return masked_bits_per_base(self.bare_model, self._masked_validation.rows(rows), self.accelerator.device)

    @functools.cached_property
    def _masked_validation(self) -> LanguageBatch:
        """The validation windows, with the same masks at every validation of every run."""
        return masked_batch(self.validation[:, :-1], fraction=self.settings.mask_fraction, repeat_weight=1.0, seed=VALIDATION_SEED)

    def _write_log(self, step: int, **values: float) -> None:
        tokens = step * self.settings.batch_size * self.settings.context_bp
        self.log.append({"step": step, "tokens": tokens, **{key: round(value, 6) for key, value in values.items()}})

    def _status(self) -> str:
        latest = {key: value for row in self.log for key, value in row.items()}
        keys = {label: f"{self.kind}{label}_bits" for label in ("train", "validation")}
        shown = [f"{label} {latest[key]:.3f}" for label, key in keys.items() if key in latest]
        speed = f"{self._tokens_per_second() / 1000:.1f}k tokens/s" if latest.get("seconds") else ""
        unit = "bits/masked base" if self.is_masked else "bits/base"
        return " ".join([*shown, unit if shown else "", speed]).strip()

    def _tokens_per_second(self) -> float:
        return self.log[-1]["tokens"] / self.log[-1]["seconds"] if self.log and self.log[-1].get("seconds") else 0.0

    def _should_stop(self, stop: StopRequest) -> bool:
        """True on every process as soon as one has had a signal."""
        if self.accelerator.num_processes == 1:
            return stop.requested
        flag = torch.tensor(float(stop.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())

    def _save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self.checkpoints.save(step, self.bare_model, self.optimizer.optimizer, self.log)
        self.accelerator.wait_for_everyone()

    def write(self, watch: Stopwatch) -> None:
        """Writes weights, metrics and, last, the record; then the checkpoints are no longer needed."""
        folder = self.layout.pretrained(self.name, self.seed)
        save_weights(folder, self.bare_model, self.study.models[self.name], vocab_size=VOCAB_SIZE, digest=self.digest)
        write_json_lines(folder / "metrics.jsonl", self.log)
        validations = [row[key] for row in self.log if (key := f"{self.kind}validation_bits") in row]
        result = {
            "parameters": count_parameters(self.bare_model),
            "steps": self.settings.steps,
            "tokens": self.settings.steps * self.settings.batch_size * self.settings.context_bp,
            "training_bp": self.sampler.num_bases,
            f"final_{self.kind}validation_bits": validations[-1],
            f"best_{self.kind}validation_bits": min(validations),
            "weights_sha256": weights_sha256(self.bare_model),
            "processes": self.accelerator.num_processes,
        }
        run = watch.run()
        run["wall_seconds"] += self.seconds_before
        record = RunRecord(
            stage="pretrain",
            study=self.study.name,
            digest=self.digest,
            keys={"model": self.name, "seed": self.seed},
            result=result,
            data=self.data,
            environment=describe_environment(describe_device(self.accelerator.device)),
            run={**run, "tokens_per_second": round(self._tokens_per_second()), "resumed_from_step": self.resumed_from},
        )
        record.write(folder / "record.json")
        self.checkpoints.clear()
