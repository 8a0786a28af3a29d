"""The device and the processes that a training or evaluation job runs on."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from genomem.errors import GenomemError

# Other processes wait while the first one reads a genome into a k-mer memory: 3 billion bases on both strands take less than this.
MOST_HOURS_ALONE = 6

_MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16"}


def build_accelerator(precision: str, *, single_process: str = "") -> Accelerator:
    """Returns Accelerate's view of the processes and the device: CUDA where there is a GPU, else the CPU.

    Apple's GPU is left alone: it has no float64, which rotary angles and probabilities are computed in.

    Args:
        precision: `float32` or `bfloat16`, in which weights stay float32.
        single_process: The verb, for work that is not shared between processes.

    Raises:
        GenomemError: `single_process` runs under several.
    """
    on_apple = torch.backends.mps.is_available() and not torch.cuda.is_available()
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=MOST_HOURS_ALONE))
    accelerator = Accelerator(mixed_precision=_MIXED_PRECISION[precision], cpu=on_apple or None, kwargs_handlers=[waiting])
    if single_process and accelerator.num_processes > 1:
        raise GenomemError(f"genomem {single_process}: runs in one process, not {accelerator.num_processes}; start it without torchrun")
    return accelerator


def describe_device(device: torch.device) -> str:
    """Returns ``cpu``, or the device and the model of the GPU: ``cuda:0 (NVIDIA A100-SXM4-80GB)``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
