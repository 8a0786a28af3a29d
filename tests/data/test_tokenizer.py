"""The nucleotide tokenizer, against Biopython and the definition."""

from __future__ import annotations

import numpy as np
import pytest
from Bio.Data.IUPACData import ambiguous_dna_complement, ambiguous_dna_values
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from genomem.data import tokenizer

CODES = "".join(code for code in ambiguous_dna_values if code != "X")
dna = st.text(alphabet="ACGTNacgtn", max_size=200)


def as_bases(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def as_text(bases: np.ndarray) -> str:
    return bases.tobytes().decode()


def test_vocabulary_has_the_order_of_hyenadna():
    assert tokenizer.VOCABULARY[7:] == ("A", "C", "G", "T", "N")
    special = (tokenizer.BOS, tokenizer.MASK, tokenizer.PAD, tokenizer.UNK)
    assert [tokenizer.VOCABULARY[i] for i in special] == ["[BOS]", "[MASK]", "[PAD]", "[UNK]"]
    assert len(tokenizer.VOCABULARY) <= tokenizer.VOCAB_SIZE
    assert tokenizer.VOCAB_SIZE % 8 == 0


def test_encode_by_hand():
    ids = tokenizer.encode(as_bases("ACGTNacgtn"))
    assert ids.dtype == np.uint8
    assert ids.tolist() == [7, 8, 9, 10, 11] * 2


def test_encode_knows_every_byte():
    ids = tokenizer.encode(np.arange(256, dtype=np.uint8))
    for code in range(256):
        letter = chr(code).upper() if code < 128 else ""
        if letter in ("A", "C", "G", "T"):
            expected = letter
        elif letter == "U":
            expected = "T"
        else:
            expected = "N" if letter and letter in CODES else "[UNK]"
        assert tokenizer.VOCABULARY[ids[code]] == expected, code


@given(dna)
def test_decode_undoes_encode(text):
    assert tokenizer.decode(tokenizer.encode(as_bases(text))) == text.upper()


def test_decode_names_special_tokens():
    assert tokenizer.decode(np.array([tokenizer.BOS, tokenizer.G, tokenizer.PAD])) == "[BOS]G[PAD]"


@pytest.mark.parametrize("unused", range(len(tokenizer.VOCABULARY), tokenizer.VOCAB_SIZE))
def test_decode_refuses_ids_without_a_token(unused):
    with pytest.raises(IndexError):
        tokenizer.decode(np.array([unused]))


@given(st.text(alphabet=CODES + CODES.lower(), max_size=200))
def test_reverse_complement_equals_biopython(text):
    assert as_text(tokenizer.reverse_complement(as_bases(text))) == str(Seq(text).reverse_complement())


@given(dna)
def test_reverse_complement_twice_is_the_sequence(text):
    bases = as_bases(text)
    assert np.array_equal(tokenizer.reverse_complement(tokenizer.reverse_complement(bases)), bases)


def test_reverse_complement_of_a_batch_keeps_the_rows():
    batch = np.stack([as_bases("AACG"), as_bases("ttcN")])
    assert [as_text(row) for row in tokenizer.reverse_complement(batch)] == ["CGTT", "Ngaa"]


@given(dna)
def test_complementing_tokens_is_complementing_bases(text):
    bases = as_bases(text)
    complement = np.array(tokenizer.COMPLEMENT, dtype=np.uint8)
    assert np.array_equal(complement[tokenizer.encode(bases)][::-1], tokenizer.encode(tokenizer.reverse_complement(bases)))
    assert len(complement) == tokenizer.VOCAB_SIZE
    assert [token for token in range(tokenizer.VOCAB_SIZE) if complement[token] != token] == [
        tokenizer.A,
        tokenizer.C,
        tokenizer.G,
        tokenizer.T,
    ]


@given(st.text(alphabet=CODES + "U" + CODES.lower() + "u", max_size=200))
def test_to_bases_keeps_case_and_leaves_only_acgtn(text):
    def base(letter: str) -> str:
        upper = letter.upper().replace("U", "T")
        upper = upper if upper in "ACGT" else "N"
        return upper if letter.isupper() else upper.lower()

    assert tokenizer.to_bases(text.encode()).decode() == "".join(map(base, text))


def test_foreign_letters_are_those_outside_iupac():
    everything = bytes(range(256))
    iupac = {*ambiguous_dna_complement, "U"} - {"X"}
    expected = bytes(code for code in everything if chr(code).upper() not in iupac or code > 127)
    assert tokenizer.foreign_letters(everything) == expected


@given(dna)
def test_soft_masked_is_lower_case(text):
    assert tokenizer.is_soft_masked(as_bases(text)).tolist() == [letter.islower() for letter in text]
