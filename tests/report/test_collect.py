"""Records that are missing, of another study, or of other data are refused in one line that says what to run."""

from __future__ import annotations

import re

import pytest

from genomem.errors import GenomemError

PRETRAIN = "genomem pretrain config/tiny.yaml --model attention --seed 0"


def refused(written) -> str:
    with pytest.raises(GenomemError) as caught:
        written.report()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "command"),
    [
        (lambda layout: layout.genome_store("alpha") / "manifest.json", "genomem tokenize config/tiny.yaml --genome alpha"),
        (lambda layout: layout.benchmark_store("coding") / "manifest.json", "genomem tokenize config/tiny.yaml --dataset coding"),
        (lambda layout: layout.simulation_record, "genomem simulate config/tiny.yaml"),
        (lambda layout: layout.markov, "genomem evaluate markov config/tiny.yaml"),
        (lambda layout: layout.pretrained("attention", 0) / "record.json", PRETRAIN),
        (lambda layout: layout.pretrained("attention", 0) / "metrics.jsonl", PRETRAIN),
        (lambda layout: layout.comparison, "genomem evaluate comparison config/tiny.yaml"),
        (lambda layout: layout.language("titans_lmm"), "genomem evaluate language config/tiny.yaml --model titans_lmm"),
        (lambda layout: layout.recall("titans_lmm"), "genomem evaluate recall config/tiny.yaml --model titans_lmm"),
        (lambda layout: layout.controls("coding"), "genomem evaluate controls config/tiny.yaml --dataset coding"),
        (
            lambda layout: layout.finetuned("coding", "conv_net", 2) / "record.json",
            "genomem finetune config/tiny.yaml --model conv_net --dataset coding --seed 2",
        ),
        (
            lambda layout: layout.classification("coding", "conv_net"),
            "genomem evaluate classification config/tiny.yaml --model conv_net --dataset coding",
        ),
    ],
)
def test_a_missing_file_names_itself_and_the_command(write_study, path, command):
    written = write_study(evaluate={"baseline": "attention", "recall": {"repeat_bp": 400, "gaps_bp": [0]}})
    missing = path(written.layout)
    missing.unlink()
    message = refused(written)
    assert message.startswith(f"{missing}: ")
    assert f"`{command}`" in message
    assert not written.layout.report.exists()
    assert not written.layout.report.with_suffix(".json").exists()


def test_a_record_of_another_study_is_refused_with_both_digests(write_study):
    written = write_study()
    path = written.layout.classification("promoters", "attention")
    before = re.search(r'"digest": "(\w{16})"', path.read_text()).group(1)
    written.edit(path, {"digest": "0" * 16})
    message = refused(written)
    assert message.startswith(f"{path}: ")
    assert "0" * 16 in message
    assert before in message
    assert "`genomem evaluate classification config/tiny.yaml --model attention --dataset promoters`" in message


def test_a_changed_setting_refuses_the_records_that_depend_on_it(write_study):
    written = write_study()
    changed = written.study.model_copy(update={"finetune": written.study.finetune.model_copy(update={"epochs": 77})})
    written.study = changed
    assert "genomem finetune" in refused(written)


def test_a_record_in_the_place_of_another_stage_is_refused(write_study):
    written = write_study()
    written.layout.markov.write_bytes(written.layout.language("attention").read_bytes())
    assert "is a record of stage evaluate_language, not evaluate_markov" in refused(written)


def test_a_record_made_from_other_sequences_is_refused(write_study):
    written = write_study()
    path = written.layout.finetuned("coding", "attention", 1) / "record.json"
    written.edit(path, {"data": {"train/positive.csv.gz": "f" * 64}})
    message = refused(written)
    assert message.startswith("coding/train/positive.csv.gz: ")
    assert "finetune, dataset coding, model attention, seed 1" in message


def test_a_broken_learning_curve_names_the_line(write_study):
    written = write_study()
    path = written.layout.finetuned("coding", "attention", 1) / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20]]) + "\n")
    assert refused(written).startswith(f"{path}, line 2: not valid JSON")
