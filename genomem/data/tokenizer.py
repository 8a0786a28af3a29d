"""The nucleotide tokenizer: one token a base, and the letters that stand for a base.

Bases travel as arrays of ASCII bytes (uint8): A, C, G, T and N, upper case, or lower case where the
assembly is soft-masked (repeats). Token ids forget the case; `is_soft_masked` keeps it.
"""

from __future__ import annotations

import numpy as np

VOCABULARY = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
"""Tokens by id, in the order of HyenaDNA's and Caduceus's character tokenizers."""

VOCAB_SIZE = 16
"""Rows of the embedding: the vocabulary, padded to a multiple of 8."""

BOS, MASK, PAD, UNK = 2, 3, 4, 6
A, C, G, T, N = 7, 8, 9, 10, 11

UNKNOWN = 4
"""What `base_codes` gives for a letter that is no base."""

COMPLEMENT = tuple({A: T, C: G, G: C, T: A}.get(token, token) for token in range(VOCAB_SIZE))
"""Token id -> id of its complement on the other strand; all but A, C, G and T are their own."""

AMBIGUITY_CODES = b"RYSWKMBDHV"
"""IUPAC codes that leave the base open, N aside; a store keeps them as N."""

NUCLEOTIDE_CODES = b"ACGTUN" + AMBIGUITY_CODES
ALL_CODES = NUCLEOTIDE_CODES + NUCLEOTIDE_CODES.lower()

_TO_BASES = bytes.maketrans(
    b"Uu" + AMBIGUITY_CODES + AMBIGUITY_CODES.lower(), b"Tt" + b"N" * len(AMBIGUITY_CODES) + b"n" * len(AMBIGUITY_CODES)
)
_COMPLEMENT = np.frombuffer(bytes.maketrans(b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv", b"TGCAANYRSWMKVHDBtgcaanyrswmkvhdb"), np.uint8)


def _encoding_table() -> np.ndarray:
    table = np.full(256, UNK, np.uint8)
    for code in ALL_CODES:
        base = bytes([code]).translate(_TO_BASES).decode().upper()
        table[code] = VOCABULARY.index(base)
    return table


_ENCODE = _encoding_table()
_BASE_CODES = np.minimum(_ENCODE - np.uint8(A), np.uint8(UNKNOWN))


def encode(bases: np.ndarray) -> np.ndarray:
    """Returns the token ids of ASCII bases: uint8 `[..., T]` -> uint8 `[..., T]`.

    Lower case has the id of upper case, U that of T, an IUPAC ambiguity code that of N; any other byte is [UNK].
    """
    return _ENCODE[bases]


def base_codes(bases: np.ndarray) -> np.ndarray:
    """Returns A, C, G, T as 0 to 3, either case, and `UNKNOWN` for all else: ASCII uint8 `[...]` -> uint8 `[...]`."""
    return _BASE_CODES[bases]


def decode(ids: np.ndarray) -> str:
    """Returns the text of token ids `[T]`: bases as upper-case letters, special tokens by name."""
    return "".join([VOCABULARY[i] for i in np.asarray(ids).tolist()])


def to_bases(sequence: bytes) -> bytes:
    """Returns a sequence with U as T and IUPAC ambiguity codes as N; the case is kept."""
    return sequence.translate(_TO_BASES)


def foreign_letters(sequence: bytes) -> bytes:
    """Returns, in order, the bytes of a sequence that are no IUPAC nucleotide code; empty when all are."""
    return sequence.translate(None, ALL_CODES)


def reverse_complement(bases: np.ndarray) -> np.ndarray:
    """Returns the other strand, 5' to 3', of ASCII bases: uint8 `[..., T]` -> uint8 `[..., T]`; the case is kept."""
    return _COMPLEMENT[bases[..., ::-1]]


def is_soft_masked(bases: np.ndarray) -> np.ndarray:
    """Returns True where an ASCII base is lower case: uint8 `[..., T]` -> bool `[..., T]`."""
    return bases >= ord("a")
