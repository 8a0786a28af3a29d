"""Keeping autograd functions out of mixed precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shields the method of an autograd function from autocast."""

    @functools.wraps(function)
    def shielded(ctx, first, *rest):
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *rest)

    return shielded
