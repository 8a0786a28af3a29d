"""`torch.compile` changes nothing: outputs, states and gradients of the Titans memories and of a model are those of eager mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genomem.config import SequenceModel
from genomem.layers import build_mixer
from genomem.models import build_model

# What PyTorch says of itself: it makes an object of an autograd function to look into it, and traces functions whose results are cached.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]

# It traces and differentiates as every backend does, and needs no C++ compiler.
BACKEND = "aot_eager"
DIM, TOKENS = 8, 16


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """The compiler keeps what it compiled; this forgets it before and after a test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tensors(state: Any) -> list[Tensor]:
    """Returns the tensors of nested tuples and lists, in their order."""
    if isinstance(state, tuple | list):
        return [tensor for part in state for tensor in tensors(part)]
    return [] if state is None else [state]


def results(module: nn.Module, called: Any, given: Tensor) -> list[Tensor]:
    """Returns output and state, and the gradients of all parameters."""
    module.zero_grad()
    output, state = called(given)
    found = [output, *(part for part in tensors(state) if part.is_floating_point())]
    sum(part.square().sum() for part in found).backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    return [part.detach().clone() for part in [*found, *gradients] if part is not None]


def assert_same_when_compiled(module: nn.Module, given: Tensor) -> None:
    expected = results(module, module, given)
    actual = results(module, torch.compile(module, backend=BACKEND), given)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize(
    "options", [{"chunk_size": 8}, {"gradient_block": 4}, {"depth": 2, "gradient_block": 4}], ids=["linear", "blocks", "deep"]
)
def test_a_compiled_memory_layer_is_the_layer(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = build_mixer("titans_lmm", DIM, heads=2, **options)
    assert_same_when_compiled(layer, torch.randn(2, TOKENS, DIM))


def test_a_compiled_model_is_the_model() -> None:
    torch.manual_seed(0)
    layers = [{"mixer": "titans_lmm", "heads": 2, "chunk_size": 8}, {"mixer": "attention", "heads": 2}]
    model = build_model(SequenceModel.model_validate({"dim": DIM, "layers": layers, "stem_kernel": 3}), 5)
    assert_same_when_compiled(model, torch.randint(5, (2, TOKENS)))
