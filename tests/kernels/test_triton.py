"""The Triton kernels agree with the reference: on a GPU if there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from test_native import ALL, build, difference  # noqa: E402

import untuned  # noqa: E402
from untuned.directions import Adam, Gradient, Muon  # noqa: E402
from untuned.kernels import triton as kernels  # noqa: E402
from untuned.kernels.triton import BLOCK, add_chunks, power  # noqa: E402
from untuned.parts import StepSize, hyper  # noqa: E402
from untuned.run import launch as sweeps  # noqa: E402
from untuned.step_sizes import Fixed, MoMo  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of lanes that are masked out


@pytest.fixture(autouse=True)
def on_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "TRITON_DEVICES", {DEVICE})
    if not GPU:
        monkeypatch.setattr(kernels, "CHUNK", 2 * BLOCK)  # the interpreter is slow


@pytest.fixture
def rounding_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts float32 off to bfloat16, where a GPU rounds it to nearest even."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        nearest = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
        return nearest.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def environment() -> dict[str, str]:
    """For a process of its own, without the interpreter."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)}


def start(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (5, 3),
        (kernels.CHUNK + BLOCK + 5,),
        (),
        (2, 3, 4, 4),
        (0, 3),
    ]  # two chunks, a scalar, channels last, nothing
    values = [torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for s in shapes]
    values[3] = values[3].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(v) for v in values]


def run(
    name: str, dtype: torch.dtype, steps: int, execution: str, tensors: int = 5, **engine: Any
) -> tuple[list[torch.Tensor], untuned.Optimizer]:
    """Steps on noisy gradients that do not depend on the path, so that differences show and are not amplified."""
    params = start(dtype)[:tensors]
    optimizer = build(name, [{"params": params[:1]}, {"params": params[1:]}], execution=execution, **engine)
    optimizer.param_groups[1]["lr"] /= 2
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
            p.grad = torch.empty_like(p).copy_(p.detach() + 0.3 * noise)
        loss = sum(p.detach().double().square().sum() for p in params) / 2
        optimizer.step(loss=loss, sample_ids=[0, 5, 2, 2])
    return [p.detach() for p in params], optimizer


def calls(optimizer: untuned.Optimizer) -> list[kernels.Call]:
    found = [call for batch in optimizer._launch.batches for call in batch.calls.values() if call]
    assert all(isinstance(call, kernels.Call) for call in found)
    return found


@pytest.mark.parametrize("name", ALL)
def test_float32_kernel_equals_reference(name: str) -> None:
    ours, optimizer = run(name, torch.float32, 3, "native")
    reference, _ = run(name, torch.float32, 3, "reference")
    assert difference(ours, reference) < 1e-6
    assert difference(ours, [p.detach() for p in start(torch.float32)]) > 1e-5  # something moved
    assert len(optimizer._launch.rest) == 1  # only the empty tensor went the reference way
    assert len(calls(optimizer)) >= 2


# Every program runs in float32 above; in float64 it differs in the types of its loads and stores alone.
THIRD = [pytest.param(name, marks=() if i % 3 == 0 else pytest.mark.slow) for i, name in enumerate(ALL)]


@pytest.mark.parametrize("name", THIRD)
def test_float64_kernel_equals_reference(name: str) -> None:
    few = {"tensors": 2, "skip_nonfinite": False}  # for the interpreter's sake
    ours, _ = run(name, torch.float64, 10, "native", **few)
    reference, _ = run(name, torch.float64, 10, "reference", **few)
    assert difference(ours, reference) < 1e-10


