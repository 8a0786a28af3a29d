"""The convolutional baseline that GenomicBenchmarks ships with its datasets."""

from __future__ import annotations

from torch import Tensor, nn

from genomem.errors import GenomemError

# Three times: convolution of 8 without padding, then halving.
SHORTEST_INPUT = 64


class CNN(nn.Module):
    """Embedding of 100, three convolutions of 16, 8 and 4 filters of 8 bases with batch norm and pooling, 512 hidden units.

    Its size depends on the input length, because the last feature map is flattened: 264k parameters at 1,024 bases,
    which is the figure that tables quote, and fewer on shorter inputs.

    Args:
        vocab_size: Rows of the embedding.
        num_classes: Outputs.
        length: Input length in tokens; shorter sequences are padded to it, and inputs under 64 are padded to 64.

    Source: Gresova et al., BMC Genomic Data 24, 25 (2023).
    """

    def __init__(self, vocab_size: int, num_classes: int, length: int) -> None:
        super().__init__()
        if length < SHORTEST_INPUT:
            raise GenomemError(f"cnn: input of {length} tokens is shorter than {SHORTEST_INPUT}; pad it")
        self.length = length
        self.embedding = nn.Embedding(vocab_size, 100)
        widths = (100, 16, 8, 4)
        self.features = nn.Sequential()
        for before, after in zip(widths, widths[1:], strict=False):
            self.features.extend([nn.Conv1d(before, after, kernel_size=8), nn.BatchNorm1d(after), nn.ReLU(), nn.MaxPool1d(2)])
        for _ in widths[1:]:
            length = (length - 7) // 2
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * length, 512), nn.ReLU(), nn.Linear(512, num_classes))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns logits `[B, classes]` of tokens `[B, length]`. `mask` is unused: padding is one more token, as in the original."""
        return self.head(self.features(self.embedding(tokens).transpose(1, 2)))
