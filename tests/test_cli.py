"""The command line: help for everything, one line for every mistake, and the stages in order."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genomem import __version__, cli
from genomem.cli import main, stages
from genomem.config import Study, dump_study
from genomem.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, GenomemError
from genomem.layout import Layout
from genomem.record import RunRecord

MakeStudy = Callable[..., Study]
ROOT = Path(cli.__file__).parents[2]

OTHER_VERBS = ["memorize", "compress-score", "inspect", "bench"]
VERBS = ["validate", "simulate", "download", "tokenize", "pretrain", "finetune", "evaluate", "report", *OTHER_VERBS]
TASKS = ["markov", "language", "comparison", "recall", "controls", "classification"]
COMMANDS = [[verb] for verb in VERBS] + [["evaluate", task] for task in TASKS] + [["inspect", "kmer"]]

STAGES = [
    ["pretrain", "--model", "titans"],
    ["finetune", "--model", "scratch", "--dataset", "composition", "--seed", "0"],
    ["evaluate", "markov"],
    ["evaluate", "language", "--model", "titans"],
    ["evaluate", "comparison"],
    ["evaluate", "recall", "--model", "titans"],
    ["evaluate", "controls", "--dataset", "composition"],
    ["evaluate", "classification", "--model", "scratch", "--dataset", "composition"],
]

# A sequence of the repeat is longer than a window of training, so the attention needs one of its own.
EVERY_EVALUATION: dict[str, Any] = {
    "models": {"attention": {"layers": [{"mixer": "attention", "heads": 2, "window": 16}]}},
    "evaluate": {"baseline": "attention", "recall": {"repeat_bp": 64, "gaps_bp": [0, 20, 40], "lead_bp": 8, "samples": 4}},
}


def with_study(command: list[str], study: Path) -> list[str]:
    """Puts the study file behind the verb, or behind the task."""
    words = 2 if command[0] == "evaluate" else 1
    return [*command[:words], str(study), *command[words:]]


def line(capsys: pytest.CaptureFixture) -> str:
    """Returns the one line on standard error, without the prefix; there is nothing on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("genomem: error: ")
    return captured.err.removeprefix("genomem: error: ").strip()


@pytest.fixture
def tiny_file(tiny_study: Study, study_file: Callable[[Study], Path]) -> Path:
    return study_file(tiny_study)


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help(command: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == EXIT_OK
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {' '.join(['genomem', *command])}")
    others = {"memorize": ["FASTA"], "compress-score": ["FASTA"], "inspect": ["kmer"], "inspect kmer": ["FILE"], "bench": ["memory"]}
    listed = ({"": VERBS, "evaluate": TASKS} | others).get(" ".join(command), ["STUDY"])
    assert all(word in shown for word in listed)


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == EXIT_OK
    assert capsys.readouterr().out == f"genomem {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from genomem.cli import main
try:
    main(["pretrain", "--help"])
except SystemExit:
    pass
sys.exit(", ".join(sorted({"torch", "pydantic", "numpy", "yaml", "accelerate", "matplotlib"} & set(sys.modules))) or 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [[], ["pretrian"], ["evaluate"], ["evaluate", "x"], ["pretrain"], ["pretrain", "a.yaml"]], ids=" ".join
)
def test_what_argparse_refuses(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == EXIT_USER_ERROR
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["download", "tokenize"])
@pytest.mark.parametrize("options", [[], ["--genome", "a", "--dataset", "b"]], ids=["neither", "both"])
def test_one_thing_at_a_time_is_fetched_and_tokenized(verb: str, options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "study.yaml", *options])
    assert stop.value.code == EXIT_USER_ERROR
    assert "--genome" in capsys.readouterr().err


def test_a_seed_is_a_number(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "study.yaml", "--model", "m", "--dataset", "d", "--seed", "one"])
    assert stop.value.code == EXIT_USER_ERROR
    assert "'one'" in capsys.readouterr().err


NEEDS = {"download": ["--genome", "alpha"], "tokenize": ["--genome", "alpha"]}
EVERY_VERB = [*STAGES, *([verb, *NEEDS.get(verb, [])] for verb in ("validate", "simulate", "download", "tokenize", "report"))]


