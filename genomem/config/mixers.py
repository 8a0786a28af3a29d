"""The schema of a layer: every mixer with its options, their defaults and what they mean."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from genomem.config.section import Section


class TitansMemory(Section):
    """Options of the memory in every Titans layer."""

    mixer: str
    heads: int = Field(4, ge=1)
    conv_kernel: int = Field(4, ge=1, description="taps of the causal convolution on query, key and value; 1 turns it off")
    momentum: bool = True
    forget: bool = True
    chunk_size: int = Field(32, ge=1, description="compute chunk of a linear memory; never changes the result")
    depth: int = Field(1, ge=1, description="matrices in a memory; 1 is the linear memory")
    hidden_ratio: int = Field(4, ge=1, description="hidden width of a deep memory over the width of a head")
    gradient_block: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens that take their gradients at the same memory; none: 1 for a linear memory, 64 for a deep one"
    )
    learned_start: bool | None = Field(
        None, description="the memory starts every document at learned weights, not at zero; none: a deep one alone, which has to"
    )
    persistent: int = Field(4, ge=0, description="learned tokens that stand before every document; 0 turns them off")

    @model_validator(mode="after")
    def _check(self) -> TitansMemory:
        if self.depth > 1 and self.learned_start is False:
            raise ValueError(f"learned_start: a memory of depth {self.depth} has no gradient at zero; leave the key out")
        return self


class TitansLMM(TitansMemory):
    """Neural long-term memory (Titans LMM); by default linear and exact, gradient block 1."""

    mixer: Literal["titans_lmm"] = "titans_lmm"
    output_gate: bool = True
    persistent: int = Field(0, ge=0, description="learned tokens that stand before every document; 0 turns them off")


class TitansMAC(TitansMemory):
    """Attention inside segments with what a neural memory recalls as its context (Titans MAC); by default causal inside segments too."""

    mixer: Literal["titans_mac"] = "titans_mac"
    segment: int = Field(128, ge=1, description="tokens that attend to each other")
    full_segments: bool = Field(
        False, description="every token of a segment sees all of it, as in the paper: for bidirectional models only"
    )


class TitansMAG(TitansMemory):
    """Sliding-window attention gated by a neural memory beside it (Titans MAG)."""

    mixer: Literal["titans_mag"] = "titans_mag"
    window: int = Field(256, ge=1, description="how many tokens back the attention sees, the token itself included")


class TitansMAL(TitansMemory):
    """A neural memory, then sliding-window attention over what it returns (Titans MAL)."""

    mixer: Literal["titans_mal"] = "titans_mal"
    window: int = Field(256, ge=1, description="how many tokens back the attention sees, the token itself included")
    output_gate: bool = True


class Attention(Section):
    """Causal softmax attention with rotary positions (Llama)."""

    mixer: Literal["attention"] = "attention"
    heads: int = Field(4, ge=1)
    window: int | None = Field(None, ge=1, description="how many tokens back a token sees, itself included; none: all")
    rope_base: float = Field(10_000.0, gt=1)


class CausalConv(Section):
    """Gated dilated causal convolution."""

    mixer: Literal["causal_conv"] = "causal_conv"
    kernel: int = Field(9, ge=1)
    dilation: int = Field(1, ge=1)


class OuterProducts(Section):
    """Options of the mixers whose memory adds up outer products."""

    mixer: str
    heads: int = Field(4, ge=1)
    chunk_size: int = Field(64, ge=1, description="compute chunk in tokens; never changes the result")


class LinearAttention(OuterProducts):
    """Linear attention with the feature map elu + 1, which forgets nothing."""

    mixer: Literal["linear_attention"] = "linear_attention"


class RetNet(OuterProducts):
    """Linear attention with rotary positions and a fixed decay a head (RetNet)."""

    mixer: Literal["retnet"] = "retnet"


class GLA(OuterProducts):
    """Linear attention with a decay of the token's own for every key channel (GLA)."""

    mixer: Literal["gla"] = "gla"
    chunk_size: int = Field(16, ge=1, description="compute chunk in tokens; never changes the result")


class Mamba2(OuterProducts):
    """State-space layer with one decay a head and token (Mamba-2)."""

    mixer: Literal["mamba2"] = "mamba2"
    state_size: int = Field(64, ge=1, description="width of the keys, which are one for all heads")
    conv_kernel: int = Field(4, ge=1, description="taps of the causal convolution on value, key and query; 1 turns it off")


class DeltaRule(Section):
    """Options of the mixers whose memory corrects what it holds."""

    mixer: str
    heads: int = Field(4, ge=1)
    conv_kernel: int = Field(4, ge=1, description="taps of the causal convolution on query, key and value; 1 turns it off")
    chunk_size: int = Field(32, ge=1, description="compute chunk in tokens; never changes the result")


class DeltaNet(DeltaRule):
    """Linear memory by the delta rule, which forgets only what it overwrites (DeltaNet)."""

    mixer: Literal["deltanet"] = "deltanet"


class GatedDeltaNet(DeltaRule):
    """The delta rule with one decay a head and token (Gated DeltaNet)."""

    mixer: Literal["gated_deltanet"] = "gated_deltanet"


class GatedDeltaNetH2(DeltaRule):
    """Mamba-2, Gated DeltaNet and sliding-window attention, one after the other (Gated DeltaNet-H2)."""

    mixer: Literal["gated_deltanet_h2"] = "gated_deltanet_h2"
    window: int = Field(256, ge=1, description="how many tokens back the attention sees, the token itself included")
    state_size: int = Field(64, ge=1, description="width of the keys of Mamba-2")


