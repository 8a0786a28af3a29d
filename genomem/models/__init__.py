"""Models: tokens to predictions, built from the study's `models:` section."""

from __future__ import annotations

from torch import nn

from genomem.config import CNN as CNNConfig
from genomem.config import Model, SequenceModel
from genomem.errors import GenomemError
from genomem.models.cnn import CNN, SHORTEST_INPUT
from genomem.models.sequence_model import Backbone, LanguageModel, SequenceClassifier


def build_model(config: Model, vocab_size: int) -> LanguageModel:
    """Returns the language model of a study's `models:` entry.

    Raises:
        GenomemError: The architecture is a classifier only.
    """
    if not isinstance(config, SequenceModel):
        raise GenomemError(f"architecture {config.architecture} classifies only; it is no language model")
    return LanguageModel(config, vocab_size)


def build_classifier(
    config: Model, vocab_size: int, num_classes: int, *, length: int, pooling: str = "mean", dropout: float = 0.0
) -> nn.Module:
    """Returns a classifier `(tokens [B, T], mask [B, T]) -> logits [B, num_classes]` of a study's `models:` entry.

    Args:
        length: Longest input in tokens; a model of fixed input length is built for it.
        pooling, dropout: Of a `SequenceClassifier`.
    """
    if isinstance(config, CNNConfig):
        return CNN(vocab_size, num_classes, max(length, SHORTEST_INPUT))
    return SequenceClassifier(config, vocab_size, num_classes, pooling=pooling, dropout=dropout)


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trained numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


__all__ = ["CNN", "Backbone", "LanguageModel", "SequenceClassifier", "build_classifier", "build_model", "count_parameters"]
