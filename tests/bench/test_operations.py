"""The counted multiply-adds against those that PyTorch sees while the layer runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from genomem.bench.operations import FORWARD_AND_BACKWARD, titans_lmm_multiply_adds
from genomem.layers import build_mixer

# What the count leaves out of the matrix products: sums over a row of [C, C], a product with a vector.
TOLERANCE = 0.02
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "baddbmm_", "linalg_solve_triangular")


def _added_product(_, left, right, *, out_shape=None, **options):
    return 2 * math.prod(left) * right[-1]


def _substitution(matrix, right, *, out_shape=None, **options):
    """Flops of a forward substitution, which reads half of the matrix."""
    return math.prod(matrix) * right[-1]


UNKNOWN_TO_TORCH = {torch.ops.aten.baddbmm_: _added_product, torch.ops.aten.linalg_solve_triangular: _substitution}


def _seen(work) -> tuple[object, float]:
    """Returns what `work` returns and the multiply-adds of its matrix products."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        result = work()
    flops = {str(operation).removeprefix("aten."): number for operation, number in counter.get_flop_counts()["Global"].items()}
    # The short convolution is depthwise, which PyTorch counts as a full one in the backward pass.
    assert set(flops) <= {*PRODUCTS, "convolution", "convolution_backward"}
    return result, sum(flops.get(name, 0) for name in PRODUCTS) / 2


@pytest.mark.parametrize(
    ("length", "dim", "heads", "chunk_size"),
    [(128, 32, 2, 16), (130, 32, 2, 16), (256, 64, 2, 64), (512, 128, 4, 64), (40, 64, 4, 64)],
    ids=["small", "ragged end", "wide heads", "four heads", "shorter than a chunk"],
)
def test_the_count_is_what_pytorch_sees(length, dim, heads, chunk_size):
    mixer = build_mixer("titans_lmm", dim, heads=heads, chunk_size=chunk_size)
    hidden = torch.randn(1, length, dim, requires_grad=True)
    expected = titans_lmm_multiply_adds(length, dim, heads, chunk_size)
    output, forward = _seen(lambda: mixer(hidden)[0])
    assert forward == pytest.approx(expected, rel=TOLERANCE)
    _, backward = _seen(lambda: output.sum().backward())
    assert forward + backward == pytest.approx(FORWARD_AND_BACKWARD * expected, rel=TOLERANCE)


def test_the_count_of_the_example_by_hand():
    # D = 4, one head, one chunk of 2 tokens: 2 (5 16 + 3 4) + 3 8 / 2 + 6 4 4 + 6 2 16.
    assert titans_lmm_multiply_adds(2, 4, 1, 2) == 184 + 12 + 96 + 192


def test_the_count_grows_with_the_length_and_not_faster():
    assert titans_lmm_multiply_adds(64 * 1000, 256, 4, 64) == 1000 * titans_lmm_multiply_adds(64, 256, 4, 64)
