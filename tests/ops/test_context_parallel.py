"""Two and three processes that share a sequence give what one process gives that reads it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.context_parallel import context_parallel_linear_memory
from genomem.ops.linear_memory import chunked_linear_memory

BATCH, HEADS, KEY, VALUE = 2, 2, 5, 3
BORDERS = {2: [0, 13, 30], 3: [0, 7, 8, 30]}
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "momentum": (("momentum", "forget", "W", "S"), {}),
    "no momentum": (("forget", "W"), {}),
    "from nothing": (("momentum",), {"read": "before"}),
    "padded and packed": (("momentum", "forget", "mask", "reset"), {}),
    "gates a channel": (("momentum", "channels"), {}),
}


def make_inputs(case: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    uniform = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    tokens = (BATCH, 30, HEADS)
    inputs = {"query": normal(*tokens, KEY), "key": F.normalize(normal(*tokens, KEY), dim=-1), "value": normal(*tokens, VALUE)}
    inputs |= {"step_size": uniform(*tokens)}
    every = {"momentum": uniform(*tokens), "forget": 0.2 * uniform(*tokens), "channels": uniform(*tokens, KEY)}
    every |= {"mask": uniform(BATCH, 30) > 0.3, "reset": uniform(BATCH, 30) > 0.9}
    every |= {"W": normal(BATCH, HEADS, KEY, VALUE), "S": normal(BATCH, HEADS, KEY, VALUE)}
    inputs |= {name.replace("channels", "forget"): every[name] for name in CASES[case][0]}
    return inputs


def run(form: Any, inputs: dict[str, Tensor], part: slice, case: str) -> dict[str, Tensor]:
    """Returns output, states and the gradients of a weighting of them, for one part of the tokens."""
    leaves = {name: x if x.dtype == torch.bool else x.clone().requires_grad_() for name, x in inputs.items()}
    given = {name: x[:, part] for name, x in leaves.items() if name not in ("W", "S")}
    state = (leaves["W"], leaves.get("S")) if "W" in leaves else None
    output, (memory, surprise) = form(**given, state=state, chunk_size=4, **CASES[case][1])
    weights = torch.randn(BATCH, 30, HEADS, VALUE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends = [memory] if surprise is None else [memory, surprise]
    # The end is the same on all processes: its share of the loss is counted once, on the one that has the last token.
    loss = (output * weights[:, part]).sum() + sum(end.sum() for end in ends) * (part.stop == 30)
    names = [name for name, x in leaves.items() if x.requires_grad]
    grads = torch.autograd.grad(loss, [leaves[name] for name in names])
    results = {"output": output} | {f"end {i}": end for i, end in enumerate(ends)}
    results |= {f"d {name}": grad if name in ("W", "S") else grad[:, part] for name, grad in zip(names, grads, strict=True)}
    return {name: x.detach() for name, x in results.items()}


def work(rank: int, world: int, case: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    part = slice(BORDERS[world][rank], BORDERS[world][rank + 1])
    torch.save(run(context_parallel_linear_memory, make_inputs(case), part, case), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("world", "case"), [(2, case) for case in CASES] + [(3, "momentum")])
def test_parts_on_several_processes_equal_the_whole_on_one(world: int, case: str, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (world, case, str(tmp_path)), nprocs=world)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    whole = run(chunked_linear_memory, make_inputs(case), slice(0, 30), case)
    for name, expected in whole.items():
        shared = name.startswith("end") or name in ("d W", "d S")
        for actual in [part[name] for part in parts] if shared else [torch.cat([part[name] for part in parts], dim=1)]:
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_a_gradient_block_could_lie_across_two_parts() -> None:
    inputs = make_inputs("from nothing")
    with pytest.raises(ValueError, match="gradient_block is 4; over several processes it must be 1"):
        context_parallel_linear_memory(**inputs, gradient_block=4)
