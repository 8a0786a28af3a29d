"""Every operation as its definition: slow and obvious on purpose, one token at a time.

The fast forms are tested against these functions and share no line with them.
"""

from genomem.ops.reference.hippo import legs
from genomem.ops.reference.kmer_memory import kmer_memory
from genomem.ops.reference.selective_scan import selective_scan
from genomem.ops.reference.sequence_dimension import sequence_dimension
from genomem.ops.reference.state_space import state_space
from genomem.ops.reference.titans import linear_memory, neural_memory

__all__ = ["kmer_memory", "legs", "linear_memory", "neural_memory", "selective_scan", "sequence_dimension", "state_space"]
