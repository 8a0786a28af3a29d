"""Weights and checkpoints: whole or absent, and restored to the last bit."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genomem.config import SequenceModel
from genomem.errors import GenomemError
from genomem.models import build_classifier, build_model
from genomem.training import checkpoint
from genomem.training.checkpoint import Checkpoints, load_weights, save_weights, weights_sha256
from genomem.training.optimizer import build_optimizer

CONFIG = SequenceModel.model_validate({"dim": 8, "layers": ["titans_lmm"], "stem_kernel": 3})
DATA = {"alpha": "0" * 64}
ORIGIN: dict[str, Any] = {"stage": "pretrain", "digest": "a" * 16}
FULL = OSError(errno.ENOSPC, "No space left on device")


class Run:
    """A model and its optimiser, stepped on random gradients."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = build_model(CONFIG, 16)
        self.optimizer = build_optimizer(self.model, learning_rate=0.01, weight_decay=0.1)

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.optimizer.step()

    def restored(self, checkpoints: Checkpoints) -> tuple[int, list]:
        return checkpoints.restore(self.model, self.optimizer)

    @property
    def digest(self) -> str:
        return weights_sha256(self.model)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "pretrain" / "0123456789abcdef", DATA)


def save_steps(checkpoints: Checkpoints, run: Run, steps: int) -> list[str]:
    """Saves a checkpoint after each step and returns the digests of the weights."""
    digests = []
    for step in range(1, steps + 1):
        run.step(step)
        checkpoints.save(step, run.model, run.optimizer, [{"step": step}])
        digests.append(run.digest)
    return digests


def test_a_restored_run_goes_on_bit_for_bit(checkpoints: Checkpoints) -> None:
    run, other = Run(seed=0), Run(seed=1)
    save_steps(checkpoints, run, 3)
    assert other.restored(checkpoints) == (3, [{"step": 3}])
    for number in (4, 5):
        run.step(number)
        other.step(number)
    assert other.digest == run.digest


def test_nothing_to_restore(checkpoints: Checkpoints) -> None:
    run = Run()
    before = run.digest
    assert run.restored(checkpoints) == (0, [])
    assert run.digest == before


def test_the_newest_two_are_kept_and_clear_removes_all(checkpoints: Checkpoints) -> None:
    save_steps(checkpoints, Run(), 4)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000003", "step-00000004"]
    checkpoints.clear()
    assert not checkpoints.folder.exists()
    checkpoints.clear()


def test_clear_removes_what_former_versions_of_the_study_left_of_the_same_model(tmp_path: Path) -> None:
    former, other_model, checkpoints = (Checkpoints(tmp_path / name, DATA) for name in ("titans/aaaa", "cnn/aaaa", "titans/bbbb"))
    for each in (former, other_model, checkpoints):
        save_steps(each, Run(), 1)
    checkpoints.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["cnn"]
    assert other_model.folder.exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no progress", "empty progress", "odd progress"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    checkpoints: Checkpoints, damage: str, capsys: pytest.CaptureFixture
) -> None:
    digests = save_steps(checkpoints, Run(), 2)
    newest = checkpoints.folder / "step-00000002"
    weights, progress = newest / "model.safetensors", newest / "progress.json"
    content = weights.read_bytes()
    match damage:
        case "cut":
            weights.write_bytes(content[:-10])
        case "changed":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "missing":
            weights.unlink()
        case "no progress":
            progress.unlink()
        case "empty progress":
            progress.write_text("")
        case "odd progress":
            progress.write_text("[]")
    run = Run(seed=1)
    assert run.restored(checkpoints) == (1, [{"step": 1}])
    assert run.digest == digests[0]
    assert "checkpoint step-00000002 is damaged" in capsys.readouterr().err


def test_other_bases_are_refused(checkpoints: Checkpoints) -> None:
    save_steps(checkpoints, Run(), 1)
    with pytest.raises(GenomemError, match="made from other bases than the stores hold now; delete"):
        Run().restored(Checkpoints(checkpoints.folder, {"alpha": "1" * 64}))