class TTT(Section):
    """Options of the TTT mixers."""

    mixer: str
    heads: int = Field(4, ge=1)
    conv_kernel: int = Field(4, ge=1, description="taps of the causal convolution on query and key; 1 turns it off")
    gradient_block: int = Field(16, ge=1, description="tokens that take their gradients at the same weights")


class TTTLinear(TTT):
    """A matrix behind a LayerNorm that learns at test time (TTT-Linear)."""

    mixer: Literal["ttt_linear"] = "ttt_linear"


class TTTMLP(TTT):
    """A network of two layers behind a LayerNorm that learns at test time (TTT-MLP)."""

    mixer: Literal["ttt_mlp"] = "ttt_mlp"


class SequenceDimension(Section):
    """Attention over the columns of a block and over slots that older columns are folded into (the sequence-dimension layer)."""

    mixer: Literal["sequence_dimension"] = "sequence_dimension"
    heads: int = Field(4, ge=1)
    slots: int = Field(32, ge=1, description="mean columns a head that hold all full blocks")
    block: int = Field(64, ge=1, description="columns that are seen one by one before they are folded")
    kernel: int = Field(9, ge=1, description="tokens that a column depends on, the token itself included")
    forget: bool = Field(False, description="a head's slots lose a learned share with every folded block")


class Mamba(Section):
    """State space whose step, input and output depend on the token (Mamba-1)."""

    mixer: Literal["mamba"] = "mamba"
    state_size: int = Field(16, ge=1, description="numbers in the state of each channel")
    expand: int = Field(2, ge=1, description="channels over the model width")
    conv_kernel: int = Field(4, ge=1, description="taps of the causal convolution in front of the state space")


class Samba(Section):
    """Mamba, then sliding-window attention over what it returns (Samba)."""

    mixer: Literal["samba"] = "samba"
    heads: int = Field(4, ge=1)
    window: int = Field(256, ge=1, description="how many tokens back the attention sees, the token itself included")
    state_size: int = Field(16, ge=1, description="numbers in the state of each channel of Mamba")
    expand: int = Field(2, ge=1, description="channels of Mamba over the model width")


class Hyena(Section):
    """Gated long convolution whose filter is a function of the distance (Hyena of order 2)."""

    mixer: Literal["hyena"] = "hyena"
    longest_bp: int = Field(4096, ge=1, description="taps of the filter; what is further back is not heard, and as much is held as state")


class RMT(Section):
    """Attention inside segments, between memory tokens that it reads and those that it writes (recurrent memory transformer)."""

    mixer: Literal["rmt"] = "rmt"
    heads: int = Field(4, ge=1)
    segment: int = Field(128, ge=1, description="tokens that attend to each other")
    memory_tokens: int = Field(8, ge=1, description="vectors that carry over from a segment to the next")


class LSTM(Section):
    """Long short-term memory, as many cells as the model is wide."""

    mixer: Literal["lstm"] = "lstm"


class BlockSparseAttention(Section):
    """Causal attention to the token's own block and to the past blocks that it chooses (MoBA)."""

    mixer: Literal["block_sparse_attention"] = "block_sparse_attention"
    heads: int = Field(4, ge=1)
    block: int = Field(64, ge=1, description="tokens of a block")
    selected: int = Field(4, ge=1, description="past blocks that each token and head chooses")


class HippoSSM(Section):
    """Gated diagonal state space whose kernels start as those of HiPPO (S4D)."""

    mixer: Literal["hippo_ssm"] = "hippo_ssm"
    state_size: int = Field(32, ge=1, description="complex states a channel, each with its conjugate")
    initial: Literal["legs", "lin", "inv", "real"] = Field("legs", description="poles at the start of training")
    longest_bp: int = Field(65_536, ge=10, description="tokens that the slowest channel remembers at the start of training")
    conv_kernel: int = Field(4, ge=1, description="taps of the causal convolution in front; 1 turns it off")


class TitansHippoMAC(TitansMemory):
    """Titans MAC whose segments also see the HiPPO coefficients of all earlier segments; causal inside segments."""

    mixer: Literal["titans_hippo_mac"] = "titans_hippo_mac"
    segment: int = Field(128, ge=1, description="tokens that attend to each other")
    hippo_tokens: int = Field(16, ge=0, multiple_of=2, description="coefficients, each a token before every segment; 0 turns them off")
    hippo_width: int = Field(32, ge=1, description="channels whose past the coefficients hold")


AnyMixer = (
    TitansLMM
    | TitansMAC
    | TitansMAG
    | TitansMAL
    | Attention
    | CausalConv
    | LinearAttention
    | RetNet
    | GLA
    | Mamba2
    | DeltaNet
    | GatedDeltaNet
    | GatedDeltaNetH2
    | TTTLinear
    | TTTMLP
    | SequenceDimension
    | Mamba
    | Samba
    | Hyena
    | RMT
    | LSTM
    | BlockSparseAttention
    | HippoSSM
    | TitansHippoMAC
)
MIXER_OPTIONS: dict[str, type[Section]] = {section.model_fields["mixer"].default: section for section in get_args(AnyMixer)}
Layer = Annotated[AnyMixer, Field(discriminator="mixer")]
