"""AdamW with parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Returns AdamW in which matrices decay; embeddings, look-up tables, logarithms of rates, networks that make filters, norms, gates'
    biases and other vectors do not.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_table = id(parameter) in embeddings or name.endswith(("stem.motifs", "A_log", "A_imag")) or ".filter." in name
        (keep if parameter.dim() < 2 or is_table else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas)


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Returns the factor on the learning rate: linear from 1 / (warmup + 1) to 1, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
