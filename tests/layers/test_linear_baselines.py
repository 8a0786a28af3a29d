"""The baseline mixers: each against its paper's definition, a token at a time, and what it promises on repeats.

A definition takes one sequence `[T, D]` and shares nothing with the layer but its parameters.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers import build_mixer
from genomem.layers.mixer import Mixer

DIM, HEADS, TOKENS = 8, 2, 37

# A small epsilon stands in every norm.
EPS = 1e-6


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def gelu(x: Tensor, tanh: bool = False) -> Tensor:
    bent = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)) if tanh else torch.erf(x / math.sqrt(2))
    return x * (1 + bent) / 2


def rms_norm(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def layer_norm(x: Tensor, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0, eps: float = EPS) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() + bias


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def by_head(x: Tensor) -> Tensor:
    """`[T, H X]` to `[H, T, X]`."""
    return x.unflatten(-1, (HEADS, -1)).transpose(0, 1)


def side_by_side(heads: list[Tensor]) -> Tensor:
    return torch.cat(heads, dim=-1)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def projected(mixer: Any, x: Tensor) -> Tensor:
    """What is projected, and convolved: tap j weighs the token j before."""
    x = linear(mixer.project, x)
    if mixer.convolution is None:
        return x
    taps = mixer.convolution.weight
    return torch.stack([sum(taps[j] * x[t - j] for j in range(min(len(taps), t + 1))) for t in range(len(x))])


def turned(x: Tensor) -> Tensor:
    """Channels i and i + K / 2 as one complex number, turned by `t / 10,000^(2 i / K)`."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
    return torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angle)