@pytest.mark.parametrize("failing", ["model.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_save_that_fails_in_the_middle_leaves_the_former_checkpoint_and_no_rest(
    checkpoints: Checkpoints, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    (digest,) = save_steps(checkpoints, run, 1)
    write = Path.write_bytes

    def fails(path: Path, content: bytes) -> int:
        if path.name == failing:
            write(path, content[: len(content) // 2])
            raise FULL
        return write(path, content)

    def fails_too(path: Path, value: object) -> None:
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", fails)
    if failing == "progress.json":
        monkeypatch.setattr(checkpoint, "write_json", fails_too)
    run.step(2)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, run.model, run.optimizer, [])
    monkeypatch.undo()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]
    other = Run(seed=1)
    assert other.restored(checkpoints) == (1, [{"step": 1}])
    assert other.digest == digest


def test_a_save_that_was_killed_leaves_a_rest_that_does_not_matter(checkpoints: Checkpoints) -> None:
    run = Run()
    save_steps(checkpoints, run, 1)
    (checkpoints.folder / ".step-00000002.tmp").mkdir()
    (checkpoints.folder / ".step-00000002.tmp" / "model.safetensors").write_bytes(b"half")
    assert Run().restored(checkpoints) == (1, [{"step": 1}])
    checkpoints.save(2, run.model, run.optimizer, [])
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_saving_a_step_again_replaces_it(checkpoints: Checkpoints) -> None:
    run = Run()
    save_steps(checkpoints, run, 1)
    run.step(9)
    checkpoints.save(1, run.model, run.optimizer, [{"step": 1, "again": True}])
    other = Run(seed=1)
    assert other.restored(checkpoints) == (1, [{"step": 1, "again": True}])
    assert other.digest == run.digest


def test_weights_come_back_to_the_last_bit(tmp_path: Path) -> None:
    run, other = Run(seed=0), Run(seed=1)
    assert run.digest != other.digest
    save_weights(tmp_path, run.model, CONFIG, vocab_size=16, digest="a" * 16)
    load_weights(tmp_path, other.model, **ORIGIN)
    assert other.digest == run.digest
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["vocab_size"] == 16
    assert SequenceModel.model_validate(facts["config"]) == CONFIG


def test_weight_files_have_the_permissions_of_any_new_file(tmp_path: Path, checkpoints: Checkpoints) -> None:
    run = Run()
    save_weights(tmp_path, run.model, CONFIG, digest="a" * 16)
    run.step(1)
    checkpoints.save(1, run.model, run.optimizer, [])
    (tmp_path / "plain").touch()
    expected = os.stat(tmp_path / "plain").st_mode
    files = [tmp_path / "model.safetensors", tmp_path / "model.json", *(checkpoints.folder / "step-00000001").iterdir()]
    assert [path.name for path in files if os.stat(path).st_mode != expected] == []


def test_the_backbone_alone_is_loaded_into_a_classifier(tmp_path: Path) -> None:
    run = Run()
    save_weights(tmp_path, run.model, CONFIG, digest="a" * 16)
    classifier = build_classifier(CONFIG, 16, 3, length=10)
    head = classifier.head.weight.clone()
    load_weights(tmp_path, classifier, **ORIGIN, only="backbone.")
    assert weights_sha256(classifier.backbone) == weights_sha256(run.model.backbone)
    assert torch.equal(classifier.head.weight, head)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    save_weights(tmp_path, Run().model, CONFIG, digest="a" * 16)
    wider = CONFIG.model_copy(update={"dim": 16})
    deeper = CONFIG.model_copy(update={"repeat": 2})
    with pytest.raises(GenomemError, match="has other sizes than the model"):
        load_weights(tmp_path, build_model(wider, 16), **ORIGIN)
    with pytest.raises(GenomemError, match="does not fit the model"):
        load_weights(tmp_path, build_model(deeper, 16), **ORIGIN)


@pytest.mark.parametrize("facts", [{}, {"digest": "b" * 16}], ids=["no digest", "another"])
def test_weights_of_another_version_of_the_study_are_refused(tmp_path: Path, facts: dict[str, str]) -> None:
    save_weights(tmp_path, Run().model, CONFIG, **facts)
    other = Run(seed=1)
    before = other.digest
    with pytest.raises(GenomemError, match=r"model\.safetensors: made for another version of the study; run `genomem pretrain` again"):
        load_weights(tmp_path, other.model, **ORIGIN)
    assert other.digest == before


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    with pytest.raises(GenomemError, match=r"model\.safetensors: no such file; run the training stage first"):
        load_weights(tmp_path, Run().model, **ORIGIN)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(GenomemError, match=r"model\.safetensors: damaged"):
        load_weights(tmp_path, Run().model, **ORIGIN)


def test_a_failed_save_keeps_the_former_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(seed=0)
    save_weights(tmp_path, run.model, CONFIG, digest="a" * 16)

    def fails(path: Path, content: bytes) -> int:
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="No space left"):
        save_weights(tmp_path, Run(seed=1).model, CONFIG)
    other = Run(seed=2)
    load_weights(tmp_path, other.model, **ORIGIN)
    assert other.digest == run.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_the_digest_of_weights_depends_on_names_and_bits() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert weights_sha256(first) == weights_sha256(second)
    assert weights_sha256(nn.Sequential(first)) != weights_sha256(first)
    with torch.no_grad():
        second.bias[0] = torch.nextafter(second.bias[0], torch.tensor(torch.inf))
    assert weights_sha256(first) != weights_sha256(second)