@pytest.mark.usefixtures("rounding_to_bfloat16")
@pytest.mark.parametrize("name", ["adamw", "momo_adam", "prodigy"])
@pytest.mark.parametrize(
    ("dtype", "slot_dtype"),
    [(torch.float16, None), (torch.bfloat16, None), (torch.bfloat16, torch.bfloat16)],
)
def test_low_precision_kernel_equals_reference(name: str, dtype: torch.dtype, slot_dtype: torch.dtype | None) -> None:
    ours, optimizer = run(name, dtype, 3, "native", slot_dtype=slot_dtype)
    reference, _ = run(name, dtype, 3, "reference", slot_dtype=slot_dtype)
    # Equal float32 arithmetic up to its rounding may fall on either side of a rounding boundary of the stored dtype.
    assert difference(ours, reference) < torch.finfo(dtype).eps
    apart = sum(int((p != q).sum()) for p, q in zip(ours, reference, strict=True))
    assert apart < 0.02 * sum(p.numel() for p in ours)
    assert len(calls(optimizer)) == len(optimizer._launch.stages[None])


@pytest.mark.parametrize("name", ["momo_adam", "tam"])
def test_equal_steps_give_equal_bits(name: str) -> None:
    one, _ = run(name, torch.float32, 3, "native")
    two, _ = run(name, torch.float32, 3, "native")
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_chunks_are_added_per_tensor() -> None:
    counts = [1, 2500, 3]
    partial = torch.randn(sum(counts), 2, dtype=torch.float64, device=DEVICE)
    first = torch.tensor([0, 1, 2501, 2504], dtype=torch.int32, device=DEVICE)
    sums = torch.empty(3, 2, dtype=torch.float64, device=DEVICE)
    add_chunks[(3, 2)](partial, first, sums, COUNT=2, WIDTH=1024, LARGEST=0)
    expected = torch.stack([part.sum(0) for part in partial.split(counts)])
    assert float((sums - expected).abs().max()) < 1e-12


@triton.jit
def powers(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, power(tl.load(x + i), tl.load(y + i)))


def test_power() -> None:
    x = [0.999, 0.999, 0.0, 0.0, -2.0, -2.0, -2.0, -2.0]
    y = [1.0, 1e4, 0.0, 2.0, 2.0, 3.0, -1.0, 0.5]
    x, y = (torch.tensor(q, dtype=torch.float64, device=DEVICE) for q in (x, y))
    out = torch.empty_like(x)
    powers[(1,)](x, y, out, N=8)
    torch.testing.assert_close(out, x**y, rtol=1e-13, atol=0.0, equal_nan=True)


class Counted:
    """A kernel that counts its launches and does nothing."""

    def __init__(self, launches: list[tuple[int, ...]]) -> None:
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *tables, **constants: self.launches.append(grid)