def scan(decays: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """`S_t = diag(a_t) S_{t-1} + k_t^T v_t`, `y_t = q_t S_t` of one head; a decay a token, or one a key channel too."""
    S, reads = torch.zeros(keys.shape[1], values.shape[1], dtype=keys.dtype), []
    for a, k, v, q in zip(decays, keys, values, queries, strict=True):
        S = a.reshape(-1, 1) * S + k[:, None] * v
        reads.append(q @ S)
    return torch.stack(reads)


def linear_attention(mixer: Any, x: Tensor) -> Tensor:
    heads = []
    for q, k, v in zip(*(by_head(part) for part in projected(mixer, x).chunk(3, dim=-1)), strict=True):
        q, k = (torch.where(part > 0, part + 1, part.clamp(max=0).exp()) for part in (q, k))
        weights = (q @ k.T).tril()
        heads.append(weights @ v / (weights.sum(-1, keepdim=True) + EPS))
    return linear(mixer.out, side_by_side(heads))


def retnet(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = (by_head(part) for part in projected(mixer, x).split([DIM, DIM, 2 * DIM], dim=-1))
    place = torch.arange(len(x), dtype=torch.float64)
    heads = []
    for h in range(HEADS):
        decay = ((1 - 2.0 ** (-5 - h)) ** (place[:, None] - place)).tril()
        weights = (turned(q[h]) @ turned(k[h]).mH).real * decay
        heads.append(layer_norm(weights @ v[h] / math.sqrt(DIM // HEADS)))
    normed = side_by_side(heads) * mixer.norm.weight + mixer.norm.bias
    return linear(mixer.out, normed * silu(linear(mixer.output_gate, x)))


def gla(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = (by_head(part) for part in projected(mixer, x).split([DIM // 2, DIM // 2, DIM], dim=-1))
    decays = by_head(linear(mixer.gate[1], linear(mixer.gate[0], x)).sigmoid() ** (1 / 16))
    width = DIM // HEADS // 2
    heads = [layer_norm(scan(decays[h], k[h], v[h], q[h] / math.sqrt(width))) for h in range(HEADS)]
    normed = side_by_side(heads) * mixer.norm.weight + mixer.norm.bias
    return linear(mixer.out, normed * silu(linear(mixer.output_gate, x)))


def mamba2(mixer: Any, x: Tensor) -> Tensor:
    inner, B, C = silu(projected(mixer, x) + mixer.conv_bias).split([2 * DIM, *[mixer.memory_shape[0]] * 2], dim=-1)
    steps = softplus(linear(mixer.decay.step, x))
    heads = []
    for h, v in enumerate(by_head(inner)):
        dt = steps[:, h]
        y = scan(torch.exp(-mixer.decay.rate_log[h].exp() * dt), B, dt[:, None] * v, C)
        heads.append(y + mixer.skip[h] * v)
    gated = side_by_side(heads) * silu(linear(mixer.output_gate, x))
    return linear(mixer.out, rms_norm(gated, mixer.norm.weight))


def deltanet(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = (by_head(part) for part in silu(projected(mixer, x)).chunk(3, dim=-1))
    return linear(mixer.out, delta_rule(mixer, x, q, k, v, torch.ones(len(x), HEADS, dtype=x.dtype)))


def gated_deltanet(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = (by_head(part) for part in silu(projected(mixer, x)).chunk(3, dim=-1))
    decays = torch.exp(-mixer.decay.rate_log.exp() * softplus(linear(mixer.decay.step, x)))
    return linear(mixer.out, delta_rule(mixer, x, q, k, v, decays) * silu(linear(mixer.output_gate, x)))


def delta_rule(mixer: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, decays: Tensor) -> Tensor:
    """`S_t = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t`, read and normalised, the heads side by side."""
    writes, identity = linear(mixer.write, x).sigmoid(), torch.eye(DIM // HEADS, dtype=x.dtype)
    heads = []
    for h in range(HEADS):
        S, reads = torch.zeros_like(identity), []
        for t in range(len(x)):
            key, b = unit(k[h, t])[:, None], writes[t, h]
            S = decays[t, h] * (identity - b * key @ key.T) @ S + b * key @ v[h, t][None]
            reads.append(unit(q[h, t]) @ S)
        heads.append(rms_norm(torch.stack(reads), mixer.norm.weight))
    return side_by_side(heads)


def windowed_attention(mixer: Any, x: Tensor) -> Tensor:
    place, heads = torch.arange(len(x)), []
    distance = place[:, None] - place
    for q, k, v in zip(*(by_head(part) for part in linear(mixer.qkv, x).chunk(3, dim=-1)), strict=True):
        scores = (turned(q) @ turned(k).mH).real / math.sqrt(q.shape[-1])
        weights = torch.where((distance >= 0) & (distance < mixer.window), scores.exp(), 0.0)
        heads.append(weights @ v / weights.sum(-1, keepdim=True))
    return linear(mixer.out, side_by_side(heads))


def gated_deltanet_h2(mixer: Any, x: Tensor) -> Tensor:
    a = mamba2(mixer.mamba2, x)
    b = gated_deltanet(mixer.gated_deltanet, rms_norm(x + a, mixer.delta_norm.weight))
    return a + b + windowed_attention(mixer.attention, rms_norm(x + a + b, mixer.attention_norm.weight))


def ttt(mixer: Any, x: Tensor) -> Tensor:
    """Gradients are those of autograd, at the weights before the token's block."""
    q, k = (rms_norm(by_head(part)) for part in projected(mixer, x).chunk(2, dim=-1))
    v, steps = by_head(linear(mixer.value, x)), mixer.base_step * linear(mixer.step, x).sigmoid()
    gains, biases = (part.view(HEADS, -1) for part in (mixer.gain, mixer.bias))
    heads = []
    for h in range(HEADS):

        def answer(weights: list[Tensor], u: Tensor, h: int = h) -> Tensor:
            f = u @ weights[0] if len(weights) == 1 else gelu(u @ weights[0]) @ weights[1]
            return u + layer_norm(f, gains[h], biases[h], eps=1e-5)

        weights, reads = [matrix[h] for matrix in mixer.matrices], []
        for t in range(len(x)):
            if t % mixer.gradient_block == 0:
                at = weights
            gradient = torch.autograd.grad((answer(at, k[h, t]) - v[h, t]).square().sum() / 2, at, create_graph=True)
            step = steps[t, h] / (mixer.gradient_block * DIM // HEADS)
            weights = [W - step * g for W, g in zip(weights, gradient, strict=True)]
            reads.append(answer(weights, q[h, t]))
        heads.append(torch.stack(reads))
    normed = layer_norm(side_by_side(heads), mixer.norm.weight, mixer.norm.bias)
    return linear(mixer.out, normed * gelu(linear(mixer.output_gate, x), tanh=True))


DEFINITIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "linear_attention": linear_attention,
    "retnet": retnet,
    "gla": gla,
    "mamba2": mamba2,
    "deltanet": deltanet,
    "gated_deltanet": gated_deltanet,
    "gated_deltanet_h2": gated_deltanet_h2,
    "ttt_linear": ttt,
    "ttt_mlp": ttt,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gla": {"chunk_size": 8},
    "mamba2": {"chunk_size": 16, "state_size": 3},
    "gated_deltanet": {"chunk_size": 16, "conv_kernel": 3},
    "gated_deltanet_h2": {"chunk_size": 16, "state_size": 3, "window": 5},
    "ttt_mlp": {"gradient_block": 5},
}


def scrambled(name: str, **options: Any) -> Mixer:
    """Returns a mixer in which no parameter stands at its starting value, double precision."""
    torch.manual_seed(0)
    mixer = build_mixer(name, DIM, heads=HEADS, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer


@pytest.mark.parametrize("tokens", [1, TOKENS])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_outputs_and_gradients_are_those_of_the_definition(name: str, tokens: int) -> None:
    mixer = scrambled(name, **OPTIONS.get(name, {}))
    hidden = torch.randn(2, tokens, DIM, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([DEFINITIONS[name](mixer, row) for row in hidden])
    output, _ = mixer(hidden)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    probe, inputs = torch.randn_like(output), [hidden, *mixer.parameters()]
    found, wanted = (torch.autograd.grad((part * probe).sum(), inputs) for part in (output, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "mamba2", "ttt_linear"])
def test_without_its_convolution_too(name: str) -> None:
    mixer = scrambled(name, conv_kernel=1)
    hidden = torch.randn(1, 20, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(hidden)[0][0], DEFINITIONS[name](mixer, hidden[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("linear_attention", 65_536),
        ("retnet", 131_584),
        ("gla", 69_056),
        ("mamba2", 117_388),
        ("deltanet", 67_616),
        ("gated_deltanet", 84_520),
        ("gated_deltanet_h2", 267_700),
        ("ttt_linear", 88_068),
        ("ttt_mlp", 116_740),
    ],
)
def test_parameters_at_width_128(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in build_mixer(name, 128).parameters()) == count


@pytest.mark.parametrize(
    ("name", "heads", "words"),
    [(name, 2, "9 is not a multiple of heads = 2") for name in ("linear_attention", "deltanet", "gated_deltanet", "ttt_linear", "ttt_mlp")]
    + [(name, 2, r"9 is not a multiple of 2 \* heads = 4") for name in ("retnet", "gla", "gated_deltanet_h2")]
    + [("mamba2", 4, "twice dim 9 is not a multiple of heads = 4")],
)
def test_width_that_heads_do_not_divide(name: str, heads: int, words: str) -> None:
    with pytest.raises(GenomemError, match=f"^{name}: .*{words}"):
        build_mixer(name, 9, heads=heads)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_outputs_and_gradients_of_a_homopolymer_are_finite(name: str) -> None:
    torch.manual_seed(0)
    mixer = build_mixer(name, 16, heads=2)
    hidden = torch.randn(1, 1, 16).repeat(1, 20_000, 1).requires_grad_()
    output, _ = mixer(hidden)
    output.square().mean().backward()
    assert output.abs().max() < 20
    for key, parameter in [("hidden", hidden), *mixer.named_parameters()]:
        assert parameter.grad is not None, key
        assert parameter.grad.norm() < 100, key


def transformers_model(name: str) -> Any:
    """Returns a module of Hugging Face's models, an implementation by other hands."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[dev]'")
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def assert_the_same(mixer: Mixer, other: Callable[[Tensor], Tensor]) -> None:
    """Compares outputs and the gradients of the inputs, in single precision, which is what the others compute in."""
    hidden = torch.randn(2, 45, DIM, requires_grad=True)
    found, wanted = mixer(hidden)[0], other(hidden)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    probe = torch.randn_like(found)
    gradients = [torch.autograd.grad((part * probe).sum(), hidden)[0] for part in (found, wanted)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def load(other: nn.Module, weights: dict[str, Tensor]) -> None:
    other.load_state_dict({name: weight.detach().float() for name, weight in weights.items()})
    other.eval()


def test_mamba2_is_that_of_transformers() -> None:
    library, mixer = transformers_model("mamba2"), scrambled("mamba2", chunk_size=16, state_size=3).float()
    config = library.Mamba2Config(
        hidden_size=DIM, state_size=3, num_heads=HEADS, head_dim=2 * DIM // HEADS, n_groups=1, chunk_size=8, layer_norm_epsilon=EPS
    )
    other = library.Mamba2Mixer(config, layer_idx=0)
    weights = {
        "in_proj.weight": torch.cat([mixer.output_gate.weight, mixer.project.weight, mixer.decay.step.weight]),
        "conv1d.weight": mixer.convolution.weight.flip(0).T[:, None],
        "conv1d.bias": mixer.conv_bias,
        "dt_bias": mixer.decay.step.bias,
        "A_log": mixer.decay.rate_log,
        "D": mixer.skip,
        "norm.weight": mixer.norm.weight,
        "out_proj.weight": mixer.out.weight,
    }
    load(other, weights)
    assert_the_same(mixer, other)


def test_gated_deltanet_is_that_of_olmo_hybrid_in_transformers() -> None:
    library, mixer = transformers_model("olmo_hybrid"), scrambled("gated_deltanet").float()
    heads = {f"linear_num_{side}_heads": HEADS for side in ("key", "value")}
    widths = {f"linear_{side}_head_dim": DIM // HEADS for side in ("key", "value")}
    config = library.OlmoHybridConfig(hidden_size=DIM, linear_conv_kernel_dim=4, linear_allow_neg_eigval=False, **heads, **widths)
    other = library.OlmoHybridGatedDeltaNet(config, layer_idx=0)
    # Its queries are 1 / sqrt(K) as long, which the norm takes back up to its epsilon.
    other.o_norm.variance_epsilon = EPS / (DIM // HEADS)
    names = dict(zip(("q_proj", "k_proj", "v_proj"), mixer.project.weight.chunk(3), strict=True))
    names |= {"a_proj": mixer.decay.step.weight, "b_proj": mixer.write.weight, "g_proj": mixer.output_gate.weight}
    names |= {"o_proj": mixer.out.weight, "o_norm": mixer.norm.weight, "conv1d": mixer.convolution.weight.flip(0).T[:, None]}
    weights = {f"{name}.weight": weight for name, weight in names.items()}
    load(other, weights | {"A_log": mixer.decay.rate_log, "dt_bias": mixer.decay.step.bias})
    assert_the_same(mixer, other)


def test_attention_is_that_of_llama_in_transformers() -> None:
    library, mixer = transformers_model("llama"), scrambled("attention").float()
    config = library.LlamaConfig(hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, attn_implementation="eager")
    other, rotary = library.LlamaAttention(config, layer_idx=0), library.LlamaRotaryEmbedding(config)
    names = dict(zip(("q_proj", "k_proj", "v_proj"), mixer.qkv.weight.chunk(3), strict=True)) | {"o_proj": mixer.out.weight}
    load(other, {f"{name}.weight": weight for name, weight in names.items()})

    def run(hidden: Tensor) -> Tensor:
        later = torch.full((hidden.shape[1], hidden.shape[1]), -torch.inf).triu(1)
        turns = rotary(hidden, torch.arange(hidden.shape[1])[None])
        return other(hidden, position_embeddings=turns, attention_mask=later[None, None])[0]

    assert_the_same(mixer, run)
