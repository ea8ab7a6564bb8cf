"""Time of one optimizer step on the parameter lists of real models, as a ratio to torch's fused AdamW.

Every timed step stands between two steps of the reference in the same process, so that the load of the machine cancels.
A process measures one list in one dtype; it holds the reference and one contender at a time.
"""

import csv
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

import untuned
from untuned.study.config import StudyError, parse_methods
from untuned.study.contenders import MODELS, PACKAGES, PEERS, REFERENCE, Contender, Shapes

Stopwatch = Callable[[Callable[[], object]], float]  # seconds of one call
STREAM = 2**26  # elements: 256 MiB in float32, more than caches hold
DTYPES = ("float32", "bfloat16", "float16", "float64")
_KEEP = {"MALLOC_TRIM_THRESHOLD_": 2**34, "MALLOC_MMAP_THRESHOLD_": 2**34, "MALLOC_TOP_PAD_": 2**26}
ALLOCATORS: dict[str, dict[str, int]] = {"default": {}, "tuned": _KEEP}  # environment that glibc's malloc reads


@dataclass(frozen=True)
class Job:
    """What one process measures. `dtype`: of parameters, after a colon of our slots where it is not the default."""

    model: str
    dtype: str
    contenders: Sequence[str]
    allocator: str
    guard: bool
    rounds: int
    threads: int
    device: str

    @property
    def clock(self) -> str:
        """A key of CLOCKS."""
        if self.device == "cuda":
            return "events on the GPU"
        return "CPU time of the thread" if self.threads == 1 else "wall clock"

    def contender(self, name: str, shapes: Shapes) -> Contender:
        params, _, slots = self.dtype.partition(":")
        slot_dtype = getattr(torch, slots) if slots else None
        return Contender(
            name, shapes, dtype=getattr(torch, params), slot_dtype=slot_dtype, guard=self.guard, device=self.device
        )


@dataclass(frozen=True)
class Row:
    """One line of a table; None where it does not apply."""

    model: str
    dtype: str
    allocator: str
    contender: str
    guard: str = ""
    ratio: float | None = None  # step / mean of the reference's steps around it: median over the rounds, then quartiles
    low: float | None = None
    high: float | None = None
    ms: float | None = None  # medians
    reference_ms: float | None = None
    gb_per_s: float | None = None  # named bytes over the median step
    bytes_per_param: float | None = None  # named bytes: those a step reads and writes by the programs of its sweeps
    state_bytes_per_param: float | None = None
    first_step_s: float | None = None  # wall clock, compilation included
    error: str = ""

    def __str__(self) -> str:
        result = self.error or (f"{self.gb_per_s:.1f} GB/s" if self.ratio is None else f"{self.ratio:.2f}")
        malloc = "" if self.allocator == "default" else f", {self.allocator} malloc"
        return f"{self.model} {self.dtype}{malloc} {self.contender}: {result}"


def plan(
    methods: Sequence[str],
    models: Sequence[str],
    dtypes: Sequence[str],
    against: Sequence[str],
    *,
    guard: bool = True,
    rounds: int = 9,
    threads: int = 1,
    device: str = "cpu",
) -> list[Job]:
    """The jobs of a benchmark; without `methods`, of all. On a CPU peers come twice, the second time with tuned malloc.

    Raises StudyError.
    """
    specs = parse_methods(",".join(methods or ["sgd(momentum=0.9)", *(m for m in untuned.list() if m != "sgd")]))
    ours = [spec.label for spec in specs]
    for name, spec in zip(ours, specs, strict=True):
        if spec.lrs:
            raise StudyError(f"methods: {name}: the lr does not change the time of a step; leave it out")
    for option, names in (("model", models), ("dtype", dtypes)):
        if not names:
            raise StudyError(f"{option}: name at least one")
    for option, names, known in (("model", models, MODELS), ("against", against, PACKAGES)):
        for name in names:
            if name not in known:
                raise StudyError(f"{option}: there is no {name!r}; there are {', '.join(known)}")
    for package in against:
        try:
            import_module(PACKAGES[package])
        except Exception as error:  # a broken package raises what it likes
            raise StudyError(f"against: {package} cannot be imported ({error}); run: pip install {package}") from error
    for dtype in dtypes:
        if dtype.count(":") > 1 or not set(dtype.split(":")) <= set(DTYPES):
            raise StudyError(
                f"dtype: cannot read {dtype!r}; there are {', '.join(DTYPES)}; bfloat16:float32 sets slots"
            )
    if device not in ("cpu", "cuda"):
        raise StudyError(f"device: there is no {device!r}; there are cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise StudyError("device: cuda needs a GPU, and torch.cuda.is_available() is False on this machine")

    peers = [name for name in PEERS if name.partition(" ")[0] in against and name != REFERENCE]
    jobs = []
    for model in models:
        for dtype in dtypes:
            job = Job(model, dtype, (REFERENCE, *ours, *peers), "default", guard, rounds, threads, device)
            jobs.append(job)
            if peers and device == "cpu":
                jobs.append(replace(job, contenders=(REFERENCE, *peers), allocator="tuned"))
            for name in ours:
                try:
                    job.contender(name, [(1,)])
                except (TypeError, ValueError) as error:
                    raise StudyError(f"methods: {name} in {dtype}: {error}") from error
    return jobs


def run(jobs: Sequence[Job], table: Path, measured: Callable[[Job], Iterable[Row]]) -> Iterator[Row]:
    """Measure all jobs, as by `in_process`; every row is in the CSV file `table` before it is yielded."""
    with table.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for job in jobs:
            for row in measured(job):
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
                file.flush()
                yield row


def in_process(job: Job) -> Iterator[Row]:
    """The rows of a job as they come, from a process of its own."""
    environment = ALLOCATORS[job.allocator] | dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), job.threads)
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-W", "ignore", "-m", "untuned.study.bench", json.dumps(asdict(job))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Row(**json.loads(line))
    if process.returncode:
        raise StudyError(f"bench: the process for {job.model} in {job.dtype} ended with status {process.returncode}")