@pytest.mark.parametrize("command", EVERY_VERB, ids=lambda command: "-".join(command[:2]))
def test_a_missing_study(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(with_study(command, tmp_path / "none.yaml")) == EXIT_USER_ERROR
    assert line(capsys) == f"{tmp_path}/none.yaml: no such study file; config/ holds examples"


@pytest.mark.parametrize("content", ["", "name: [", "name: a\n"], ids=["empty", "syntax", "incomplete"])
def test_a_faulty_study(content: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    assert main(["validate", str(path)]) == EXIT_USER_ERROR
    assert line(capsys).startswith(str(path))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["pretrain", "--model", "x"], "no model 'x'; it has titans, attention, scratch, cnn"),
        (["pretrain", "--model", "scratch"], "models.scratch has `pretrain: false`; finetune trains it from scratch"),
        (["pretrain", "--model", "cnn"], "models.cnn has `pretrain: false`; finetune trains it from scratch"),
        (["pretrain", "--model", "titans", "--seed", "9"], "no pretraining seed 9; it has 0"),
        (["finetune", "--model", "x", "--dataset", "composition", "--seed", "0"], "no model 'x'; it has titans"),
        (["finetune", "--model", "cnn", "--dataset", "x", "--seed", "0"], "no dataset 'x'; it has composition"),
        (["finetune", "--model", "cnn", "--dataset", "composition", "--seed", "9"], "no seed 9; it has 0, 1"),
        (["evaluate", "language", "--model", "x"], "no model 'x'; it has titans"),
        (["evaluate", "controls", "--dataset", "x"], "no dataset 'x'; it has composition"),
        (["evaluate", "classification", "--dataset", "composition", "--model", "x"], "no model 'x'; it has titans"),
        (["tokenize", "--genome", "x"], "no genome 'x'; it has alpha, beta"),
        (["tokenize", "--dataset", "x"], "no dataset 'x'; it has composition"),
        (["download", "--genome", "x"], "no genome 'x'; it has alpha, beta"),
        (["download", "--dataset", "x"], "no dataset 'x'; it has composition"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_key_that_the_study_lacks(command: list[str], words: str, tiny_file: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert main(with_study(command, tiny_file)) == EXIT_USER_ERROR
    assert line(capsys).startswith(f"{tiny_file}: {words}")


@pytest.mark.parametrize(
    ("seed", "words"),
    [([], "has several pretraining seeds (3, 0); choose one with --seed"), (["--seed", "1"], "no pretraining seed 1; it has 3, 0")],
    ids=["none", "unknown"],
)
def test_pretraining_without_a_seed_of_the_study(
    seed: list[str], words: str, make_study: MakeStudy, study_file: Callable[[Study], Path], capsys: pytest.CaptureFixture
) -> None:
    path = study_file(make_study(pretrain={"seeds": [3, 0]}))
    capsys.readouterr()
    assert main(["pretrain", str(path), "--model", "titans", *seed]) == EXIT_USER_ERROR
    assert line(capsys) == f"{path}: {words}"


@pytest.mark.parametrize(("option", "expected"), [([], 5), (["--seed", "5"], 5)], ids=["left out", "given"])
def test_the_only_pretraining_seed_may_be_left_out(
    option: list[str],
    expected: int,
    make_study: MakeStudy,
    study_file: Callable[[Study], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from genomem.training import pretrain as module

    asked = []
    monkeypatch.setattr(module, "pretrain", lambda study, name, seed: asked.append((name, seed)))
    assert main(["pretrain", str(study_file(make_study(pretrain={"seeds": [5]}))), "--model", "titans", *option]) == EXIT_OK
    assert asked == [("titans", expected)]


@pytest.mark.parametrize("command", [["finetune", "--seed", "0"], ["evaluate", "classification"]], ids=lambda command: command[0])
def test_fine_tuning_a_language_model_alone(
    command: list[str], make_study: MakeStudy, study_file: Callable[[Study], Path], capsys: pytest.CaptureFixture
) -> None:
    path = study_file(make_study(models={"titans": {"finetune": False}}))
    capsys.readouterr()
    assert main(with_study([*command, "--model", "titans", "--dataset", "composition"], path)) == EXIT_USER_ERROR
    assert line(capsys) == f"{path}: models.titans has `finetune: false`; it is a language model alone"


@pytest.mark.parametrize("task", ["language", "recall"])
def test_evaluating_a_language_model_that_is_not_pretrained(task: str, tiny_file: Path, capsys: pytest.CaptureFixture) -> None:
    for model in ("scratch", "cnn"):
        capsys.readouterr()
        assert main(["evaluate", task, str(tiny_file), "--model", model]) == EXIT_USER_ERROR
        assert f"models.{model} has `pretrain: false`" in line(capsys)


@pytest.mark.parametrize("command", STAGES, ids=lambda command: "-".join(command[:2]))
def test_stages_out_of_order(command: list[str], make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = make_study(**EVERY_EVALUATION).model_copy(update={"results": tmp_path / "nothing"})
    (tmp_path / "tiny.yaml").write_text(dump_study(study))
    capsys.readouterr()
    assert main(with_study(command, tmp_path / "tiny.yaml")) == EXIT_USER_ERROR
    assert str(tmp_path / "nothing") in line(capsys)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("option", [["--genome", "alpha"], ["--dataset", "composition"]], ids="-".join)
def test_tokenizing_what_was_not_downloaded(
    option: list[str], make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    study = make_study().model_copy(update={"resources": tmp_path / "nothing"})
    (tmp_path / "tiny.yaml").write_text(dump_study(study))
    capsys.readouterr()
    assert main(["tokenize", str(tmp_path / "tiny.yaml"), *option]) == EXIT_USER_ERROR
    assert str(tmp_path / "nothing") in line(capsys)


@pytest.mark.parametrize("command", EVERY_VERB, ids=lambda command: "-".join(command[:2]))
def test_results_that_are_a_file(command: list[str], tiny_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tiny.yaml").write_text(dump_study(tiny_study.model_copy(update={"results": tmp_path / "file" / "tiny"})))
    capsys.readouterr()
    assert main(with_study(command, tmp_path / "tiny.yaml")) == EXIT_USER_ERROR
    assert line(capsys).startswith(f"{tmp_path}/file: is a file, but a folder is needed here")
    assert (tmp_path / "file").read_text() == "in the way"


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def validate(arguments: object) -> None:
        raise error

    monkeypatch.setattr(stages, "_validate", validate)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_a_full_disk(number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    fail_with(monkeypatch, OSError(number, os.strerror(number), "results/a.json"))
    assert main(["validate", "study.yaml"]) == EXIT_USER_ERROR
    assert line(capsys).startswith(f"results/a.json: {os.strerror(number)}; ")


def test_a_full_disk_without_a_file_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    fail_with(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert main(["validate", "study.yaml"]) == EXIT_USER_ERROR
    assert "No space left on device" in line(capsys)


def test_missing_permissions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    fail_with(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "results"))
    assert main(["validate", "study.yaml"]) == EXIT_USER_ERROR
    assert line(capsys).startswith("results: Permission denied; ")


def test_a_disk_that_fills_up_while_training(
    tiny_file: Path, tiny_study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".safetensors":
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["pretrain", str(tiny_file), "--model", "titans"]) == EXIT_USER_ERROR
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    (folder,) = Layout(tiny_study).checkpoints("titans", 0).iterdir()
    assert list(folder.iterdir()) == []


def test_a_message_is_made_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    fail_with(monkeypatch, GenomemError("a\n  b"))
    assert main(["validate", "study.yaml"]) == EXIT_USER_ERROR
    assert line(capsys) == "a b"


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["validate", "study.yaml"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err.startswith("genomem: interrupted")


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EIO, "Input/output error")], ids=repr)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["validate", "study.yaml"])


def test_validate_says_what_will_run(tiny_file: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert main(["validate", str(tiny_file)]) == EXIT_OK
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines() == [
        f"{tiny_file}: a valid study 'tiny'",
        "  genomes     alpha, beta",
        "  benchmarks  composition",
        "  models      titans, attention, scratch, cnn (2 pretrained)",
        "  runs        2 pretraining, 8 fine-tuning (2 seeds)",
    ]


def test_validate_counts_every_pretraining_run(
    make_study: MakeStudy, study_file: Callable[[Study], Path], capsys: pytest.CaptureFixture
) -> None:
    path = study_file(make_study(pretrain={"seeds": [0, 1, 2]}))
    capsys.readouterr()
    assert main(["validate", str(path)]) == EXIT_OK
    assert capsys.readouterr().out.splitlines()[-1] == "  runs        6 pretraining (3 seeds), 8 fine-tuning (2 seeds)"


def test_every_stage_in_order(make_study: MakeStudy, study_file: Callable[[Study], Path], capsys: pytest.CaptureFixture) -> None:
    study = make_study(seeds=[0], pretrain={"steps": 2}, finetune={"epochs": 1}, **EVERY_EVALUATION)
    study = study.model_copy(update={"models": {name: study.models[name] for name in ("titans", "attention")}})
    path, layout = study_file(study), Layout(study)
    fine_tuned = [["--model", model, "--dataset", "composition"] for model in study.models]
    commands = [
        ["tokenize", "--genome", "alpha"],
        ["tokenize", "--genome", "beta"],
        ["tokenize", "--dataset", "composition"],
        *(["pretrain", "--model", model] for model in study.models),
        *(["finetune", *keys, "--seed", "0"] for keys in fine_tuned),
        ["evaluate", "markov"],
        *(["evaluate", "language", "--model", model] for model in study.models),
        ["evaluate", "comparison"],
        *(["evaluate", "recall", "--model", model] for model in study.models),
        ["evaluate", "controls", "--dataset", "composition"],
        *(["evaluate", "classification", *keys] for keys in fine_tuned),
        ["report"],
    ]
    for command in commands:
        capsys.readouterr()
        assert main(with_study(command, path)) == EXIT_OK, capsys.readouterr().err
        out = capsys.readouterr().out
        assert out == ("" if command != ["report"] else f"report: {layout.report.resolve()}\n")
    records = [RunRecord.read(file) for file in layout.results.rglob("*.json") if file.name == "record.json" or "evaluate" in file.parts]
    assert sorted(record.stage for record in records) == sorted(
        ["evaluate_markov", "evaluate_comparison", "evaluate_controls"]
        + 2 * ["pretrain", "finetune", "evaluate_language", "evaluate_recall", "evaluate_classification"]
    )
    assert layout.report.stat().st_size > 1000


def test_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "genomem", "validate", "none.yaml"], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (EXIT_USER_ERROR, "")
    assert run.stderr == "genomem: error: none.yaml: no such study file; config/ holds examples\n"
