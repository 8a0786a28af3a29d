"""What a simulated species writes: codons, background, promoter grammar and repeats.

Bases are codes 0..3 for A, C, G, T, so that the complement of ``x`` is ``3 - x``. Everything is drawn from
whole numbers below `SCALE` against cumulative tables, which gives the same bases on every platform.

A species is built so that short words tell little and the reading frame tells much:

- Isochores. The five families of Bernardi (L1, L2, H1, H2, H3) differ in GC. Codon usage is tilted to the GC of
  the family around the gene, so GC alone does not tell genes from the sequence between them.
- Codons. Each amino acid has one codon that the species prefers; codons with CpG are rare.
- Residues. A residue tends to have the hydropathy class of the residue *two* before it, as in a beta strand with
  one wet and one dry side. Neighbours are independent. The tendency is stronger here than in real proteins.
- Background. Outside genes the chain has order 5, with the hexamers of the codon stream averaged over frames and
  strands: a genome has one signature, inside and outside genes. Words of up to six bases therefore have the same
  frequency everywhere, rare CpG included, and only the frame, its strand and the residues give a gene away. Real
  genomes share a signature of shorter words; the longer ones are shared here to make word counts blind to genes.

Source: Bernardi, Gene 241:3 (2000), isochores; Karlin and Burge, Trends Genet. 11:283 (1995), genome signature;
Sharp and Li, Nucleic Acids Res. 15:1281 (1987), codon preference; Smale and Kadonaga, Annu. Rev. Biochem. 72:449
(2003), the order and spacing of core promoter elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCALE = 1 << 20
BACKGROUND_ORDER = 5

ISOCHORES = ("L1", "L2", "H1", "H2", "H3")
ISOCHORE_GC = (0.31, 0.38, 0.44, 0.51, 0.60)

# The standard genetic code with bases in the order A, C, G, T; the codon of bases a, b, c is 16 a + 4 b + c.
AMINO_ACIDS = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
START_CODON = 14  # ATG
STOP_CODONS = (48, 50, 56)  # TAA, TAG, TGA
RESIDUE_PER_MILLE = dict(
    zip("ARNDCQEGHILKMFPSTWYV", (83, 55, 40, 55, 14, 39, 67, 71, 23, 59, 97, 58, 24, 39, 47, 66, 53, 11, 29, 69), strict=True)
)
HYDROPATHY = ("AVLIMFWC", "STNQYGPH", "DEKR")
UNKNOWN_CLASS = len(HYDROPATHY)
CLASS_PERSISTENCE = 0.75
SYNONYM_RATIO = 0.14
CPG_WEIGHT = 0.15
CPG_AT_JUNCTION_WEIGHT = 0.5

CAAT_BOX, TATA_BOX, INITIATOR = "GGCCAATC", "TATAAAAG", "TCAGTCT"
MOTIFS = (CAAT_BOX, TATA_BOX, INITIATOR)
MOTIF_CONSERVATION = 0.9
SPACINGS_BP = ((14, 18), (20, 26))
WRONG_SPACINGS_BP = ((5, 9), (23, 29))
WRONG_ORDERS = ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1))
PROMOTER_BP = 80

_BASES = np.frombuffer(b"ACGT", dtype=np.uint8)


def encode(text: str) -> np.ndarray:
    """Returns the codes 0..3 of a string of A, C, G, T."""
    return np.searchsorted(_BASES, np.frombuffer(text.encode(), dtype=np.uint8)).astype(np.int8)


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """Returns the other strand, read in its own direction."""
    return 3 - codes[::-1]


@dataclass(frozen=True)
class Species:
    """The tables that one simulated genome is drawn from.

    Attributes:
        codons: Probability of each codon in a gene, [isochore, codon]; stops have 0.
        next_codon: The same given the class of the residue two before, [isochore, class or unknown, codon].
        background: Probability of a base given the five before it, [isochore, 1024, base].
        repeat_families: Consensus sequences of the dispersed repeats, 300 to 1500 bp each.
    """

    codons: np.ndarray
    next_codon: np.ndarray
    background: np.ndarray
    repeat_families: tuple[np.ndarray, ...]


def draw_species(rng: np.random.Generator, repeat_families: int = 4) -> Species:
    """Draws codon preferences and repeat families of a new species."""
    preference = _codon_preference(rng)
    codons = np.stack([_tilt_to_gc(preference, gc) for gc in ISOCHORE_GC])
    next_codon = np.stack([_next_codon(usage) for usage in codons])
    background = np.stack([_signature(usage, following) for usage, following in zip(codons, next_codon, strict=True)])
    lengths = rng.integers(300, 1501, repeat_families)
    isochores = rng.integers(0, len(ISOCHORES), repeat_families)
    families = tuple(draw_background(rng, background, np.full(n, i)) for n, i in zip(lengths, isochores, strict=True))
    return Species(codons, next_codon, background, families)


def _codon_preference(rng: np.random.Generator) -> np.ndarray:
    """Returns unnormalised codon weights: residue frequency, one preferred synonym, few CpG."""
    weights = np.zeros(64)
    for residue, frequency in RESIDUE_PER_MILLE.items():
        synonyms = np.array([codon for codon in range(64) if AMINO_ACIDS[codon] == residue])
        ranked = rng.permutation(synonyms)
        share = SYNONYM_RATIO ** np.arange(len(ranked))
        weights[ranked] = frequency * int(rng.integers(40, 161)) * share / share.sum()
    first, second, third = np.unravel_index(np.arange(64), (4, 4, 4))
    has_cpg = ((first == 1) & (second == 2)) | ((second == 1) & (third == 2))
    # A codon that ends in C makes CpG whenever the next one starts with G.
    return weights * np.where(has_cpg, CPG_WEIGHT, 1) * np.where(third == 1, CPG_AT_JUNCTION_WEIGHT, 1)


def _tilt_to_gc(weights: np.ndarray, gc: float) -> np.ndarray:
    """Returns codon probabilities proportional to weight * tilt ** (G and C in the codon), with the asked GC."""
    gc_bases = np.array([sum(base in (1, 2) for base in (codon >> 4, codon >> 2 & 3, codon & 3)) for codon in range(64)])
    low, high = 1 / 64, 64.0
    for _ in range(40):
        tilt = (low + high) / 2
        tilted = weights * tilt**gc_bases
        tilted = tilted / tilted.sum()
        low, high = (tilt, high) if (tilted * gc_bases).sum() / 3 < gc else (low, tilt)
    return tilted


def residue_classes() -> np.ndarray:
    """Returns the hydropathy class of each codon's residue, [64]; `UNKNOWN_CLASS` for stops."""
    return np.array([next((i for i, group in enumerate(HYDROPATHY) if residue in group), UNKNOWN_CLASS) for residue in AMINO_ACIDS])


