"""AdamW's groups, and the learning rate by step."""

from __future__ import annotations

import math

import pytest
import torch

from genomem.config import SequenceModel
from genomem.models import build_model
from genomem.training.optimizer import build_optimizer, set_learning_rate, warmup_cosine


def test_matrices_decay_and_tables_and_vectors_do_not() -> None:
    model = build_model(SequenceModel.model_validate({"dim": 8, "layers": ["titans_lmm"], "stem_kernel": 3}), 16)
    optimizer = build_optimizer(model, learning_rate=0.1, weight_decay=0.3, betas=(0.8, 0.9))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {
        "backbone.stem.motifs": 0.0,
        "backbone.stem.bias": 0.0,
        "backbone.stem.embedding.weight": 0.0,
        "backbone.stem.out.weight": 0.3,
        "backbone.blocks.0.mixer_norm.weight": 0.0,
        "backbone.blocks.0.mixer.momentum_bound": 0.0,
        "backbone.blocks.0.mixer.qkv.weight": 0.3,
        "backbone.blocks.0.mixer.convolution.weight": 0.3,
        "backbone.blocks.0.mixer.gates.weight": 0.3,
        "backbone.blocks.0.mixer.gates.bias": 0.0,
        "backbone.blocks.0.mixer.norm.weight": 0.0,
        "backbone.blocks.0.mixer.output_gate.weight": 0.3,
        "backbone.blocks.0.mixer.out.weight": 0.3,
        "backbone.blocks.0.mlp_norm.weight": 0.0,
        "backbone.blocks.0.mlp.value_gate.weight": 0.3,
        "backbone.blocks.0.mlp.out.weight": 0.3,
        "backbone.norm.weight": 0.0,
        "head.weight": 0.3,
        "head.bias": 0.0,
    }
    assert all((group["lr"], group["betas"]) == (0.1, (0.8, 0.9)) for group in optimizer.param_groups)
    set_learning_rate(optimizer, 0.7)
    assert all(group["lr"] == 0.7 for group in optimizer.param_groups)


def test_rates_and_networks_that_make_filters_do_not_decay() -> None:
    model = build_model(SequenceModel.model_validate({"dim": 8, "layers": ["mamba", "hyena"], "mlp_ratio": 0}), 16)
    decay = build_optimizer(model, learning_rate=0.1, weight_decay=0.3).param_groups[0]
    names = {id(parameter): name for name, parameter in model.backbone.blocks.named_parameters()}
    assert {names[id(parameter)] for parameter in decay["params"] if id(parameter) in names} == {
        *(f"0.mixer.{part}.weight" for part in ("value_gate", "convolution", "selection", "step_size", "out")),
        *(f"1.mixer.{part}.weight" for part in ("projections", "convolution", "out")),
    }


def test_a_model_of_vectors_alone_has_one_group() -> None:
    assert len(build_optimizer(torch.nn.RMSNorm(4), learning_rate=0.1, weight_decay=0.1).param_groups) == 1


def test_warmup_rises_in_even_steps_and_the_cosine_falls_to_the_end() -> None:
    factors = [warmup_cosine(step, steps=14, warmup=4, final=0.2) for step in range(15)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert factors[4 + 5] == pytest.approx(0.6)  # half way
    assert factors[14] == pytest.approx(0.2)
    assert all(one > other for one, other in zip(factors[4:], factors[5:], strict=False))
    assert factors[7] == pytest.approx(0.2 + 0.8 * math.cos(math.pi * 0.3 / 2) ** 2)


def test_warmup_longer_than_the_run_and_none_at_all() -> None:
    assert warmup_cosine(3, steps=4, warmup=100, final=0.0) == pytest.approx(4 / 101)
    assert warmup_cosine(0, steps=1, warmup=0, final=0.0) == 1.0
    assert warmup_cosine(50, steps=4, warmup=0, final=0.1) == pytest.approx(0.1)
