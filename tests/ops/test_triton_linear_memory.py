"""The Triton kernels of the linear memory against their PyTorch counterparts and against the sequential definition.

Triton reads TRITON_INTERPRET once, when it is imported. So the functions named `check_*` run in a process of their own:
there on the CPU through Triton's interpreter, and once more on the GPU where there is one.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from genomem.ops import linear_memory_span as span
from genomem.ops import reference
from genomem.ops.linear_memory import chunked_linear_memory
from genomem.ops.triton import linear_memory as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
STEPS = ("decay", "inverse", "scan", "read", "scan_backward")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install '.[triton]'")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _run_checks(prefix, interpret, cache):
    """Runs the functions of this file whose names begin with `prefix` in a fresh process."""
    environment = os.environ | {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"python_functions={prefix}", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_triton
def test_the_kernels_are_right_in_the_interpreter(tmp_path):
    _run_checks("check", "1", tmp_path)


@needs_triton
@needs_gpu
def test_the_kernels_are_right_on_the_gpu(tmp_path):
    _run_checks("check", "0", tmp_path)


@needs_triton
def test_the_kernels_compile_for_gpus(tmp_path):
    _run_checks("compile", "0", tmp_path)


@pytest.mark.parametrize("shape", [(4, 24, 8), (4, 256, 8), (4, 16, 129), (0, 16, 8)])
def test_other_sizes_stay_with_pytorch(shape, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not kernels.supports(torch.zeros(shape))
    assert not kernels.supports(torch.zeros(4, 16, 8, dtype=torch.float64))


def test_they_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "_is_installed", lambda: True)
    assert kernels.supports(torch.zeros(4, 16, 8))
    monkeypatch.setenv("GENOMEM_TRITON", "0")
    assert not kernels.supports(torch.zeros(4, 16, 8))


def test_a_cpu_stays_with_pytorch():
    assert INTERPRETED or not kernels.supports(torch.zeros(4, 16, 8))


def _chunks(case, dtype=torch.float64):
    """Returns what the steps take, for two chunks a head: rows, gates, decay, inverse, state and the gradients of a loss."""
    heads, chunk, key_width, value_width, momentum, forget, padded, squared = case
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    gate = lambda: torch.rand(2 * heads, chunk, 1, dtype=torch.float64, generator=generator)  # noqa: E731
    rows, parts = (2 * heads, chunk), 2 if momentum else 1
    made = {"query": F.normalize(normal(*rows, key_width), dim=-1), "key": F.normalize(normal(*rows, key_width), dim=-1)}
    made |= {"target": normal(*rows, value_width), "erase": gate(), "momentum": gate(), "keep": 1 - 0.2 * gate()}
    made |= {"real": (gate() > 0.3).double(), "state": normal(heads, parts * key_width, value_width)}
    made |= {"grad_writes": normal(*rows, value_width), "grad_starts": normal(2 * heads, parts * key_width, value_width)}
    made |= {"grad_state": normal(heads, parts * key_width, value_width)}
    made["keep"][:, ::5], made["momentum"][:, ::7] = 0.0, 1.0
    absent = {"momentum": not momentum, "keep": not forget, "real": not (padded and momentum), "erase": not squared}
    made = {name: None if absent.get(name) else part.to(DEVICE, dtype) for name, part in made.items()}
    made["decay"] = span._decay(made["momentum"], made["keep"], made["real"], like=made["target"][..., :1])
    erased = None if made["erase"] is None else made["erase"] * made["key"]
    made["inverse"] = None if erased is None else span._inverse(erased, made["key"], made["decay"].weights)
    return made | {"erased": erased}


def _decay(steps, made):
    return steps._decay(made["momentum"], made["keep"], made["real"], like=made["target"][..., :1])


def _inverse(steps, made):
    return () if made["erased"] is None else (steps._inverse(made["erased"], made["key"], made["decay"].weights),)


def _scan(steps, made):
    return steps._scan(*(made[name] for name in ("key", "target", "erase", "inverse", "decay", "state")))


def _scan_backward(steps, made):
    grads = [made[name].clone() for name in ("grad_writes", "grad_starts", "grad_state")]
    return *steps._scan_backward(*(made[name] for name in ("key", "erase", "inverse", "decay")), *grads), grads[0]


def _read(steps, made, lag):
    states, writes = span._scan(*(made[name] for name in ("key", "target", "erase", "inverse", "decay", "state")))
    return (steps._read(made["query"], made["key"], made["decay"], states, writes, lag),)


# Heads, chunk size, key width, value width; then whether there is momentum, forgetting, padding and the squared objective.
CASES = {
    "everything": (2, 16, 12, 40, True, True, True, True),
    "no momentum": (1, 32, 8, 16, False, True, False, True),
    "no forgetting": (1, 32, 16, 12, True, False, True, True),
    "dot objective": (2, 16, 8, 8, True, True, False, False),
    "nothing": (1, 16, 16, 16, False, False, False, False),
    "chunk of 64": (1, 64, 12, 8, True, True, False, True),
    "chunk of 128": (1, 128, 24, 8, True, False, False, True),
}
FUNCTIONS = {
    "decay": _decay,
    "inverse": _inverse,
    "scan": _scan,
    "scan backward": _scan_backward,
    "read after": lambda steps, made: _read(steps, made, 0),
    "read before": lambda steps, made: _read(steps, made, 1),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", CASES)
def check_a_kernel_equals_its_counterpart(function, case, monkeypatch):
    single, exact = _chunks(CASES[case], torch.float32), _chunks(CASES[case])
    actual = FUNCTIONS[function](span, single)
    monkeypatch.setattr(kernels, "supports", lambda rows: False)
    for ours, theirs, truth in zip(actual, FUNCTIONS[function](span, single), FUNCTIONS[function](span, exact), strict=True):
        if truth is not None:
            _assert_as_good(ours, theirs, truth)


def _assert_as_good(ours, theirs, truth, name=""):
    """Both equal, and the float32 error no more than four times that of PyTorch (or of rounding once, where that is less)."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * truth.abs().max().item(), msg=lambda text: f"{name}: {text}")
    error, allowed = ((part.double() - truth).norm() for part in (ours, theirs))
    assert error <= 4 * max(allowed, torch.finfo(torch.float32).eps * truth.norm()), name


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.5])
def check_the_inverse_of_repeated_keys(step_size):
    key = F.normalize(torch.ones(2, 64, 8, device=DEVICE), dim=-1)
    weights = torch.ones(2, 65, 64, device=DEVICE).tril(-1)
    inverse = kernels.inverse(step_size * key, key, weights).double()
    matched = step_size * weights[:, :-1].double()
    torch.testing.assert_close(inverse + matched @ inverse, torch.eye(64, device=DEVICE).double().expand(2, -1, -1), rtol=0, atol=1e-5)


