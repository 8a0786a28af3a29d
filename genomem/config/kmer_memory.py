"""The schema of a k-mer memory beside a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genomem.config.section import Section


class KmerMemory(Section):
    """A Titans memory with sparse keys beside a causal model: what has followed each context of k bases so far."""

    orders: tuple[Annotated[int, Field(ge=1, le=24)], ...] = Field((11, 12, 14, 16, 20, 24), min_length=1, description="k; rising")
    tolerant_orders: tuple[int, ...] = Field((), description="those of `orders` that are followed through substitutions as well")
    max_misses: int = Field(8, ge=0, le=16, description="wrong guesses within 16, behind which a tolerant context starts anew")
    inverted_repeats: bool = Field(True, description="learns the other strand too")
    slot_bits: int = Field(
        24, ge=4, le=30, description="a table of an order above 12 has 2 to this power rows, of 12 bytes each with 16-bit counts"
    )
    count_bits: Literal[8, 16] = Field(16, description="of a count")
    start: Literal["genome", "empty"] = Field(
        "genome",
        description="what is known before a sequence: what the training chromosomes hold so far, or nothing, each with its own tables",
    )
    use: Literal["output", "features", "both"] = Field(
        "output", description="mixed with the network's prediction by a gate, given to the network as input, or both"
    )
    gate_width: int = Field(24, ge=1, description="hidden width of the gate")

    @model_validator(mode="after")
    def _check(self) -> KmerMemory:
        if list(self.orders) != sorted(set(self.orders)):
            raise ValueError("orders: each must be larger than the one before")
        if not set(self.tolerant_orders) <= set(self.orders) or len(set(self.tolerant_orders)) < len(self.tolerant_orders):
            raise ValueError("tolerant_orders: each must be one of `orders`, once")
        # Row and tag of 31 bits together are the key, so that no two contexts are mistaken for each other.
        fewest = 2 * self.orders[-1] - 27
        if self.orders[-1] > 12 and self.slot_bits < fewest:
            raise ValueError(f"slot_bits: order {self.orders[-1]} needs at least {fewest}")
        most = min((2 * order for order in self.orders if order > 12), default=30)
        if self.slot_bits > most:
            raise ValueError(f"slot_bits: the lowest order above 12 has no more than 2 to the power of {most} contexts")
        return self
