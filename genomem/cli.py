"""The command line: one verb a stage. The only place for arguments, standard output and exit codes.

Hyper-parameters live in the study, not in flags, so that a study file is the whole experiment.
Heavy imports happen inside the verbs: `genomem --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genomem import __version__
from genomem.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, GenomemError

if TYPE_CHECKING:
    from genomem.config import Study

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 2 a mistake that the user can mend, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except GenomemError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        print("genomem: interrupted" + (f"; {error}" if str(error) else ""), file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in DISK_FULL and not isinstance(error, PermissionError):
            raise
        problem = f"{error.filename or 'results'}: {error.strerror}"
        return _fail(f"{problem}; nothing half-written was kept - make room or mend the permissions, and run it again")
    return EXIT_OK


def _fail(message: str) -> int:
    print(f"genomem: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genomem",
        description="DNA models that remember, from reference genomes to a benchmark report.",
        epilog="`snakemake --cores all` runs every stage of a study in order; each verb runs one stage by hand.",
    )
    parser.add_argument("--version", action="version", version=f"genomem {__version__}")
    verbs = parser.add_subparsers(title="stages, in the order of a study", metavar="VERB", required=True)
    _add(verbs, "validate", _validate, "check a study file and say what it will run")
    _add(verbs, "simulate", _simulate, "make the study's simulated genomes and benchmarks")
    _data(_add(verbs, "download", _download, "fetch a genome or benchmark, from the mirror first, and verify it"))
    _data(_add(verbs, "tokenize", _tokenize, "turn a FASTA or a benchmark into a memory-mapped store"))
    summary = "pretrain a model on the next base, or on masked ones, one seed; goes on from its last checkpoint"
    pretraining = _model(_add(verbs, "pretrain", _pretrain, summary))
    pretraining.add_argument("--seed", type=int, help="one of `pretrain.seeds:`; may be left out where there is one only")
    _seed(_dataset(_model(_add(verbs, "finetune", _finetune, "fine-tune a model on a benchmark, one seed"))))
    _evaluate_tasks(verbs.add_parser("evaluate", help="the final evaluation: held-out chromosomes, test sets, controls"))
    _add(verbs, "report", _report, "write the HTML report from all records of the study")
    _bench_topics(verbs.add_parser("bench", help="not a stage: speed and memory against peers and floors"))
    return parser


def _add(verbs, name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("study", type=Path, metavar="STUDY", help="study file, such as config/quickstart.yaml")
    parser.set_defaults(run=run)
    return parser


def _data(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--genome", help="a key under `genomes:`")
    choice.add_argument("--dataset", help="a key under `benchmarks:`")


def _model(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--model", required=True, help="a key under `models:`")
    return parser


def _dataset(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--dataset", required=True, help="a key under `benchmarks:`")
    return parser


def _seed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--seed", required=True, type=int, help="one of `seeds:`")
    return parser


def _evaluate_tasks(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    _add(tasks, "markov", _evaluate_markov, "fit Markov models on the training chromosomes and score the test chromosomes")
    _model(_add(tasks, "language", _evaluate_language, "score the test chromosomes with a pretrained model"))
    _add(tasks, "comparison", _evaluate_comparison, "compare every language model with `evaluate.baseline`, block by block")
    _model(_add(tasks, "recall", _evaluate_recall, "what a pretrained model pays for a repeat that it has read before"))
    _dataset(_add(tasks, "controls", _evaluate_controls, "what a benchmark gives away without a model, and its leaks"))
    _dataset(_model(_add(tasks, "classification", _evaluate_classification, "score a benchmark's test set with every seed of a model")))


def _bench_topics(parser: argparse.ArgumentParser) -> None:
    topics = parser.add_subparsers(title="topics", metavar="TOPIC", required=True)
    summary = "forward and backward of one memory layer, against peers, attention and matrix products"
    memory = topics.add_parser("memory", help=summary, description=summary[0].upper() + summary[1:] + ".")
    memory.add_argument("--lengths", type=_numbers, default=(1024, 4096, 16384, 65536), metavar="T,T", help="tokens of the sequence")
    memory.add_argument("--dim", type=_number, default=256, help="width of the layers")
    memory.add_argument("--heads", type=_number, default=4, help="heads of the layers that have several")
    memory.add_argument("--chunk", type=_number, default=64, help="tokens a chunk, of the layers that have chunks")
    memory.add_argument("--rows", type=_words, default=(), metavar="ROW,ROW", help="some rows only; a wrong name lists them all")
    _conditions(memory).set_defaults(run=_bench_memory)


def _conditions(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the layers run")
    parser.add_argument("--threads", type=_number, default=1, help="threads of PyTorch on the CPU")
    parser.add_argument("--repeats", type=_number, default=3, help="timed passes after the warm-up; the median counts")
    parser.add_argument("--limit-seconds", type=_seconds, default=120.0, metavar="S", help="the most time for one row at one length")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write the results there, as JSON, Markdown and SVG")
    return parser


def _number(text: str) -> int:
    """Reads a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_number, text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


# ---------------------------------------------------------------- verbs


def _study(arguments: argparse.Namespace) -> Study:
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


def _pretrained_study(arguments: argparse.Namespace) -> Study:
    """Reads the study and checks that its model is one that is pretrained."""
    study = _study(arguments)
    if not study.models[arguments.model].pretrain:
        raise GenomemError(f"{arguments.study}: models.{arguments.model} has `pretrain: false`; finetune trains it from scratch")
    return study


