"""Layers: `[B, T, D]` to `[B, T, D]`. A mixer is one row of `MIXERS`."""

from typing import Any

from genomem.errors import GenomemError
from genomem.layers.attention import Attention
from genomem.layers.block_sparse_attention import BlockSparseAttention
from genomem.layers.convolution import CausalConv
from genomem.layers.delta_net import DeltaNet, GatedDeltaNet
from genomem.layers.gated_deltanet_h2 import GatedDeltaNetH2
from genomem.layers.hippo_ssm import HippoSSM
from genomem.layers.hyena import Hyena
from genomem.layers.linear_attention import GLA, LinearAttention, RetNet
from genomem.layers.lstm import LSTM
from genomem.layers.mamba import Mamba
from genomem.layers.mamba2 import Mamba2
from genomem.layers.mixer import Mixer
from genomem.layers.rmt import RMT
from genomem.layers.samba import Samba
from genomem.layers.sequence_dimension import SequenceDimension
from genomem.layers.titans_hippo_mac import TitansHippoMAC
from genomem.layers.titans_lmm import TitansLMM
from genomem.layers.titans_mac import TitansMAC
from genomem.layers.titans_mag import TitansMAG
from genomem.layers.titans_mal import TitansMAL
from genomem.layers.ttt import TTTMLP, TTTLinear

MIXERS: dict[str, type[Mixer]] = {
    "titans_lmm": TitansLMM,
    "titans_mac": TitansMAC,
    "titans_mag": TitansMAG,
    "titans_mal": TitansMAL,
    "attention": Attention,
    "causal_conv": CausalConv,
    "linear_attention": LinearAttention,
    "retnet": RetNet,
    "gla": GLA,
    "mamba2": Mamba2,
    "deltanet": DeltaNet,
    "gated_deltanet": GatedDeltaNet,
    "gated_deltanet_h2": GatedDeltaNetH2,
    "ttt_linear": TTTLinear,
    "ttt_mlp": TTTMLP,
    "mamba": Mamba,
    "samba": Samba,
    "hyena": Hyena,
    "rmt": RMT,
    "lstm": LSTM,
    "block_sparse_attention": BlockSparseAttention,
    "sequence_dimension": SequenceDimension,
    "hippo_ssm": HippoSSM,
    "titans_hippo_mac": TitansHippoMAC,
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
