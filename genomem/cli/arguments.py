"""What verbs share: their study, its keys, numbers, and lines on standard output."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from genomem.errors import GenomemError

if TYPE_CHECKING:
    from genomem.config import Study


def add_verb(verbs, name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
    """Adds a verb whose first argument is the study."""
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("study", type=Path, metavar="STUDY", help="study file, such as config/quickstart.yaml")
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds `--model`."""
    parser.add_argument("--model", required=True, help="a key under `models:`")
    return parser


def add_dataset(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds `--dataset`."""
    parser.add_argument("--dataset", required=True, help="a key under `benchmarks:`")
    return parser


def whole_number(text: str) -> int:
    """Reads a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Reads whole numbers from 1 between commas."""
    return tuple(map(whole_number, text.split(",")))


def words(text: str) -> tuple[str, ...]:
    """Reads words between commas."""
    return tuple(text.split(","))


def seconds_above_zero(text: str) -> float:
    """Reads a finite number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def read_study(arguments: argparse.Namespace) -> Study:
    """Reads the study and checks that the keys on the command line stand in it, and that its results can be written."""
    from genomem.config import load_study
    from genomem.files import check_folder
    from genomem.layout import Layout

    study = load_study(arguments.study)
    check_folder(Layout(study).results)
    for option, section in (("genome", study.genomes), ("dataset", study.benchmarks), ("model", study.models)):
        key = getattr(arguments, option, None)
        if key is not None and key not in section:
            raise GenomemError(f"{arguments.study}: no {option} {key!r}; it has {', '.join(section) or 'none'}")
    return study


def read_pretrained_study(arguments: argparse.Namespace) -> Study:
    """Reads the study and checks that its model is one that is pretrained."""
    study = read_study(arguments)
    if not study.models[arguments.model].pretrain:
        raise GenomemError(f"{arguments.study}: models.{arguments.model} has `pretrain: false`; finetune trains it from scratch")
    return study


def read_finetuned_study(arguments: argparse.Namespace) -> Study:
    """Reads the study and checks that its model is one that is fine-tuned."""
    study = read_study(arguments)
    if arguments.model not in study.classifiers:
        raise GenomemError(f"{arguments.study}: models.{arguments.model} has `finetune: false`; it is a language model alone")
    return study


def show_line(line: str) -> None:
    """Prints one line on standard output, at once, without breaking a progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)
