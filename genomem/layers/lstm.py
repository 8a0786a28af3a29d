"""The long short-term memory, the recurrent network that every later memory is measured against."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from genomem.layers.mixer import Mixer

LSTMState = tuple[Tensor, Tensor]


class LSTM(Mixer):
    """One layer of PyTorch's LSTM with D cells, and a projection::

        i, f, o = sigmoid(W x_t + U h_{t-1} + b);  g = tanh(W x_t + U h_{t-1} + b)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)
        o_t = out(h_t)

    Its state is 2 D numbers. The hidden state goes through a matrix at every token, so that tokens cannot be computed side by side: time
    is that of T small steps, whatever the device. Forget gates start at about 0.73 (a bias of 1), so that gradients reach back.

    Args:
        dim: Model width D.

    Source: Hochreiter and Schmidhuber, Neural Computation 9(8), 1997; forget gates, Gers et al., Neural Computation 12(10), 2000; their
    bias, Jozefowicz et al., ICML 2015.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.out = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            # Gates lie in the order i, f, g, o; the two biases add up.
            self.lstm.get_parameter("bias_ih_l0")[dim : 2 * dim] = 1.0
            self.lstm.get_parameter("bias_hh_l0")[dim : 2 * dim] = 0.0

    def forward(
        self, hidden: Tensor, state: LSTMState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        batch, tokens, dim = hidden.shape
        if state is None:
            zeros = hidden.new_zeros(batch, dim, dtype=self.out.weight.dtype)
            state = (zeros, zeros)
        if tokens == 0:
            return hidden, state
        # The layer of PyTorch wants its input in the type of its weights.
        with torch.autocast(hidden.device.type, enabled=False):
            output, state = self._run(hidden.to(self.out.weight.dtype), state, mask, reset)
        mixed = self.out(output)
        return (mixed if mask is None else mixed * mask[..., None]), state

    def _run(self, hidden: Tensor, state: LSTMState, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, LSTMState]:
        if mask is None and reset is None:
            output, (h, c) = self.lstm(hidden, (state[0][None], state[1][None]))
            return output, (h[0], c[0])
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask
        if not real.any():
            return torch.zeros_like(hidden), state
        return self._run_documents(hidden, state, real, torch.zeros_like(real) if reset is None else reset & real)

    def _run_documents(self, hidden: Tensor, state: LSTMState, real: Tensor, border: Tensor) -> tuple[Tensor, LSTMState]:
        """Runs every document of every row as a sequence of its own, with no step for padding.

        A row has one document more than it has borders: its first goes on from the state, and has no tokens where the row starts with a
        border.
        """
        row, place = real.nonzero().unbind(1)
        document = border.cumsum(1)
        count = int(document.max()) + 1
        sequence = row * count + document[row, place]
        lengths = torch.bincount(sequence, minlength=len(real) * count)
        rank = torch.argsort(lengths, descending=True, stable=True).argsort()
        step = torch.arange(len(row), device=row.device) - (lengths.cumsum(0) - lengths)[sequence]
        order = torch.argsort(step * len(lengths) + rank[sequence])
        packed = PackedSequence(hidden[row, place][order], torch.bincount(step).cpu())
        begun = int((lengths > 0).sum())
        by_rank = rank.argsort()[:begun]
        goes_on = (by_rank % count == 0)[:, None]
        starts = tuple((part[by_rank // count] * goes_on)[None] for part in state)
        output, ends = self.lstm(packed, starts)
        mixed = torch.zeros_like(hidden).index_put((row[order], place[order]), output.data)
        last = torch.arange(len(real), device=row.device) * count + document[:, -1]
        held = (lengths[last] > 0)[:, None]
        index = rank[last].clamp(max=begun - 1)
        h, c = (torch.where(held, end[0, index], part) for end, part in zip(ends, state, strict=True))
        return mixed, (h, c)

    def state_bytes(self, tokens: int) -> int:
        return 2 * self.out.in_features * self.out.weight.element_size()
