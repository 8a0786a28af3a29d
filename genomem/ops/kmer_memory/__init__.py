"""The k-mer memory: a Titans memory with sparse keys, which learns the base that follows each context of k bases.

- `KmerSettings`: orders, strands, the update, the size of tables.
- `new_tables`, `tables_from_arrays`, `KmerTables.arrays`: tables as plain arrays.
- `recurrent_kmer_memory`: predicts and learns in one pass; `write_kmers` only learns, `read_kmers` only predicts. Compiled, on the CPU.
- `parallel_kmer_memory`: the same by sorting, in PyTorch, on any device.
- `table_statistics`, `table_entries`: what a table holds.
"""

from genomem.ops.kmer_memory.parallel import SortedTables, parallel_kmer_memory, sorted_tables
from genomem.ops.kmer_memory.recurrent import KmerState, read_kmers, recurrent_kmer_memory, write_kmers
from genomem.ops.kmer_memory.settings import KmerSettings
from genomem.ops.kmer_memory.tables import (
    KmerTable,
    KmerTables,
    TableStatistics,
    new_tables,
    table_bytes,
    table_entries,
    table_statistics,
    tables_from_arrays,
)

__all__ = [
    "KmerSettings",
    "KmerState",
    "KmerTable",
    "KmerTables",
    "SortedTables",
    "TableStatistics",
    "new_tables",
    "parallel_kmer_memory",
    "read_kmers",
    "recurrent_kmer_memory",
    "sorted_tables",
    "table_bytes",
    "table_entries",
    "table_statistics",
    "tables_from_arrays",
    "write_kmers",
]
