"""Layers: `[B, T, D]` to `[B, T, D]`. A mixer is one row of `MIXERS`."""

from typing import Any

from genomem.errors import GenomemError
from genomem.layers.attention import Attention
from genomem.layers.convolution import CausalConv
from genomem.layers.mixer import Mixer
from genomem.layers.titans_lmm import TitansLMM
from genomem.layers.titans_mac import TitansMAC
from genomem.layers.titans_mag import TitansMAG
from genomem.layers.titans_mal import TitansMAL

MIXERS: dict[str, type[Mixer]] = {
    "titans_lmm": TitansLMM,
    "titans_mac": TitansMAC,
    "titans_mag": TitansMAG,
    "titans_mal": TitansMAL,
    "attention": Attention,
    "causal_conv": CausalConv,
}


def build_mixer(name: str, dim: int, **options: Any) -> Mixer:
    """Returns the mixer of that name.

    Args:
        name: A key of `MIXERS`.
        dim: Model width D.
        options: Keyword arguments of the mixer's class.

    Raises:
        GenomemError: No such mixer, or its class refuses an option.
    """
    if name not in MIXERS:
        raise GenomemError(f"unknown mixer {name!r}; known: {', '.join(MIXERS)}")
    try:
        return MIXERS[name](dim, **options)
    except TypeError as error:
        raise GenomemError(f"mixer {name}: {error}") from None