def _sequence(length, key_width, value_width, without):
    generator = torch.Generator().manual_seed(5)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    gate = lambda: torch.rand(1, length, 2, dtype=torch.float64, generator=generator)  # noqa: E731
    inputs = {"query": F.normalize(normal(1, length, 2, key_width), dim=-1), "key": F.normalize(normal(1, length, 2, key_width), dim=-1)}
    inputs |= {"value": normal(1, length, 2, value_width), "step_size": gate(), "momentum": gate(), "forget": 0.2 * gate()}
    inputs |= {"W": normal(1, 2, key_width, value_width), "S": normal(1, 2, key_width, value_width)}
    return {name: None if name in without else part.to(DEVICE) for name, part in inputs.items()}


def _with_gradients(form, inputs, dtype, **options):
    """Returns output, state and the gradients of a random weighting of them, by name."""
    leaves = {name: part.to(dtype).requires_grad_() for name, part in inputs.items() if part is not None}
    gates = {name: leaves.get(name) for name in ("step_size", "momentum", "forget")}
    state = leaves.get("W"), leaves.get("S")
    output, (memory, surprise) = form(leaves["query"], leaves["key"], leaves["value"], **gates, state=state, **options)
    results = {"output": output, "end W": memory} | ({"end S": surprise} if "momentum" in leaves else {})
    generator = torch.Generator().manual_seed(9)
    loss = sum((part * torch.randn(part.shape, dtype=torch.float64, generator=generator).to(part)).sum() for part in results.values())
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return results | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}


