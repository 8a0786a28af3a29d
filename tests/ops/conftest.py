"""Covering sets: a test with an argument `choice` runs over choices from its module's `FACTORS`, in which any two values meet."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest


def pairwise(factors: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Returns choices in which any two values of two factors stand together at least once; the best of random ones is taken each time."""
    generator, choices = random.Random(0), []
    values = [[(name, value) for value in factor] for name, factor in factors.items()]
    missing = {pair for two in itertools.combinations(values, 2) for pair in itertools.product(*two)}
    while missing:
        wanted = dict(min(missing, key=str))
        tries = [dict(map(generator.choice, values)) | wanted for _ in range(100)]
        met = [missing.intersection(itertools.combinations(choice.items(), 2)) for choice in tries]
        best = max(range(len(tries)), key=lambda index: len(met[index]))
        choices.append(tries[best])
        missing -= met[best]
    return choices


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "choice" in metafunc.fixturenames:
        choices = pairwise(metafunc.module.FACTORS)
        metafunc.parametrize("choice", choices, ids=["-".join(map(str, choice.values())) for choice in choices])