class Operations(TorchDispatchMode):
    """Counts what torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    counted: list[tuple[int, ...]] = []
    monkeypatch.setattr(kernels, "compile_source", lambda source: Counted(counted))
    monkeypatch.setattr(kernels, "add_chunks", Counted(counted))
    return counted


@pytest.mark.parametrize("name", ALL)
def test_launches_and_operations_do_not_depend_on_the_number_of_tensors(
    name: str, launches: list[tuple[int, ...]]
) -> None:
    found = []
    for count in (2, 40):
        params = [torch.nn.Parameter(torch.randn(3, device=DEVICE)) for _ in range(count)]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer = build(name, params, execution="native")
        loss = torch.ones((), dtype=torch.float64, device=DEVICE)
        optimizer.step(loss=loss, sample_ids=[0, 5, 2, 2])
        for held in optimizer.state.values():
            held["step"].fill_(1.0)  # these launches compute nothing, so that the first step was skipped
        launches.clear()
        with Operations() as operations:
            optimizer.step(loss=loss, sample_ids=[0, 5, 2, 2])
        found.append((len(launches), operations.seen))
    assert found[0] == found[1]
    label = optimizer.param_groups[0].get("label")
    programs = [stage.program(frozenset()) for stage in optimizer._launch.stages[label][1:]]
    assert len(launches) == 2 + sum(bool(p.stores or p.sums) + bool(p.sums) for p in programs)  # the guard: 2
    assert "aten::_local_scalar_dense" not in found[0][1]  # the host reads nothing


def test_tables_are_sent_when_they_change(monkeypatch: pytest.MonkeyPatch, launches: list[tuple[int, ...]]) -> None:
    p = torch.nn.Parameter(torch.ones(10, device=DEVICE))
    optimizer = untuned.MoMoAdam([p], lr=0.1, weight_decay=0.1, execution="native")
    p.grad = torch.ones_like(p)

    def sent() -> int:
        return sum(upload.cache_info().misses for upload in {call.upload for call in calls(optimizer)})

    def step() -> int:
        before = sent()
        optimizer.step(loss=torch.ones((), dtype=torch.float64, device=DEVICE), sample_ids=[0, 5, 2, 2])
        return sent() - before

    assert step() >= 4  # addresses, chunks, scalars
    monkeypatch.setattr(kernels, "compile_source", lambda source: pytest.fail("compiled again"))
    before = calls(optimizer)
    assert step() == 0
    optimizer.param_groups[0]["lr"] = 0.05
    assert step() == 2  # the scalars of both sweeps
    optimizer.param_groups[0]["eps"] = 1e-6
    assert step() == 2
    p.grad = torch.ones_like(p)
    assert step() == 1  # the addresses
    assert calls(optimizer) == before


@pytest.mark.parametrize("name", ["prodigy", "mechanic_adamw", "tam"])
def test_a_step_with_a_bad_gradient_changes_nothing(name: str) -> None:
    params = start(torch.float32)[:3]
    optimizer = build(name, params, execution="native")

    def step(worst: float) -> None:
        for p in params:
            p.grad = p.detach() * 0.1
        params[1].grad[-1] = worst
        optimizer.step(loss=torch.ones((), device=DEVICE))

    step(1.0)
    held = {k: v.clone() for p in params for k, v in {**optimizer.state[p], "p": p.detach()}.items()}
    step(float("nan"))
    now = {k: v for p in params for k, v in {**optimizer.state[p], "p": p.detach()}.items()}
    assert optimizer.metrics()["skipped"] == 1
    assert all(torch.equal(held[key], now[key]) for key in held)
    step(1.0)
    assert not torch.equal(held["p"], params[2].detach())


def test_sums_of_tensors_that_rest_are_zero() -> None:
    [p] = start(torch.float32)[1:2]
    optimizer = untuned.Prodigy([p], execution="native")
    p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    torch.use_deterministic_algorithms(True)  # fills memory that is not written with NaN
    try:
        [batch] = optimizer._launch.batches
        found = [call for call in batch.calls.values() if call and call.writer.count > 1]
        [sums] = [call.run(optimizer._last, batch, {0: torch.zeros(())}) for call in found]
    finally:
        torch.use_deterministic_algorithms(False)
    assert sums.tolist() == [[0.0, 0.0]]


class Tenth(StepSize):
    """A step size with a constant that float32 cannot hold."""

    lr: float = hyper(default=1.0, within="[0, inf)")

    def size(self, x: Any) -> tuple[Any, Any]:
        return 0.1 * x.lr, x.lr


def test_constants_are_exact() -> None:
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64, device=DEVICE))
    optimizer = untuned.compose([p], Gradient(), Tenth(), execution="native")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert len(calls(optimizer)) == 2
    assert p.tolist() == [-0.1, -0.1]


def test_a_group_whose_lr_is_a_tensor_of_zero_rests() -> None:
    results = []
    for execution in ("native", "reference"):
        params = start(torch.float32)[:2]
        lrs = [torch.tensor(0.0, device=DEVICE), torch.tensor(0.1, device=DEVICE)]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)]
        optimizer = untuned.MoMo(groups, execution=execution)
        kept = params[0].detach().clone()
        for k in range(3):
            for p in params:
                p.grad = p.detach() * 2
            optimizer.step(loss=sum(p.detach().square().sum() for p in params))
            lrs[1] *= 0.9
            assert torch.equal(params[0].detach(), kept) == (k < 2)
            lrs[0] += 0.05 * (k == 1)
        results.append([p.detach() for p in params])
    assert difference(*results) < 1e-6


def test_tensors_at_odd_addresses_and_strange_strides() -> None:
    results = []
    for execution in ("native", "reference"):
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(3000, generator=generator).to(DEVICE)
        odd, transposed, strided = base[1:1301], base[1500:1524].view(4, 6).t(), base[2000:2048].view(8, 6)[::2]
        params = [torch.nn.Parameter(v) for v in (odd, transposed, strided, base[2500:].clone())]
        optimizer = untuned.MoMoAdam(params, lr=0.1, execution=execution)
        for _ in range(3):
            for p in params:
                p.grad = torch.empty_like(p).copy_(p.detach() * 2)
            optimizer.step(loss=sum(p.detach().double().square().sum() for p in params))
        results.append([p.detach() for p in params])
        if execution == "native":
            assert len(optimizer._launch.rest) == 2
    assert difference(*results) < 1e-6


def test_without_triton_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "triton_available", False)
    monkeypatch.setattr(sweeps, "native_available", False)
    ours, optimizer = run("adamw", torch.float32, 2, "auto")
    reference, _ = run("adamw", torch.float32, 2, "reference")
    assert calls(optimizer) == []
    assert all(torch.equal(p, q) for p, q in zip(ours, reference, strict=True))


@pytest.mark.skipif(GPU, reason="would run the benchmark")
def test_the_gpu_benchmark_says_what_it_needs() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    done = subprocess.run([sys.executable, script], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "needs a CUDA GPU" in done.stdout


COMPILE = """
import re, subprocess, sys, torch, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import untuned
from untuned.kernels.cache import compile_source
from untuned.recipe.trace import TraceFrame, body, trace
from untuned.kernels.triton import TritonWriter

