"""The attention mixer with a window: far beyond it, what the full matrix says, without ever holding that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genomem.layers import attention
from genomem.layers.attention import Attention

TOKENS, WINDOW, DIM = 400, 20, 8


@pytest.fixture
def layer() -> Attention:
    torch.manual_seed(0)
    return Attention(DIM, heads=2, window=WINDOW).double()


def run(layer: Attention, hidden: Tensor, **flags: Any) -> list[Tensor]:
    """Returns the output of two calls, the last state, and the gradients of the weights and of the inputs."""
    hidden = hidden.clone().requires_grad_()
    parts = {name: flag.split([150, TOKENS - 150], dim=1) for name, flag in flags.items()}
    outputs, state = [], None
    for part, piece in enumerate(hidden.split([150, TOKENS - 150], dim=1)):
        output, state = layer(piece, state, **{name: flag[part] for name, flag in parts.items()})
        outputs.append(output)
    joined = torch.cat(outputs, dim=1)
    weights = torch.randn(joined.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return [joined, *(state or ()), *torch.autograd.grad((joined * weights).sum(), [hidden, *layer.parameters()])]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_blocks_of_the_window_equal_the_full_matrix(layer: Attention, padded: bool, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, TOKENS, DIM, generator=generator, dtype=torch.float64)
    flags = {}
    if padded:
        flags["mask"] = torch.rand(2, TOKENS, generator=generator) > 0.3
    if packed:
        flags["reset"] = torch.rand(2, TOKENS, generator=generator) > 0.98
    in_blocks = run(layer, hidden, **flags)
    monkeypatch.setattr(attention, "windowed_attention", attention.causal_attention)
    for part, expected in zip(in_blocks, run(layer, hidden, **flags), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-11)


def test_a_window_never_holds_the_full_matrix() -> None:
    layer, hidden = Attention(4, heads=1, window=64), torch.randn(1, 4096, 4)
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(hidden)
    assert sum(event.self_cpu_memory_usage for event in profile.key_averages() if event.self_cpu_memory_usage > 0) < 4096 * 4096