def _next_codon(usage: np.ndarray) -> np.ndarray:
    """Returns codon probabilities given the class two residues before; their average is `usage` again."""
    classes = residue_classes()
    same = np.stack([np.where(classes == group, usage, 0) for group in range(len(HYDROPATHY))])
    same = same / same.sum(axis=1, keepdims=True)
    return np.concatenate([CLASS_PERSISTENCE * same + (1 - CLASS_PERSISTENCE) * usage, usage[None]])


def _signature(usage: np.ndarray, next_codon: np.ndarray) -> np.ndarray:
    """Returns the chain with the hexamers of a codon stream, averaged over its three frames and both strands, [1024, 4]."""
    middle = usage.reshape(4, 4, 4)
    given = np.where((residue_classes() < UNKNOWN_CLASS)[:, None], next_codon[residue_classes()], 0)
    outer = (usage[:, None] * given).reshape((4,) * 6)
    hexamers = np.multiply.outer(middle, middle)
    hexamers = hexamers + np.einsum("abf,cde->abcdef", outer.sum(axis=(0, 4, 5)), middle)
    hexamers = hexamers + np.einsum("aef,bcd->abcdef", outer.sum(axis=(0, 1, 5)), middle)
    hexamers = (hexamers + hexamers[(slice(None, None, -1),) * 6].transpose()) / 6
    words = hexamers.reshape(-1, 4)
    return words / words.sum(axis=1, keepdims=True)


