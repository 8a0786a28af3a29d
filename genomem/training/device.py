"""The name of the device that a job ran on, for its record."""

from __future__ import annotations

import torch


def describe_device(device: torch.device) -> str:
    """Returns ``cpu``, or the device and the model of the GPU: ``cuda:0 (NVIDIA A100-SXM4-80GB)``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
