"""The tasks of the final evaluation."""

from __future__ import annotations

import argparse

from genomem.cli.arguments import add_dataset, add_model, add_verb, read_finetuned_study, read_pretrained_study, read_study


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Adds a task for each evaluation."""
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    add_verb(tasks, "markov", _evaluate_markov, "fit Markov models on the training chromosomes and score the test chromosomes")
    add_model(add_verb(tasks, "language", _evaluate_language, "score the test chromosomes with a pretrained model"))
    add_verb(tasks, "comparison", _evaluate_comparison, "compare every language model with `evaluate.baseline`, block by block")
    add_model(add_verb(tasks, "recall", _evaluate_recall, "what a pretrained model pays for a repeat that it has read before"))
    add_dataset(add_verb(tasks, "controls", _evaluate_controls, "what a benchmark gives away without a model, and its leaks"))
    add_dataset(
        add_model(add_verb(tasks, "classification", _evaluate_classification, "score a benchmark's test set with every seed of a model"))
    )


def _evaluate_markov(arguments: argparse.Namespace) -> None:
    from genomem.evaluation.markov import evaluate_markov

    evaluate_markov(read_study(arguments))


def _evaluate_language(arguments: argparse.Namespace) -> None:
    study = read_pretrained_study(arguments)
    from genomem.evaluation.language import evaluate_language

    evaluate_language(study, arguments.model)


def _evaluate_comparison(arguments: argparse.Namespace) -> None:
    from genomem.evaluation.comparison import evaluate_comparison

    evaluate_comparison(read_study(arguments))


def _evaluate_recall(arguments: argparse.Namespace) -> None:
    study = read_pretrained_study(arguments)
    from genomem.evaluation.recall import evaluate_recall

    evaluate_recall(study, arguments.model)


def _evaluate_controls(arguments: argparse.Namespace) -> None:
    from genomem.evaluation.controls import evaluate_controls

    evaluate_controls(read_study(arguments), arguments.dataset)


def _evaluate_classification(arguments: argparse.Namespace) -> None:
    study = read_finetuned_study(arguments)
    from genomem.evaluation.classification import evaluate_classification

    evaluate_classification(study, arguments.dataset, arguments.model)