def cumulative(probabilities: np.ndarray) -> np.ndarray:
    """Returns whole-number thresholds: a draw below `SCALE` falls into the first class whose threshold exceeds it."""
    table = np.rint(np.cumsum(probabilities, axis=-1) * SCALE).astype(np.int64)
    table[..., -1] = SCALE
    return table


def draw_background(rng: np.random.Generator, background: np.ndarray, isochore: np.ndarray, lane_bp: int = 500) -> np.ndarray:
    """Draws intergenic bases, [n] codes, by the chain of each position's isochore.

    The sequence is cut into lanes that are drawn side by side; a lane starts behind five even draws.
    """
    length = len(isochore)
    lanes = -(-length // lane_bp)
    table = cumulative(background)
    family = np.pad(isochore, (0, lanes * lane_bp - length), mode="edge").reshape(lanes, lane_bp)
    draws = rng.integers(0, SCALE, (lane_bp, lanes))
    words = 4**BACKGROUND_ORDER
    word = rng.integers(0, words, lanes)
    codes = np.empty((lanes, lane_bp), dtype=np.int8)
    for step in range(lane_bp):
        base = (draws[step, :, None] >= table[family[:, step], word]).sum(axis=1)
        codes[:, step] = base
        word = (word * 4 + base) % words
    return codes.reshape(-1)[:length]


def draw_coding(rng: np.random.Generator, species: Species, isochore: np.ndarray, codons: np.ndarray) -> list[np.ndarray]:
    """Draws coding sequences side by side: ATG, sense codons, stop.

    Args:
        isochore: Family of each gene, [n].
        codons: Number of codons of each gene, start and stop included, [n].
    """
    table, classes = cumulative(species.next_codon), residue_classes()
    drawn = np.full((int(codons.max()), len(codons)), START_CODON)
    draws = rng.integers(0, SCALE, drawn.shape)
    before = np.full((2, len(codons)), UNKNOWN_CLASS)
    for step in range(1, len(drawn)):
        drawn[step] = (draws[step, :, None] >= table[isochore, before[step % 2]]).sum(axis=1)
        before[step % 2] = classes[drawn[step]]
    drawn[codons - 1, np.arange(len(codons))] = np.array(STOP_CODONS)[rng.integers(0, 3, len(codons))]
    bases = np.stack([drawn >> 4, drawn >> 2 & 3, drawn & 3], axis=-1).astype(np.int8)
    return [bases[:count, gene].reshape(-1) for gene, count in enumerate(codons)]


def write_promoter(rng: np.random.Generator, background: np.ndarray, is_promoter: bool) -> np.ndarray:
    """Returns a promoter, or a decoy, of `PROMOTER_BP` codes on a copy of the given background.

    A promoter has the three motifs in order, ``CAAT box, 14-18 bp, TATA box, 20-26 bp, initiator``, and ends with the
    initiator. A decoy has motifs from the same distribution in a wrong order, or with a wrong first spacing.
    """
    order, spacings = (0, 1, 2), SPACINGS_BP
    if not is_promoter and rng.integers(0, 2):
        order = WRONG_ORDERS[rng.integers(0, len(WRONG_ORDERS))]
    elif not is_promoter:
        spacings = (WRONG_SPACINGS_BP[rng.integers(0, 2)], SPACINGS_BP[1])
    codes, end = background.copy(), PROMOTER_BP
    gaps = [int(rng.integers(low, high + 1)) for low, high in spacings]
    for motif, gap in zip(order[::-1], (*gaps[::-1], 0), strict=True):
        instance = mutate(rng, encode(MOTIFS[motif]), 1 - MOTIF_CONSERVATION)
        codes[end - len(instance) : end] = instance
        end -= len(instance) + gap
    return codes


def mutate(rng: np.random.Generator, codes: np.ndarray, divergence: float) -> np.ndarray:
    """Returns a copy in which each base is another one with probability `divergence`."""
    hit = rng.integers(0, SCALE, len(codes)) < round(divergence * SCALE)
    return np.where(hit, (codes + rng.integers(1, 4, len(codes))) % 4, codes).astype(np.int8)
