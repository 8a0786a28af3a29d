"""Places on a genome: 0-based, half-open, with a strand."""

from __future__ import annotations

from dataclasses import dataclass

from genomem.errors import GenomemError


@dataclass(frozen=True)
class Interval:
    """A stretch of one chromosome, as in BED.

    Attributes:
        chrom: Name of the chromosome.
        start: First base, counted from 0.
        end: One past the last base.
        strand: "+" as stored, or "-" for the reverse complement.

    Raises:
        GenomemError: The bounds are not 0 <= start <= end, or the strand is neither "+" nor "-".
    """

    chrom: str
    start: int
    end: int
    strand: str = "+"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise GenomemError(f"{self}: an interval needs 0 <= start <= end (0-based, half-open)")
        if self.strand not in ("+", "-"):
            raise GenomemError(f"{self}: the strand is {self.strand!r}; it must be '+' or '-'")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.chrom}:{self.start}-{self.end}({self.strand})"
