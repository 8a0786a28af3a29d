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


AnyMixer = TitansLMM | TitansMAC | TitansMAG | TitansMAL | Attention | CausalConv
MIXER_OPTIONS: dict[str, type[Section]] = {section.model_fields["mixer"].default: section for section in get_args(AnyMixer)}
Layer = Annotated[AnyMixer, Field(discriminator="mixer")]