def measure(job: Job, shapes: Shapes, stopwatch: Stopwatch, stream: int = STREAM) -> Iterator[Row]:
    """Rows in the order in which they are measured, which is shuffled; `stream`: elements of the bandwidth's arrays."""
    yield from _bandwidth(job, stopwatch, stream)
    reference = job.contender(REFERENCE, shapes)
    _warm_up(reference)
    for contender in random.Random(0).sample(job.contenders, len(job.contenders)):
        try:
            row = _against(reference, contender, job, shapes, stopwatch)
        except Exception as error:  # what one package cannot do must not cost the rows of the others
            row = Row(job.model, job.dtype, job.allocator, contender, error=f"{type(error).__name__}: {error}")
        gc.collect()
        yield row


def ratios(times: Sequence[float]) -> np.ndarray:
    """Of times of reference, contender, reference, ..., reference: each contender's over the mean of its neighbours."""
    t = np.asarray(times)
    return 2 * t[1::2] / (t[:-1:2] + t[2::2])


def _bandwidth(job: Job, stopwatch: Stopwatch, elements: int) -> Iterator[Row]:
    a, b, c = (torch.ones(elements, device=job.device) for _ in range(3))
    for name, call in (
        ("stream a = b + s c", lambda: torch.add(b, c, alpha=0.5, out=a)),
        ("stream a += s b", lambda: a.add_(b, alpha=0.5)),
    ):
        seconds = float(np.median([stopwatch(call) for _ in range(job.rounds)]))
        gb_per_s = 3 * a.nbytes / seconds / 1e9
        yield Row(job.model, job.dtype, job.allocator, name, ms=1e3 * seconds, gb_per_s=gb_per_s)


def _against(reference: Contender, name: str, job: Job, shapes: Shapes, stopwatch: Stopwatch) -> Row:
    contender = job.contender(name, shapes)
    first_step = _warm_up(contender)
    times = []
    for turn in [*(reference, contender) * job.rounds, reference]:
        turn.turn_gradients()
        times.append(stopwatch(turn.step))
    low, ratio, high = np.percentile(ratios(times), [25, 50, 75]).tolist()
    reference_seconds, seconds = float(np.median(times[::2])), float(np.median(times[1::2]))
    named = contender.named_bytes()
    return Row(
        job.model,
        job.dtype,
        job.allocator,
        name,
        guard="" if name in PEERS else "on" if job.guard else "off",
        ratio=ratio,
        low=low,
        high=high,
        ms=1e3 * seconds,
        reference_ms=1e3 * reference_seconds,
        gb_per_s=named and named / seconds / 1e9,
        bytes_per_param=named and named / contender.size,
        state_bytes_per_param=contender.state_bytes() / contender.size,
        first_step_s=first_step,
    )


def _warm_up(contender: Contender) -> float:
    """Take steps with fresh gradients and return the seconds of the first: averages of zeros would be too fast."""
    seconds = []
    for _ in range(3):
        contender.draw_gradients()
        seconds.append(_wall(contender.step))
    return seconds[0]


def _wall(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _thread_time(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _events(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


CLOCKS: dict[str, Stopwatch] = {
    "events on the GPU": _events,
    "CPU time of the thread": _thread_time,
    "wall clock": _wall,
}


def _serve(job: Job) -> None:
    """Print the rows of a job as JSON, one a line."""
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what packages print is no row
    torch.set_num_threads(job.threads)
    for row in measure(job, MODELS[job.model], CLOCKS[job.clock]):
        print(json.dumps(asdict(row)), file=rows, flush=True)


if __name__ == "__main__":
    _serve(Job(**json.loads(sys.argv[1])))
