"""Every operation as its definition: slow and obvious on purpose, one token at a time.

The fast forms are tested against these functions and share no line with them.
"""

from genomem.ops.reference.titans import linear_memory, neural_memory

__all__ = ["linear_memory", "neural_memory"]
