"""Models: tokens to predictions, built from the study's `models:` section."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genomem.config import CNN as CNNConfig
from genomem.config import Model, SequenceModel
from genomem.errors import GenomemError
from genomem.models.bidirectional import BidirectionalBackbone, MaskedLanguageModel
from genomem.models.cnn import CNN, SHORTEST_INPUT
from genomem.models.sequence_model import Backbone, LanguageModel, SequenceClassifier, kmer_settings


def build_model(
    config: Model, vocab_size: int, *, complement: Sequence[int] = (), bases: slice | None = None
) -> LanguageModel | MaskedLanguageModel:
    """Returns the language model of a study's `models:` entry: a causal one, or a masked one where the entry is bidirectional.

    Args:
        complement: Token id -> id of its complement on the other strand; a bidirectional model reads both strands and needs it.
        bases: Token ids of A, C, G and T, one after the other; a model with a k-mer memory needs them.

    Raises:
        GenomemError: The architecture is a classifier only.
        ValueError: A bidirectional model is built without `complement`, or a k-mer memory without `bases`.
    """
    if not isinstance(config, SequenceModel):
        raise GenomemError(f"architecture {config.architecture} classifies only; it is no language model")
    if config.bidirectional:
        return MaskedLanguageModel(config, vocab_size, complement)
    return LanguageModel(config, vocab_size, bases)


def build_classifier(
    config: Model,
    vocab_size: int,
    num_classes: int,
    *,
    length: int,
    pooling: str = "mean",
    dropout: float = 0.0,
    complement: Sequence[int] = (),
    stranded: bool = False,
) -> nn.Module:
    """Returns a classifier `(tokens [B, T], mask [B, T]) -> logits [B, num_classes]` of a study's `models:` entry.

    Args:
        length: Longest input in tokens; a model of fixed input length is built for it.
        pooling, dropout: Of a `SequenceClassifier`.
        complement: As in `build_model`.
        stranded: The strand carries the label: a bidirectional model then reads the given strand alone.

    Raises:
        ValueError: A bidirectional model is built without `complement`.
    """
    if isinstance(config, CNNConfig):
        return CNN(vocab_size, num_classes, max(length, SHORTEST_INPUT))
    return SequenceClassifier(config, vocab_size, num_classes, pooling=pooling, dropout=dropout, complement=complement, stranded=stranded)


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trained numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


__all__ = [
    "CNN",
    "Backbone",
    "BidirectionalBackbone",
    "LanguageModel",
    "MaskedLanguageModel",
    "SequenceClassifier",
    "build_classifier",
    "build_model",
    "count_parameters",
    "kmer_settings",
]
