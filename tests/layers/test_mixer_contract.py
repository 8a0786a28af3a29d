"""What holds for every mixer: one contract, run over every row of `MIXERS` and the options that change its form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genomem.config import MIXER_OPTIONS
from genomem.errors import GenomemError
from genomem.layers import MIXERS, build_mixer
from genomem.layers.mixer import Mixer, State, held_bytes

BATCH, TOKENS, DIM = 2, 21, 8

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "titans_lmm": ("titans_lmm", {"heads": 2, "chunk_size": 8}),
    "titans_lmm, no momentum": ("titans_lmm", {"heads": 2, "chunk_size": 8, "momentum": False}),
    "titans_lmm, no forgetting": ("titans_lmm", {"heads": 2, "chunk_size": 8, "forget": False}),
    "titans_lmm, neither": ("titans_lmm", {"heads": 1, "chunk_size": 8, "momentum": False, "forget": False}),
    "titans_lmm, no convolution": ("titans_lmm", {"heads": 2, "chunk_size": 8, "conv_kernel": 1}),
    "titans_lmm, no output gate": ("titans_lmm", {"heads": 2, "chunk_size": 8, "output_gate": False}),
    "titans_lmm, chunks of one": ("titans_lmm", {"heads": 2, "chunk_size": 1}),
    "titans_lmm, gradient block of four": ("titans_lmm", {"heads": 2, "chunk_size": 8, "gradient_block": 4}),
    "titans_lmm, persistent": ("titans_lmm", {"heads": 2, "chunk_size": 8, "persistent": 3}),
    "titans_lmm, learned start": ("titans_lmm", {"heads": 2, "chunk_size": 4, "learned_start": True}),
    "titans_lmm, learned start of blocks": ("titans_lmm", {"heads": 2, "learned_start": True, "gradient_block": 3, "momentum": False}),
    "titans_lmm, learned start and persistent": ("titans_lmm", {"heads": 1, "learned_start": True, "persistent": 2, "chunk_size": 8}),
    "titans_lmm, deep": ("titans_lmm", {"heads": 2, "depth": 2, "hidden_ratio": 2, "gradient_block": 4}),
    "titans_lmm, deep and persistent": ("titans_lmm", {"heads": 2, "depth": 3, "gradient_block": 4, "persistent": 2, "momentum": False}),
    "titans_mac": ("titans_mac", {"heads": 2, "segment": 6, "persistent": 3, "chunk_size": 4}),
    "titans_mac, segments of two": ("titans_mac", {"heads": 1, "segment": 2, "persistent": 1}),
    "titans_mac, segments of one": ("titans_mac", {"heads": 2, "segment": 1, "persistent": 0}),
    "titans_mac, bare": ("titans_mac", {"heads": 2, "segment": 4, "persistent": 0, "conv_kernel": 1, "momentum": False, "forget": False}),
    "titans_mac, blocks": ("titans_mac", {"heads": 2, "segment": 3, "gradient_block": 4}),
    "titans_mac, learned start": ("titans_mac", {"heads": 2, "segment": 6, "persistent": 3, "learned_start": True}),
    "titans_mac, deep": ("titans_mac", {"heads": 2, "segment": 3, "depth": 2, "hidden_ratio": 2, "gradient_block": 4}),
    "titans_mag": ("titans_mag", {"heads": 2, "window": 5, "persistent": 3, "chunk_size": 8}),
    "titans_mag, bare": ("titans_mag", {"heads": 2, "window": 1, "persistent": 0, "conv_kernel": 1, "momentum": False, "forget": False}),
    "titans_mag, learned start": ("titans_mag", {"heads": 2, "window": 5, "persistent": 3, "learned_start": True}),
    "titans_mag, deep": ("titans_mag", {"heads": 2, "window": 30, "depth": 2, "hidden_ratio": 2, "gradient_block": 4}),
    "titans_mal": ("titans_mal", {"heads": 2, "window": 5, "persistent": 3, "chunk_size": 8}),
    "titans_mal, bare": ("titans_mal", {"heads": 2, "window": 1, "persistent": 0, "conv_kernel": 1, "momentum": False, "forget": False}),
    "titans_mal, learned start": ("titans_mal", {"heads": 2, "window": 5, "persistent": 3, "learned_start": True}),
    "titans_mal, deep": (
        "titans_mal",
        {"heads": 2, "window": 30, "output_gate": False, "depth": 2, "hidden_ratio": 2, "gradient_block": 4},
    ),
    "attention": ("attention", {"heads": 2}),
    "attention, window": ("attention", {"heads": 2, "window": 5}),
    "attention, window of one": ("attention", {"heads": 2, "window": 1}),
    "causal_conv": ("causal_conv", {}),
    "causal_conv, dilation": ("causal_conv", {"kernel": 3, "dilation": 4}),
    "causal_conv, one tap": ("causal_conv", {"kernel": 1}),
    "linear_attention": ("linear_attention", {"heads": 2, "chunk_size": 8}),
    "retnet": ("retnet", {"heads": 2, "chunk_size": 8}),
    "gla": ("gla", {"heads": 2, "chunk_size": 8}),
    "mamba2": ("mamba2", {"heads": 2, "chunk_size": 8, "state_size": 3}),
    "mamba2, no convolution": ("mamba2", {"heads": 4, "chunk_size": 8, "conv_kernel": 1}),
    "deltanet": ("deltanet", {"heads": 2, "chunk_size": 8}),
    "deltanet, no convolution": ("deltanet", {"heads": 2, "chunk_size": 8, "conv_kernel": 1}),
    "gated_deltanet": ("gated_deltanet", {"heads": 2, "chunk_size": 8, "conv_kernel": 3}),
    "gated_deltanet_h2": ("gated_deltanet_h2", {"heads": 2, "chunk_size": 8, "window": 5, "state_size": 3, "conv_kernel": 2}),
    "ttt_linear": ("ttt_linear", {"heads": 2, "gradient_block": 4}),
    "ttt_linear, no convolution": ("ttt_linear", {"heads": 1, "conv_kernel": 1}),
    "ttt_mlp": ("ttt_mlp", {"heads": 2, "gradient_block": 4, "conv_kernel": 2}),
    "mamba": ("mamba", {"state_size": 3}),
    "mamba, bare": ("mamba", {"state_size": 1, "expand": 1, "conv_kernel": 1}),
    "samba": ("samba", {"heads": 2, "window": 5, "state_size": 3, "expand": 1}),
    "hyena": ("hyena", {}),
    "hyena, short filter": ("hyena", {"longest_bp": 6}),
    "hyena, one tap": ("hyena", {"longest_bp": 1}),
    "rmt": ("rmt", {"heads": 2, "segment": 6, "memory_tokens": 3}),
    "rmt, segments of one": ("rmt", {"heads": 1, "segment": 1, "memory_tokens": 1}),
    "lstm": ("lstm", {}),
    "block_sparse_attention": ("block_sparse_attention", {"heads": 2, "block": 3, "selected": 2}),
    "block_sparse_attention, blocks of one": ("block_sparse_attention", {"heads": 1, "block": 1, "selected": 1}),
    "block_sparse_attention, one block": ("block_sparse_attention", {"heads": 2, "block": 40, "selected": 1}),
    "sequence_dimension": ("sequence_dimension", {"heads": 2, "slots": 3, "block": 4, "kernel": 3}),
    "sequence_dimension, forgetting": ("sequence_dimension", {"heads": 2, "slots": 3, "block": 3, "kernel": 3, "forget": True}),
    "sequence_dimension, blocks of one": ("sequence_dimension", {"heads": 1, "slots": 2, "block": 1, "kernel": 1}),
    "sequence_dimension, blocks of two": ("sequence_dimension", {"heads": 2, "slots": 2, "block": 2}),
    "hippo_ssm": ("hippo_ssm", {"state_size": 4}),
    "hippo_ssm, lin": ("hippo_ssm", {"state_size": 2, "initial": "lin", "longest_bp": 10, "conv_kernel": 1}),
    "hippo_ssm, real": ("hippo_ssm", {"state_size": 1, "initial": "real", "conv_kernel": 2}),
    "titans_hippo_mac": ("titans_hippo_mac", {"heads": 2, "segment": 6, "persistent": 3, "hippo_tokens": 4, "hippo_width": 3}),
    "titans_hippo_mac, segments of one": ("titans_hippo_mac", {"heads": 2, "segment": 1, "persistent": 0, "hippo_tokens": 2}),
    "titans_hippo_mac, bare": (
        "titans_hippo_mac",
        {"heads": 2, "segment": 4, "conv_kernel": 1, "momentum": False, "forget": False, "chunk_size": 8, "hippo_tokens": 6},
    ),
    "titans_hippo_mac, learned start": ("titans_hippo_mac", {"heads": 2, "segment": 5, "learned_start": True, "hippo_tokens": 2}),
    "titans_hippo_mac, deep": (
        "titans_hippo_mac",
        {"heads": 2, "segment": 3, "depth": 2, "hidden_ratio": 2, "gradient_block": 4, "hippo_tokens": 4},
    ),
    "titans_hippo_mac, no tokens": ("titans_hippo_mac", {"heads": 2, "segment": 6, "hippo_tokens": 0}),
}

# Options without a variant. With full segments a token sees those behind it in its segment, so that MAC is neither causal nor can a
# segment be split; what holds of it instead is tested in test_titans_full_segments.py.
ELSEWHERE = {"rope_base", "full_segments"}

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(params=VARIANTS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    name, options = VARIANTS[request.param]
    torch.manual_seed(0)
    mixer = build_mixer(name, DIM, **options).double()
    for key, parameter in mixer.named_parameters():
        if key.endswith("memory.start"):
            torch.nn.init.normal_(parameter)
    return mixer


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(BATCH, TOKENS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def flags(*places: tuple[int, int]) -> Tensor:
    mask = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


HOLES = ~flags((0, 0), (0, 1), (0, 7), (0, 8), (0, 15), (1, 4), (1, 9), (1, 10), (1, 19), (1, 20))
BORDERS = flags((0, 2), (0, 9), (0, 10), (1, 0), (1, 5), (1, 16))


def compact(x: Tensor, mask: Tensor, row: int) -> Tensor:
    """Returns one row of a batch without its padding, as a batch of one."""
    return x[row][mask[row]][None]


def in_parts(
    mixer: Mixer, hidden: Tensor, borders: tuple[int, ...], mask: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, State]:
    pieces, state = [], None
    for start, end in zip((0, *borders), (*borders, hidden.shape[1]), strict=True):
        part_mask, part_reset = (None if flag is None else flag[:, start:end] for flag in (mask, reset))
        piece, state = mixer(hidden[:, start:end], state, mask=part_mask, reset=part_reset)
        pieces.append(piece)
    return torch.cat(pieces, dim=1), state


def test_every_mixer_has_a_variant_with_each_of_its_options() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(MIXERS)
    for name, section in MIXER_OPTIONS.items():
        tried = {option for row, options in VARIANTS.values() if row == name for option in options}
        assert tried >= set(section.model_fields) - {"mixer"} - ELSEWHERE


def test_shape_and_dtype(mixer: Mixer, hidden: Tensor) -> None:
    output, _ = mixer(hidden)
    assert output.shape == hidden.shape
    assert output.dtype == hidden.dtype
    assert output.isfinite().all()


@pytest.mark.parametrize("token", [1, 7, 8, 20])
def test_outputs_before_a_token_do_not_depend_on_it(mixer: Mixer, hidden: Tensor, token: int) -> None:
    changed = hidden.clone()
    changed[:, token] += 1.0
    before, after = mixer(hidden)[0], mixer(changed)[0]
    assert torch.equal(before[:, :token], after[:, :token])
    assert not torch.equal(before[:, token], after[:, token])


@pytest.mark.parametrize("borders", [(0,), (TOKENS,), (8,), (5, 6, 13), (1, 1, 17), tuple(range(1, TOKENS))], ids=str)
@pytest.mark.parametrize("mask", [None, HOLES], ids=["whole", "padded"])
@pytest.mark.parametrize("reset", [None, BORDERS], ids=["one document", "packed"])
def test_parts_with_the_state_carried_equal_the_whole(
    mixer: Mixer, hidden: Tensor, borders: tuple[int, ...], mask: Tensor | None, reset: Tensor | None
) -> None:
    whole, last = mixer(hidden, mask=mask, reset=reset)
    pieces, carried = in_parts(mixer, hidden, borders, mask, reset)
    torch.testing.assert_close(pieces, whole, **CLOSE)
    # Two states are the same when what follows is the same.
    torch.testing.assert_close(mixer(hidden, carried)[0], mixer(hidden, last)[0], **CLOSE)


@pytest.mark.parametrize("reset", [None, BORDERS], ids=["one document", "packed"])
def test_padding_anywhere_changes_nothing(mixer: Mixer, hidden: Tensor, reset: Tensor | None) -> None:
    output, state = mixer(hidden, mask=HOLES, reset=reset)
    assert not output[~HOLES].any()
    spoilt = torch.where(HOLES[..., None], hidden, torch.full_like(hidden, 100.0))
    assert torch.equal(mixer(spoilt, mask=HOLES, reset=reset)[0], output)
    following, _ = mixer(hidden, state)
    for row in range(BATCH):
        alone_reset = None if reset is None else compact(reset, HOLES, row)
        alone, alone_state = mixer(compact(hidden, HOLES, row), reset=alone_reset)
        torch.testing.assert_close(compact(output, HOLES, row), alone, **CLOSE)
        torch.testing.assert_close(following[row : row + 1], mixer(hidden[row : row + 1], alone_state)[0], **CLOSE)


@pytest.mark.parametrize("real", [0, 1, 8, 20])
def test_padding_on_the_right(mixer: Mixer, hidden: Tensor, real: int) -> None:
    mask = (torch.arange(TOKENS) < real).expand(BATCH, TOKENS)
    output, state = mixer(hidden, mask=mask)
    short, short_state = mixer(hidden[:, :real])
    torch.testing.assert_close(output[:, :real], short, **CLOSE)
    assert not output[:, real:].any()
    torch.testing.assert_close(mixer(hidden, state)[0], mixer(hidden, short_state)[0], **CLOSE)


def test_a_reset_equals_a_fresh_start(mixer: Mixer, hidden: Tensor) -> None:
    _, old = mixer(hidden.flip(1))
    output, state = mixer(hidden, old, reset=BORDERS)
    following, _ = mixer(hidden, state)
    for row in range(BATCH):
        starts = [*BORDERS[row].nonzero().flatten().tolist(), TOKENS]
        for start, end in zip(starts, starts[1:], strict=False):
            alone, alone_state = mixer(hidden[row : row + 1, start:end])
            torch.testing.assert_close(output[row : row + 1, start:end], alone, **CLOSE)
        torch.testing.assert_close(following[row : row + 1], mixer(hidden[row : row + 1], alone_state)[0], **CLOSE)
    # Before its first border, row 0 goes on from the old state.
    torch.testing.assert_close(output[:1, :2], mixer(hidden, old)[0][:1, :2], **CLOSE)


def test_rows_of_a_batch_do_not_touch(mixer: Mixer, hidden: Tensor) -> None:
    torch.testing.assert_close(mixer(hidden)[0][1:], mixer(hidden[1:])[0], **CLOSE)


def test_gradients_reach_every_parameter(mixer: Mixer, hidden: Tensor) -> None:
    output, _ = mixer(hidden, mask=HOLES, reset=BORDERS)
    output.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_state_bytes_are_what_is_held(variant: str, tokens: int, dtype: torch.dtype) -> None:
    name, options = VARIANTS[variant]
    mixer = build_mixer(name, DIM, **options).to(dtype)
    _, state = mixer(torch.randn(1, tokens, DIM, dtype=dtype))
    assert mixer.state_bytes(tokens) == held_bytes(state)


def test_gradcheck(mixer: Mixer) -> None:
    hidden = torch.randn(1, 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    mask, reset = torch.tensor([[True, True, False, True, True]]), torch.tensor([[False, False, False, True, False]])
    names, values = zip(*mixer.named_parameters(), strict=True)

    def run(hidden: Tensor, *parameters: Tensor) -> Tensor:
        weights = dict(zip(names, parameters, strict=True))
        past, state = torch.func.functional_call(mixer, weights, (hidden[:, :2],))
        packed, _ = torch.func.functional_call(mixer, weights, (hidden, state), {"mask": mask, "reset": reset})
        return torch.cat([past, packed], dim=1)

    # The fast mode compares one random projection of the Jacobian and not each entry.
    assert torch.autograd.gradcheck(run, (hidden, *values), fast_mode=True)


def test_a_state_can_be_used_twice(mixer: Mixer, hidden: Tensor) -> None:
    _, state = mixer(hidden)
    first = mixer(hidden, state)[0]
    assert torch.equal(mixer(hidden, state)[0], first)


def tensors(state: State) -> list[Tensor]:
    """Returns all tensors of a state."""
    if state is None or isinstance(state, Tensor):
        return [] if state is None else [state]
    return [tensor for part in state for tensor in tensors(part)]


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_state_does_not_change_with_the_weights(mixer: Mixer, hidden: Tensor, tokens: int) -> None:
    held = tensors(mixer(hidden[:, :tokens])[1])
    before = [tensor.clone() for tensor in held]
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 1.0
    for tensor, other in zip(held, before, strict=True):
        assert torch.equal(tensor, other)


@pytest.mark.parametrize("name", MIXERS)
def test_build_mixer_names_what_is_wrong(name: str) -> None:
    with pytest.raises(GenomemError, match=f"unknown mixer '{name}s'; known: titans_lmm"):
        build_mixer(f"{name}s", DIM)
    with pytest.raises(GenomemError, match=f"mixer {name}: .*'colour'"):
        build_mixer(name, DIM, colour="blue")


@pytest.mark.parametrize(
    ("name", "words"),
    [("titans_lmm", "dim 9 is not a multiple of heads")]
    + [(name, rf"{name}: dim 9 is not a multiple of 2 \* heads = 4") for name in ("titans_mac", "titans_mag", "titans_mal", "attention")],
)
def test_width_that_heads_do_not_divide(name: str, words: str) -> None:
    with pytest.raises(GenomemError, match=words):
        build_mixer(name, 9, heads=2)