def _chosen_seed(arguments: argparse.Namespace, seeds: Sequence[int], kind: str) -> int:
    """Returns the seed on the command line, or the only one of `seeds`, which are of the `kind` that errors name."""
    known = ", ".join(map(str, seeds))
    if arguments.seed is None and len(seeds) > 1:
        raise GenomemError(f"{arguments.study}: has several {kind}s ({known}); choose one with --seed")
    if arguments.seed is not None and arguments.seed not in seeds:
        raise GenomemError(f"{arguments.study}: no {kind} {arguments.seed}; it has {known}")
    return seeds[0] if arguments.seed is None else arguments.seed


def _validate(arguments: argparse.Namespace) -> None:
    study = _study(arguments)
    runs = len(study.models) * len(study.benchmarks) * len(study.seeds)
    seeds = len(study.pretrain.seeds)
    pretraining = f"{len(study.pretrained_models) * seeds} pretraining" + (f" ({seeds} seeds)" if seeds > 1 else "")
    print(f"{arguments.study}: a valid study '{study.name}'")
    print(f"  genomes     {', '.join(study.genomes)}")
    print(f"  benchmarks  {', '.join(study.benchmarks) or 'none'}")
    print(f"  models      {', '.join(study.models)} ({len(study.pretrained_models)} pretrained)")
    print(f"  runs        {pretraining}, {runs} fine-tuning ({len(study.seeds)} seeds)")


def _simulate(arguments: argparse.Namespace) -> None:
    from genomem.data.simulate import simulate

    simulate(_study(arguments))


def _download(arguments: argparse.Namespace) -> None:
    from genomem.data import download

    study = _study(arguments)
    if arguments.genome:
        download.download_genome(study, arguments.genome)
    else:
        download.download_benchmark(study, arguments.dataset)


def _tokenize(arguments: argparse.Namespace) -> None:
    from genomem.config import stage_digest
    from genomem.layout import Layout

    study = _study(arguments)
    layout = Layout(study)
    if arguments.genome:
        from genomem.data.genome import tokenize_genome

        section, name = study.genomes[arguments.genome], arguments.genome
        roles = {"validation": section.validation, "test": section.test, "exclude": section.exclude}
        digest = stage_digest(study, "tokenize_genome", genome=name)
        tokenize_genome(layout.genome_fasta(name), layout.genome_store(name), name=name, **roles, digest=digest)
    else:
        from genomem.data.benchmark import tokenize_benchmark

        name = arguments.dataset
        limit, digest = study.benchmarks[name].max_length_bp, stage_digest(study, "tokenize_benchmark", dataset=name)
        tokenize_benchmark(layout.benchmark_source(name), layout.benchmark_store(name), name=name, max_length_bp=limit, digest=digest)


def _pretrain(arguments: argparse.Namespace) -> None:
    study = _pretrained_study(arguments)
    seed = _chosen_seed(arguments, study.pretrain.seeds, "pretraining seed")
    from genomem.training.pretrain import pretrain

    pretrain(study, arguments.model, seed)


def _finetune(arguments: argparse.Namespace) -> None:
    study = _study(arguments)
    seed = _chosen_seed(arguments, study.seeds, "seed")
    from genomem.training.finetune import finetune

    finetune(study, arguments.dataset, arguments.model, seed)


def _evaluate_markov(arguments: argparse.Namespace) -> None:
    from genomem.evaluation.markov import evaluate_markov

    evaluate_markov(_study(arguments))


def _evaluate_language(arguments: argparse.Namespace) -> None:
    study = _pretrained_study(arguments)
    from genomem.evaluation.language import evaluate_language

    evaluate_language(study, arguments.model)


def _evaluate_comparison(arguments: argparse.Namespace) -> None:
    from genomem.evaluation.comparison import evaluate_comparison

    evaluate_comparison(_study(arguments))


def _evaluate_recall(arguments: argparse.Namespace) -> None:
    study = _pretrained_study(arguments)
    from genomem.evaluation.recall import evaluate_recall

    evaluate_recall(study, arguments.model)


def _evaluate_controls(arguments: argparse.Namespace) -> None:
    from genomem.evaluation.controls import evaluate_controls

    evaluate_controls(_study(arguments), arguments.dataset)


def _evaluate_classification(arguments: argparse.Namespace) -> None:
    study = _study(arguments)
    from genomem.evaluation.classification import evaluate_classification

    evaluate_classification(study, arguments.dataset, arguments.model)


def _report(arguments: argparse.Namespace) -> None:
    from genomem.layout import Layout
    from genomem.report import write_report

    study = _study(arguments)
    write_report(study, arguments.study)
    print(f"report: {Layout(study).report.resolve()}")


def _bench_memory(arguments: argparse.Namespace) -> None:
    from genomem.bench.measure import Conditions
    from genomem.bench.memory import MemorySettings, bench_memory

    conditions = Conditions(arguments.device, arguments.threads, arguments.repeats, arguments.limit_seconds)
    settings = MemorySettings(arguments.lengths, arguments.dim, arguments.heads, arguments.chunk, arguments.rows, conditions)
    bench_memory(settings, arguments.out, _show)
    if arguments.out:
        print(f"results: {(arguments.out / 'memory.md').resolve()}")


def _show(line: str) -> None:
    """Prints one line on standard output, at once, without breaking a progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
