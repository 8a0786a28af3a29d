"""Settings of the k-mer memory: orders, strands, the update, and the size of its tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_ORDER = 24
DIRECT_ORDER = 12
"""Up to this order a table has a row for every context; above, contexts are hashed."""

BUCKET_BITS = 4
TAG_BITS = 31
LAYOUTS = ("open", "chained")
LIMITS = {8: 255, 16: 65535}


@dataclass(frozen=True)
class KmerSettings:
    """What a k-mer memory is.

    Attributes:
        orders: k of each table, ascending, from 1 to 24.
        tolerant_orders: Those of `orders` that are also followed through substitutions; each gives one more column of counts.
        max_misses: A tolerant context is dropped after more than so many misses within its last 16 predictions.
        inverted_repeats: Learn the other strand too.
        step_size: theta, constant; None is the count, whose step is 1 over the number of visits.
        forget: alpha, what a row loses when it is written.
        count_bits: 8 or 16, bits of a count without forgetting and with `step_size` None; else counts are float32.
        slot_bits: A hashed table has 2 to this power slots.
        layout: Of hashed tables, "open" or "chained"; both hold the same.

    Raises:
        ValueError: A setting is out of its range, or a table has too few slots to keep its keys apart.
    """

    orders: tuple[int, ...] = (11, 12, 14, 16, 20, 24)
    tolerant_orders: tuple[int, ...] = ()
    max_misses: int = 8
    inverted_repeats: bool = True
    step_size: float | None = None
    forget: float = 0.0
    count_bits: int = 16
    slot_bits: int = 24
    layout: str = "open"

    def __post_init__(self) -> None:
        if not self.orders or list(self.orders) != sorted(set(self.orders)) or not 1 <= self.orders[0] <= self.orders[-1] <= MAX_ORDER:
            raise ValueError(f"orders {self.orders} are not ascending numbers from 1 to {MAX_ORDER}")
        if not set(self.tolerant_orders) <= set(self.orders) or len(set(self.tolerant_orders)) < len(self.tolerant_orders):
            raise ValueError(f"tolerant_orders {self.tolerant_orders} are not different ones of orders {self.orders}")
        if not 0 <= self.max_misses <= 16:
            raise ValueError(f"max_misses {self.max_misses} is not from 0 to 16")
        if not 0 < self.keep <= 1:
            raise ValueError(f"step_size {self.step_size} and forget {self.forget} leave nothing or gain: their sum is to be in [0, 1)")
        if self.count_bits not in LIMITS or self.layout not in LAYOUTS:
            raise ValueError(f"count_bits {self.count_bits} and layout {self.layout!r}: known are {list(LIMITS)} and {list(LAYOUTS)}")
        for order in self.orders:
            fewest, most = self.slot_bits_range(order)
            if order > DIRECT_ORDER and not fewest <= self.slot_bits <= most:
                raise ValueError(f"slot_bits {self.slot_bits}: a table of order {order} takes {fewest} to {most}")

    @property
    def keep(self) -> float:
        """What a row keeps of its counts when it is written: 1 - step_size - forget; 1 for plain counts."""
        return 1.0 - (self.step_size or 0.0) - self.forget

    @property
    def limit(self) -> int:
        """The largest count; -1 where counts are float32 and have none."""
        return LIMITS[self.count_bits] if self.keep == 1 else -1

    @property
    def cell(self) -> type[np.float32] | type[np.uint8] | type[np.uint16]:
        """The dtype of a count."""
        if self.keep < 1:
            return np.float32
        return np.uint8 if self.count_bits == 8 else np.uint16

    @property
    def columns(self) -> tuple[tuple[int, bool], ...]:
        """`(order, is tolerant)` of each column of counts."""
        return tuple((order, False) for order in self.orders) + tuple((order, True) for order in self.tolerant_orders)

    @staticmethod
    def slot_bits_range(order: int) -> tuple[int, int]:
        """Fewest and most slot bits of a hashed table: slot and tag together are the key, and an index fits 31 bits."""
        return max(BUCKET_BITS, 2 * order + BUCKET_BITS - TAG_BITS), min(2 * order, 30)