@pytest.mark.parametrize(
    ("chunk", "length", "widths", "without", "options"),
    [
        (16, 53, (12, 8), (), {}),
        (16, 32, (8, 12), ("momentum", "S"), {"decay_first": True}),
        (32, 64, (16, 16), ("forget", "W", "S"), {"read": "before"}),
        (16, 32, (16, 8), ("momentum", "forget", "S"), {"objective": "dot"}),
        (16, 32, (12, 8), (), {"mask": 0.7}),
        (16, 32, (8, 8), (), {"reset": 0.1}),
    ],
    ids=["everything", "no momentum", "no forgetting, no state", "dot objective", "padding", "documents"],
)
def check_the_memory_equals_the_definition(chunk, length, widths, without, options, monkeypatch):
    inputs, called = _sequence(length, *widths, without), []
    flags = torch.rand(1, length, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    options = {name: flags < share if name in ("mask", "reset") else share for name, share in options.items()}
    for name in STEPS:
        step = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *parts, name=name, step=step, **like: (called.append(name), step(*parts, **like))[1])
    ours = _with_gradients(chunked_linear_memory, inputs, torch.float32, chunk_size=chunk, **options)
    assert set(called) == set(STEPS) - ({"inverse"} if "objective" in options else set())
    monkeypatch.setattr(kernels, "supports", lambda rows: False)
    theirs = _with_gradients(chunked_linear_memory, inputs, torch.float32, chunk_size=chunk, **options)
    truth = _with_gradients(reference.linear_memory, inputs, torch.float64, **options)
    for name, part in ours.items():
        _assert_as_good(part, theirs[name], truth[name], name)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is one thread, whose sums have one order anyway")
def check_two_runs_give_the_same_bits():
    first, second = (_with_gradients(chunked_linear_memory, _sequence(256, 64, 64, ()), torch.float32, chunk_size=64) for _ in range(2))
    assert all(torch.equal(part, second[name]) for name, part in first.items())


OPTIONAL = ("momentum", "real", "keep", "weights", "fading", "carried", "erase", "inverse")


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize(
    ("name", "absent"),
    [
        *((name, ()) for name in ("decay", "invert_blocks", "join_inverses", "read", "scan", "scan_backward")),
        *((name, OPTIONAL) for name in ("decay", "scan", "scan_backward")),
    ],
)
def compile_a_kernel(name, absent, precision):
    """The interpreter takes more than the compiler does, which needs no GPU; 48 KB is what every GPU gives a program."""
    import triton
    from triton.backends.compiler import GPUTarget

    from genomem.ops.triton import linear_memory_chunks, linear_memory_scan

    kernel = getattr(linear_memory_scan, name, None) or getattr(linear_memory_chunks, name)
    sizes = {"C": 32, "K": 12, "V": 8, "P": 1 if absent else 2, "BK": 16, "BV": 16, "LAG": 1, "SIZE": 16, "PRECISION": precision}
    constants = {arg: None if arg in absent else sizes[arg] for arg in kernel.arg_names if arg in sizes or arg in absent}
    types = {arg: "constexpr" if arg in constants else "i32" if arg in ("chunks", "heads") else "*fp32" for arg in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4, "num_stages": 1})
    assert compiled.metadata.shared <= 48 << 10
