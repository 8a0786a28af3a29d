"""A gated block around a diagonal state space whose kernels start as those of HiPPO."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.convolution import ShortConvolution
from genomem.layers.mixer import Mixer, State
from genomem.ops.hippo_matrices import s4d_poles
from genomem.ops.state_space import chunked_state_space, recurrent_state_space

# Of the fastest channel at the start of training: it remembers some ten tokens.
LARGEST_STEP = 0.1


class HippoSSM(Mixer):
    """`out(y * silu(gate(x)))`, with y the state space of `v = silu(conv(value(x)))`; for each channel, with N poles A ::

        s_t = exp(dt A) s_{t-1} + A^-1 (exp(dt A) - 1) v_t        zero-order hold
        y_t = 2 Re(sum_n C_n s_tn) + D v_t

    The step dt of a channel is its timescale: it remembers about 1/dt tokens. Channels start with steps spaced evenly in the logarithm
    from `1 / longest_bp` to 0.1. The poles, from the matrix LegS by default, are the same for all channels at the start, and steps, poles
    and C are learned. The real parts of the poles are negative whatever is learned, so that every state is bounded.

    What it does not do: weights do not depend on the content, so that it blurs the past and cannot look up bases that it read. LegS here is
    the time-invariant system, with a measure that decays exponentially; only the system with steps of 1/t weighs the whole past alike
    (`titans_hippo_mac` has that one). No parameter has a learning rate of its own, which S4D gives to poles and steps.

    Args:
        dim: Model width D, the number of channels.
        state_size: N, complex states of a channel; each stands for itself and its conjugate.
        initial: Poles at the start: ``legs`` of the normal part of LegS, its approximations ``lin`` and ``inv``, or ``real``.
        longest_bp: Tokens that the slowest channel remembers at the start; the length of the sequences to read is a good choice.
        conv_kernel: Taps of the convolution on v; 1 turns it off.

    Source: S4D, arXiv 2206.11893, sections 3 and 4; timescales, How to Train Your HiPPO, arXiv 2206.12037, section 3; HiPPO, arXiv
    2008.07669; the gate, Mamba, arXiv 2312.00752, figure 3.
    """

    def __init__(self, dim: int, *, state_size: int = 32, initial: str = "legs", longest_bp: int = 65_536, conv_kernel: int = 4) -> None:
        super().__init__()
        self.value_gate = nn.Linear(dim, 2 * dim, bias=False)
        self.convolution = ShortConvolution(dim, conv_kernel) if conv_kernel > 1 else None
        poles = s4d_poles(initial, state_size).to(torch.complex64).expand(dim, -1)
        self.log_dt = nn.Parameter(torch.logspace(-math.log10(longest_bp), math.log10(LARGEST_STEP), dim).log())
        self.A_log = nn.Parameter((-poles.real).log())
        self.A_imag = nn.Parameter(poles.imag.clone())
        self.C = nn.Parameter(torch.randn(*poles.shape, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        history, states = (None, None) if state is None else state
        value, gate = self.value_gate(hidden).chunk(2, dim=-1)
        if self.convolution is not None:
            value, history = self.convolution(value, history, mask=mask, reset=reset)
        value = F.silu(value)
        run = recurrent_state_space if hidden.shape[1] == 1 else chunked_state_space
        found, states = run(value, *self._poles_and_weights(), states, mask=mask, reset=reset)
        mixed = self.out((found + self.D * value) * F.silu(gate))
        return (mixed if mask is None else mixed * mask[..., None]), (history, states)

    def _poles_and_weights(self) -> tuple[Tensor, Tensor]:
        """Returns `dt A` and `2 C A^-1 (exp(dt A) - 1)`, each `[D, N]` complex; the 2 stands for the conjugates of the poles."""
        precision = torch.promote_types(self.log_dt.dtype, torch.float32)
        rate, frequency = self.A_log.to(precision).exp(), self.A_imag.to(precision)
        poles = torch.complex(-rate, frequency)
        turned = self.log_dt.to(precision).exp()[:, None] * poles
        return turned, 2 * torch.view_as_complex(self.C.to(precision)) * torch.expm1(turned) / poles

    def state_bytes(self, tokens: int) -> int:
        size, dim = self.out.weight.element_size(), self.out.in_features
        convolution = 0 if self.convolution is None else self.convolution.span * dim * size
        return convolution + self.C.numel() * max(size, torch.float32.itemsize)
