"""Weights on disk, and checkpoints to resume from: safetensors and JSON, never pickle.

```
<checkpoints>/<digest of the stage>/step-00000200/
  model.safetensors  optimizer.safetensors  progress.json (step, log, data digests, checksums; written last)
```
A checkpoint is written to a temporary folder and renamed when whole. Batches and dropout are functions of
(seed, step), so weights, optimiser and step are all the state that there is, and resuming is bit-exact.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from genomem.config import Section
from genomem.errors import GenomemError
from genomem.files import atomic_path, make_folder, read_json, sha256_file, write_json
from genomem.progress import say

KEPT = 2


def save_weights(folder: Path, model: nn.Module, config: Section, **facts: Any) -> None:
    """Writes `model.safetensors`, and `model.json` with the model's configuration and `facts`."""
    with atomic_path(folder / "model.safetensors") as temporary:
        _write(temporary, model.state_dict())
    write_json(folder / "model.json", {"config": config.model_dump(mode="json"), **facts})


def load_weights(folder: Path, model: nn.Module, *, stage: str, digest: str, only: str = "") -> None:
    """Loads `model.safetensors` into a model of the same shape.

    Args:
        stage: The verb that writes these weights, "pretrain" or "finetune".
        digest: `stage_digest` of that stage in the study.
        only: Prefix of the names to load, such as ``"backbone."``; the rest of the model stays as it is.

    Raises:
        GenomemError: The file is missing or damaged, was made for another version of the study, or does not fit the model.
    """
    path = folder / "model.safetensors"
    weights = {name: x for name, x in _load(path).items() if name.startswith(only)}
    if read_json(folder / "model.json").get("digest") != digest:
        raise GenomemError(f"{path}: made for another version of the study; run `genomem {stage}` again")
    wanted = {name for name in model.state_dict() if name.startswith(only)}
    if set(weights) != wanted:
        odd = sorted(set(weights) ^ wanted)[0]
        raise GenomemError(f"{path}: does not fit the model ({odd!r} is on one side only); run the training stage again")
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError:
        raise GenomemError(f"{path}: has other sizes than the model in the study; run the training stage again") from None


def weights_sha256(model: nn.Module) -> str:
    """Returns the SHA-256 over the names and bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_plain(model.state_dict()).items()):
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: Of this run alone, in the folder of its model. Its name is the stage digest, so a changed study never resumes
            from another's.
        data: Genome -> digest of its bases; a checkpoint made from other bases is refused.
    """

    folder: Path
    data: Mapping[str, str]

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, log: list[dict[str, Any]]) -> None:
        """Writes the checkpoint after `step` steps, atomically, and removes all but the newest two."""
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        try:
            _write(temporary / "model.safetensors", model.state_dict())
            _write(temporary / "optimizer.safetensors", _optimizer_tensors(optimizer))
            checksums = {name: sha256_file(temporary / name) for name in ("model.safetensors", "optimizer.safetensors")}
            for name in checksums:
                _sync(temporary / name)
            write_json(temporary / "progress.json", {"step": step, "log": log, "data": dict(self.data), "sha256": checksums})
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(self.folder)
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, Any]]]:
        """Loads the newest whole checkpoint; returns its step and log, or 0 and an empty log where there is none.

        Raises:
            GenomemError: The checkpoint was made from other bases.
        """
        for path in reversed(self._steps()):
            try:
                progress = read_json(path / "progress.json")
                damaged = [name for name, digest in progress["sha256"].items() if sha256_file(path / name) != digest]
                if damaged:
                    raise GenomemError(f"{path / damaged[0]}: its checksum is wrong")
            except (GenomemError, OSError, KeyError, TypeError) as error:
                say(f"checkpoint {path.name} is damaged ({error}); going back to the one before")
                continue
            if progress["data"] != dict(self.data):
                raise GenomemError(f"{path}: made from other bases than the stores hold now; delete {self.folder} to train anew")
            model.load_state_dict(_load(path / "model.safetensors"))
            _restore_optimizer(optimizer, _load(path / "optimizer.safetensors"))
            return progress["step"], progress["log"]
        return 0, []

    def clear(self) -> None:
        """Removes the checkpoints of a finished run, and those that former versions of the study left of the same model."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().cpu().contiguous() for name, x in tensors.items()}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # The library's own `save_file` makes private 0600 files and hides a full disk behind an error of its own.
    path.write_bytes(save(_plain(tensors)))


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise GenomemError(f"{path}: no such file; run the training stage first") from None
    except SafetensorError as error:
        raise GenomemError(f"{path}: damaged ({error}); delete it and run the training stage again") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