optimizer = untuned.Prodigy([torch.nn.Parameter(torch.ones(3))])
verbs = [("direction", "accumulate"), ("step_size", "measure")]
measured = trace(TraceFrame(optimizer.recipe, optimizer.parts), body(verbs))
for program in (measured, optimizer._launch.stages[None][1].program(frozenset())):
    keys = sorted(set().union(*program.streams()))
    function = compile_source(TritonWriter(program, dict.fromkeys(keys, "float32")).source)
    pointers = ["*i64", "i32", "*i32", "*fp64", "*fp64"]
    signature = dict(zip(function.arg_names, [*pointers, "constexpr"]))
    aligned = {(i,): [["tt.divisibility", 16]] for i in (0, 2, 3, 4)}
    source = ASTSource(function, signature, {"ALIGNMENT": 16}, aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    Path(sys.argv[1]).write_bytes(kernel.asm["cubin"])
    dump = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", sys.argv[1]]
    text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    spilled = [len(re.findall(rf"\\b{way}\\b", text)) for way in ("STL", "LDL")]
    moved = [kernel.asm["ptx"].count(f"{way}.global.v4.b32") for way in ("ld", "st")]
    print(*map(len, program.streams()), *moved, *spilled, *re.findall(r"STACK:(\\d+)", text)[:1])
"""


def test_compiled_for_a_gpu_whole_blocks_move_in_pieces_of_16_bytes(tmp_path: Path) -> None:
    compiled = environment() | {"TRITON_CACHE_DIR": str(tmp_path)}
    program = [sys.executable, "-c", COMPILE, tmp_path / "kernel"]
    done = subprocess.run(program, env=compiled, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    per_thread = BLOCK // 128 // 4  # four warps, four float32 in 16 bytes
    for reads, writes, loads, stores, *_ in found:
        assert (loads, stores) == (reads * per_thread, writes * per_thread)
    (*_, stack), (*_, stored, loaded, _) = found
    assert stack == 0  # no register is spilled
    assert (stored, loaded) == (
        1,
        1,
    )  # with the move, one across a double's square root: once per chunk, not in the loop


@needs_gpu
@pytest.mark.parametrize("name", untuned.list())
def test_a_step_waits_for_nothing(name: str) -> None:
    params = [p for p in start(torch.float32) if p.numel()]
    optimizer = build(name, params, execution="native")
    for p in params:
        p.grad = p.detach().clone()
    loss = torch.ones((), device=DEVICE)
    optimizer.step(loss=loss)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for k in range(3):
            optimizer.param_groups[0]["lr"] *= 0.9
            for p in params:
                p.grad = p.grad * 0.9 if k else p.grad
            optimizer.step(loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("name", untuned.list())
def test_a_captured_step_is_replayed_with_another_lr(name: str) -> None:
    results = []
    for captured in (False, True):
        params = [p for p in start(torch.float32) if p.numel()]
        lr, loss = torch.tensor(0.01, device=DEVICE), torch.ones((), device=DEVICE)
        optimizer = untuned.create(params, name, lr=0.01, execution="native")
        optimizer.param_groups[0]["lr"] = lr
        for p in params:
            p.grad = p.detach().clone()
        graph = torch.cuda.CUDAGraph()
        for k in range(6):
            for p in params:
                p.grad.copy_(p.detach() * (1 + k))
            lr.fill_(0.01 / (1 + k))
            if captured and k == 2:
                with torch.cuda.graph(graph):
                    optimizer.step(loss=loss)
            if captured and k >= 2:
                graph.replay()
            else:
                optimizer.step(loss=loss)
        results.append([p.detach() for p in params])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@needs_gpu
def test_launches_seen_by_the_profiler() -> None:
    params = [torch.nn.Parameter(torch.randn(100, device=DEVICE)) for _ in range(50)]
    optimizer = untuned.MoMoAdam(params, execution="native")
    for p in params:
        p.grad = torch.randn_like(p)
    loss = torch.ones((), device=DEVICE)
    optimizer.step(loss=loss)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step(loss=loss)
        torch.cuda.synchronize()
    launched = Counter(event.name for event in profile.events())
    assert launched["sweep"] == 3  # the guard and two sweeps
    assert launched["add_chunks"] == 2


@pytest.mark.parametrize("name", ["adamw", "momo_adam", "tam"])
def test_stochastic_rounding_is_that_of_the_reference(name: str) -> None:
    options = {"stochastic_rounding": True, "slot_dtype": torch.bfloat16}
    ours, optimizer = run(name, torch.bfloat16, 3, "native", **options)
    reference, _ = run(name, torch.bfloat16, 3, "reference", **options)
    assert len(calls(optimizer)) >= 2
    apart = sum(int((p != q).sum()) for p, q in zip(ours, reference, strict=True))
    assert apart < 0.01 * sum(p.numel() for p in ours)
    assert difference(ours, reference) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("rule", [Fixed, MoMo])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kernels_run_what_is_elementwise_beside_matrix_math(dtype: torch.dtype, rule: Any) -> None:
    """The matrix stage runs between them, on the tensors of its label alone."""
    runs = []
    for execution in ("native", "reference"):
        params = [*start(dtype)[:2], torch.nn.Parameter(torch.ones(2, 4, dtype=dtype, device=DEVICE))]
        groups = [{"params": params[1:2], "label": "rest"}, {"params": [params[0], params[2]], "label": "matrices"}]
        direction = {"matrices": Muon(0.9, nesterov=False), "rest": Adam()}
        optimizer = untuned.compose(groups, direction, rule(0.02), execution=execution)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for p in params:  # of few bits: what enters bfloat16 is rounded nowhere else
                p.grad = torch.randint(-8, 9, p.shape, generator=generator).to(DEVICE, dtype)
            optimizer.step(loss=1e4)
        runs.append(([p.detach() for p in params], optimizer.metrics(), len(optimizer._launch.rest)))
        if execution == "native":
            assert len(calls(optimizer)) >= 5  # the guard of both labels, accumulate, and the moves
    (ours, found, rest), (reference, expected, _) = runs
    assert rest == 0
    assert difference(ours, reference) < (1e-12 if dtype == torch.float64 else 1e-3)
    assert difference(ours, [*(p.detach() for p in start(dtype)[:2]), torch.ones_like(ours[2])]) > 1e-3
    assert found == pytest.approx(expected, rel=1e-9 if dtype == torch.float64 else 1e-3)
