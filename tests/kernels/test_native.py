"""Kernels agree with the reference for every method and dtype, whatever the tensors look like."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import untuned
from untuned.directions import TAM, AdaGrad, Adam, Gradient, Momentum, RMSProp
from untuned.iterates import Mechanic, Plain, RandomPoint, ScheduleFree
from untuned.kernels import native
from untuned.parts import StepSize, hyper, number
from untuned.recipe.trace import TraceFrame, body, trace
from untuned.step_sizes import Fixed, MoMo, Prodigy
from untuned.weight_decay import Anchored, Cautious, Coupled, Decoupled, Proximal

pytest.importorskip("numba")

OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.02, "weight_decay": 0.01},
    "adamw": {"lr": 0.02},
    "adatam": {"lr": 0.002, "weight_decay": 0.01},
    "adatamw": {"lr": 0.002},
    "dadapt_adam": {"d0": 1e-3, "weight_decay": 0.01, "use_bias_correction": True},
    "mechanic_adamw": {"lr": 0.1, "s_init": 0.1, "weight_decay": 0.1},
    "mechanic_sgd": {"lr": 0.1, "s_init": 0.1},
    "momo": {"weight_decay": 0.01, "use_fstar": True, "lb": -1.0},
    "momo_adam": {"lr": 0.1, "weight_decay": 0.01, "divide": False},
    "prodigy": {"d0": 1e-3, "weight_decay": 0.1, "safeguard_warmup": True},
    "schedule_free_adamw": {"lr": 0.02, "weight_decay": 0.1, "warmup_steps": 3, "r": 0.5},
    "schedule_free_sgd": {"lr": 0.2, "weight_decay": 0.01},
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "tam": {"lr": 0.05, "weight_decay": 0.01},
    "sps": {"lr": 0.1, "weight_decay": 0.01},
    "dec_sps": {"lr": 0.1},
    "prox_sps": {"lr": 0.1, "weight_decay": 0.01},
    "sp": {"lr": 0.1, "weight_decay": 0.01},
    "alig": {"lr": 0.1},
    "taps": {"samples": 7, "lr": 0.1, "weight_decay": 0.01},
    "motaps": {"samples": 7, "lr": 0.1, "target_lr": 0.5, "momentum": 0.5},
    "dadapt_sgd": {"d0": 1e-2, "momentum": 0.5, "weight_decay": 0.01},
    "dadapt_adagrad": {"d0": 1e-2, "momentum": 0.5},
    "dadapt_lion": {"d0": 1e-3, "weight_decay": 0.01},
    "dadapt_adan": {"d0": 1e-3, "growth_rate": 1.1},
    "dadapt_da": {"d0": 0.1, "weight_decay": 0.01},
    "dadapt_gd": {"d0": 0.1, "G": 0.1},
    "prodigy_da": {"d0": 0.1, "weight_decay": 0.01},
    "prodigy_gd": {"d0": 0.1, "G": 0.1},
    "resetting": {"d0": 0.1, "weight_decay": 0.01},
    "resetting_gd": {"d0": 0.1},
    "dog": {"reps_rel": 1e-3, "weight_decay": 0.01},
    "ldog": {"reps_rel": 1e-3},
    "dowg": {"eps": 1e-2},
    "gradagrad": {"lr": 0.1, "momentum": 0.5},
    "gradagrad_diagonal": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.01},
    "madgrad": {"lr": 0.02, "weight_decay": 0.01, "decouple_decay": True},
    "mirror_madgrad": {"lr": 0.02, "weight_decay": 0.01, "decouple_decay": True},
    "adarem": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01},
    "multiplicative_sgd": {"lr": 0.2, "momentum": 0.5, "weight_decay": 0.01, "mix": 0.3, "additive": 2.0},
    "multiplicative_adam": {"lr": 0.05, "weight_decay": 0.01, "rule": "power"},
    "mda": {"lr": 0.1, "weight_decay": 0.01},
    "ahb_adam": {"lr": 0.02, "weight_decay": 0.1},
    "ahb_sgd": {"lr": 0.05, "weight_decay": 0.01},
    "am_msgd": {"lr": 0.05, "weight_decay": 0.01},
    "sgd_spa": {"lr": 0.2, "weight_decay": 0.01},
    "sgdf": {"lr": 0.1, "weight_decay": 0.01},
    "sngm": {"lr": 0.5, "weight_decay": 0.01},
    "gpa_adamw": {"lr": 0.02, "weight_decay": 0.1, "keep": 0.8},
    "ngn": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01},
    "ormo": {"lr": 0.05, "num_workers": 3, "delay_cap": 2.0, "weight_decay": 0.01},
    "prodigy_schedule_free": {"d0": 1e-3, "weight_decay": 0.1, "r": 0.5},
    "random_scaling_adamw": {"lr": 0.02, "seed": 3},
    "random_scaling_sgd": {"lr": 0.1, "weight_decay": 0.01},
    "relative_muon": {"lr": 0.05, "weight_decay": 0.1},
}
COMPOSED = {
    "momo x schedule-free": lambda: (Adam(), MoMo(0.1), ScheduleFree(), Proximal(0.01)),
    "prodigy x momentum": lambda: (Momentum(0.9, 0.5), Prodigy(d0=0.05), None, None),
    "mechanic x tam": lambda: (TAM(scope="group"), Fixed(0.1), Mechanic(s_init=0.1), None),
    "mechanic x momo": lambda: (Gradient(), MoMo(1.0), Mechanic(s_init=0.01), None),
    "adam x random point x cautious": lambda: (Adam(), Fixed(0.02), RandomPoint(3), Cautious(0.5)),
    "adam x anchored": lambda: (Adam(), Fixed(0.02), None, Anchored()),
}
ALL = [*untuned.list(), *COMPOSED]


def build(name: str, params: Any, **engine: Any) -> untuned.Optimizer:
    if name in COMPOSED:
        return untuned.compose(params, *COMPOSED[name](), **engine)
    return untuned.create(params, name, **OPTIONS[name], **engine)


def start(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (5, 3),
        (40_000,),
        (),
        (2, 3, 4, 4),
        (0, 3),
    ]  # more than two chunks (conftest.py), a scalar, channels last, nothing
    values = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    values[3] = values[3].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(v) for v in values]


def run(name: str, dtype: torch.dtype, steps: int, **engine: Any) -> tuple[list[torch.Tensor], untuned.Optimizer]:
    """Steps on noisy gradients that do not depend on the path, so that differences show and are not amplified."""
    params = start(dtype)
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = build(name, groups, **engine)
    optimizer.param_groups[1]["lr"] /= 2
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            p.grad = (p.detach() + 0.3 * noise).contiguous(
                memory_format=torch.channels_last if p.dim() == 4 else torch.contiguous_format
            )
        loss = sum(p.detach().double().square().sum() for p in params) / 2
        optimizer.step(loss=loss, sample_ids=[0, 5, 2, 2])
    return [p.detach() for p in params], optimizer


def difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    largest = max(float(q.abs().max()) for q in b if q.numel())
    return max(float((p.double() - q.double()).abs().max()) for p, q in zip(a, b, strict=True) if p.numel()) / largest


@pytest.mark.parametrize("name", ALL)
def test_float32_kernel_equals_reference(name: str) -> None:
    ours, optimizer = run(name, torch.float32, 3, execution="native")
    reference, _ = run(name, torch.float32, 3, execution="reference")
    assert difference(ours, reference) < 1e-6
    assert difference(ours, [p.detach() for p in start(torch.float32)]) > 1e-5  # something moved
    assert len(optimizer._launch.batches) == len(optimizer._launch.stages)  # one, or one for each label
    [(bucket, place)] = optimizer._launch.rest  # only the empty tensor went the reference way
    assert optimizer._launch.arranged[1][bucket].params[place].shape == (0, 3)


@pytest.mark.parametrize(
    "name", [name if i % 2 else pytest.param(name, marks=pytest.mark.processors) for i, name in enumerate(ALL)]
)
def test_float64_kernel_equals_reference(name: str) -> None:
    ours, _ = run(name, torch.float64, 20, execution="native")
    reference, _ = run(name, torch.float64, 20, execution="reference")
    assert difference(ours, reference) < 1e-10


# Every method in one of the two; the other differs from it in the loads and stores of slots alone.
BFLOAT16 = [(name, slots) for name, slots in zip(ALL, itertools.cycle([None, torch.bfloat16]), strict=False)]
OTHERWISE = [(name, torch.bfloat16 if slots is None else None) for name, slots in BFLOAT16]


@pytest.mark.parametrize(
    ("name", "slot_dtype"), [*BFLOAT16, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERWISE)]
)
def test_bfloat16_kernel_equals_reference(name: str, slot_dtype: torch.dtype | None) -> None:
    ours, optimizer = run(name, torch.bfloat16, 3, execution="native", slot_dtype=slot_dtype)
    reference, _ = run(name, torch.bfloat16, 3, execution="reference", slot_dtype=slot_dtype)
    # The same float32 arithmetic up to its rounding may fall on either side of a bfloat16 rounding boundary: one unit
    # in the last place of some element, which the next steps carry on.
    assert difference(ours, reference) < 2**-7
    apart = sum(int((p != q).sum()) for p, q in zip(ours, reference, strict=True))
    assert apart < 0.02 * sum(p.numel() for p in ours)
    held = {v.dtype for s in optimizer.state.values() for k, v in s.items() if v.dim() and k != "delta"}
    assert held <= {slot_dtype or torch.float32}


@pytest.mark.parametrize(
    "name",
    ["prodigy", "tam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("momo_adam", "mechanic_adamw"))],
)
def test_threads_do_not_change_the_result(name: str) -> None:
    one, _ = run(name, torch.float32, 5, execution="native")
    torch.set_num_threads(2)
    try:
        two, _ = run(name, torch.float32, 5, execution="native")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_what_kernels_cannot_take_goes_the_reference_way_in_the_same_step() -> None:
    strange = {
        "transposed": torch.randn(4, 6).t(),
        "strided": torch.randn(8, 6)[::2],
        "half": torch.randn(7).half(),
        "plain": torch.randn(5, 5),
    }
    results = []
    for execution in ("native", "reference"):
        params = [torch.nn.Parameter(v.clone(memory_format=torch.preserve_format)) for v in strange.values()]
        params[1] = torch.nn.Parameter(torch.zeros(8, 6)[::2].copy_(strange["strided"]))
        assert params[1].stride() == (12, 1)
        optimizer = untuned.MoMoAdam(params, lr=0.1, execution=execution)
        for _ in range(3):
            for p in params:
                p.grad = p.detach() * 2
            optimizer.step(loss=sum(p.detach().double().square().sum() for p in params))
        results.append([p.detach() for p in params])
        if execution == "native":
            assert "native execution, 3 tensors by the reference" in repr(optimizer)
            assert len(optimizer._launch.rest) == 3
            assert len(optimizer._launch.batches) == 1
    assert difference(*results) < 1e-6


def test_nothing_is_compiled_again_when_values_change(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.nn.Parameter(torch.ones(10))
    optimizer = untuned.MoMoAdam([p], lr=0.1, weight_decay=0.1, execution="native")

    def step(loss: float) -> None:
        p.grad = torch.full_like(p, loss)
        optimizer.step(loss=loss)

    step(1.0)
    monkeypatch.setattr(native, "compile_source", lambda source: pytest.fail("compiled again"))
    calls = [call for batch in optimizer._launch.batches for call in batch.calls.values() if call]
    for i in range(1, 20):
        optimizer.param_groups[0].update(lr=0.1 / (i + 1), weight_decay=0.01 * i, eps=1e-8 * (i + 1))
        step(float(i))
    assert [call for batch in optimizer._launch.batches for call in batch.calls.values() if call] == calls
    assert [len(call.function.signatures) for call in calls] == [1, 1, 1]


# Bytes per float32 parameter of all sweeps of a step, without the guard's 4. Mechanic could do with 44 if it kept the
# starting point, at 4 bytes of memory and no gain in time, since p would be fetched before it is overwritten.
BYTES = {
    "sgd(momentum)": 20,
    "adam": 28,
    "adamw": 28,
    "schedule_free_adamw": 28,
    "madgrad": 32,
    "dadapt_sgd": 24,
    "dadapt_adam": 36,
    "dadapt_lion": 28,
    "prodigy": 40,
    "momo": 28,
    "momo_adam": 40,
    "mechanic_adamw": 48,
    "tam": 28,
    "adatam": 36,
    "sp": 16,
    "sps": 16,
    "ahb_adam": 40,
    "ahb_sgd": 32,
    "am_msgd": 28,
    "sgdf": 28,
    "adarem": 24,
    "multiplicative_sgd": 12,
    "multiplicative_sgd(momentum)": 20,
    "multiplicative_adam": 28,
    "sngm": 24,
    "gpa_adamw": 36,
    "ngn": 16,
    "ormo": 20,
    "prodigy_schedule_free": 52,
    "random_scaling_adamw": 28,
    "random_scaling_sgd": 20,
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_per_parameter(name: str) -> None:
    options = {"momentum": 0.9} if "(" in name else {}
    optimizer = untuned.create([torch.nn.Parameter(torch.ones(3))], name.partition("(")[0], weight_decay=0.0, **options)
    assert 4 * streams(optimizer, {"weight_decay"}) == BYTES[name]


def streams(optimizer: untuned.Optimizer, zeros: set[str]) -> int:
    """Tensors that the kernels of a step read and write, without corrections that most steps do not need."""
    stages = [stage for stage in optimizer._launch.stages[None][1:] if stage.only_changed is None]
    programs = [stage.program(frozenset(zeros)) for stage in stages]
    return sum(len(keys) for program in programs for keys in program.streams())


def test_weight_decay_costs_a_read_where_it_enters_the_gradient() -> None:
    optimizer = untuned.TAM([torch.nn.Parameter(torch.ones(3))])
    assert [streams(optimizer, zeros) for zeros in ({"weight_decay"}, set())] == [7, 8]


def test_slots_replaced_by_the_user_are_found_again() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = untuned.AdamW([p], lr=0.1, execution="native")
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.full((3,), 100.0)
    twin = copy.deepcopy(optimizer)
    twin._launch.execution = "reference"
    twin._prepare()
    q = twin.param_groups[0]["params"][0]
    q.grad = torch.ones(3)
    optimizer.step()
    twin.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=0)
    assert float(p.detach().min()) < -1


def test_in_place_writes_are_seen_by_autograd() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = untuned.SGD([p], lr=0.1, execution="native")
    loss = (p**3).sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Branching(StepSize):
    """A step size that breaks the rules of a body."""

    lr: float = hyper(default=1.0, within="[0, inf)")

    def size(self, x: Any) -> tuple[Any, Any]:
        return (x.lr if x.t > 10 else 0.0), x.lr


class Foreign(StepSize):
    """A step size that uses a function of torch in its body."""

    lr: float = hyper(default=1.0, within="[0, inf)")

    def size(self, x: Any) -> tuple[Any, Any]:
        return torch.sin(x.lr), x.lr


@pytest.mark.parametrize("rule", [Branching, Foreign])
def test_bodies_that_cannot_be_traced_are_refused_at_construction(rule: type[StepSize]) -> None:
    with pytest.raises(TypeError, match=rf"{rule.__name__} x .*'size' of {rule.__name__} is not elementwise"):
        untuned.compose([torch.nn.Parameter(torch.ones(3))], step_size=rule())


def test_common_subexpressions_are_shared_and_scalars_hoisted() -> None:
    optimizer = untuned.AdamW([torch.nn.Parameter(torch.ones(3))])
    verbs = [("direction", "accumulate"), ("iterate", "move")]
    program = trace(TraceFrame(optimizer.recipe, optimizer.parts), body(verbs))
    types = dict.fromkeys(("p", "g", "exp_avg", "exp_avg_sq"), "float32")
    source = native.NumbaWriter(program, types, []).source
    loop = source[source.index("for i in range(n):") :]
    assert "**" not in loop  # beta2 ** t is computed once per chunk
    assert loop.count("sqrt(") == 1
    assert loop.count(" / ") <= 2


def test_without_numba_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("untuned.run.launch.native_available", False)
    p = torch.nn.Parameter(torch.ones(3))
    assert "reference execution" in repr(untuned.AdamW([p]))
    with pytest.raises(ValueError, match=r"needs numba: pip install 'untuned\[kernels\]'"):
        untuned.AdamW([p], execution="native")


class DecayByTheNewNumber(StepSize):
    """The step uses a number from before its decision, the weight decay the one from after it."""

    lr: float = hyper(default=0.1, within="[0, inf)")
    d = number(1.0)

    def measure(self, x: Any) -> Any:
        return x.g * x.g

    def decide(self, c: Any, gg: Any) -> None:
        c.d = c.d + gg

    def size(self, x: Any) -> tuple[Any, Any]:
        return x.lr * x.was_d, x.lr * x.d


def test_a_move_whose_weight_decay_waits_for_the_decision_waits_too() -> None:
    for execution in ("native", "reference"):
        w = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
        parts = (Gradient(), DecayByTheNewNumber(), Plain(), Decoupled(0.5))
        optimizer = untuned.compose([w], *parts, execution=execution)
        expected, d = 1.0, 1.0
        for _ in range(3):
            w.grad = torch.full_like(w, 0.5)
            optimizer.step()
            before, d = d, d + 4 * 0.25
            expected -= 0.1 * before * 0.5 + 0.1 * d * 0.5 * expected
        assert w[0].item() == pytest.approx(expected, rel=1e-12)


def rms_prop() -> RMSProp:
    return RMSProp(eps=0.3)


def adam() -> Adam:
    return Adam(eps=0.3)


CORRECTED = [(rms_prop, Coupled), (AdaGrad, Decoupled), (adam, Proximal)]  # each direction and each decay once
ALL_CORRECTED = itertools.product([rms_prop, AdaGrad, adam], [Coupled, Decoupled, Proximal])


@pytest.mark.parametrize(
    ("direction", "decay"),
    [pair if pair in CORRECTED else pytest.param(*pair, marks=pytest.mark.slow) for pair in ALL_CORRECTED],
)
def test_a_correction_is_that_of_the_reference(direction: Any, decay: Any) -> None:
    results = []
    for execution in ("native", "reference"):
        w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = untuned.compose(
            [w], direction(), Prodigy(d0=0.01), Plain(), decay(weight_decay=0.3), execution=execution
        )
        for _ in range(8):
            w.grad = w.detach() - 3
            optimizer.step()
        results.append(w.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_a_layout_met_in_a_step_that_failed_is_not_taken_for_known() -> None:
    a, b = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = untuned.SGD([a, b], lr=1.0, execution="native")
    a.grad, b.grad = torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    a.grad = torch.arange(6.0).reshape(3, 2).t()
    b.grad = b.grad.to_sparse()
    with pytest.raises(TypeError, match="gradients must be dense"):
        optimizer.step()
    b.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    assert a.tolist() == [[0.0, -2.0, -4.0], [-1.0, -3.0, -5.0]]


def test_memory_beyond_a_parameter_that_shrank_stays() -> None:
    p = torch.nn.Parameter(torch.zeros(50))
    optimizer = untuned.SGD([p], lr=1.0, execution="native")
    p.grad = torch.ones(50)
    optimizer.step()
    for big in (torch.zeros(50), p.data):  # other memory, and the same
        p.data = big[:20]
        p.grad = None
        p.grad = torch.ones(20)
        optimizer.state[p].clear()
        optimizer.step()
        assert big[:20].tolist() == [float(big[0])] * 20
        before = big[20:].clone()
        p.grad = torch.ones(20)
        optimizer.step()
        assert torch.equal(big[20:], before)


def test_a_slot_whose_memory_is_of_another_dtype_is_taken_as_declared() -> None:
    p, q = (torch.nn.Parameter(torch.ones(50)) for _ in range(2))
    ours, twin = (untuned.Adam([w], lr=0.1, execution=e) for w, e in ((p, "native"), (q, "reference")))
    for _ in range(3):
        for w, optimizer in ((p, ours), (q, twin)):
            w.grad = w.detach() * 2
            optimizer.step()
            held = optimizer.state[w]["exp_avg"]
            held.data = held.data.bfloat16()
    torch.testing.assert_close(p, q, rtol=1e-3, atol=0)


def test_repr_says_what_ran() -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = untuned.SGD([p], lr=0.1)
    assert "native execution" in repr(optimizer)  # what is meant to
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert "reference execution" in repr(optimizer)


def test_lr_may_be_a_tensor_of_bfloat16() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = untuned.SGD([p], lr=torch.tensor(0.5, dtype=torch.bfloat16), execution="native")
    p.grad = torch.ones(3)
    optimizer.step()
    assert p.tolist() == [0.5] * 3


def test_cube_roots_are_those_of_float64() -> None:
    from numba import njit

    from untuned.kernels.pointers import cbrt

    @njit
    def roots(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = cbrt(x[i])

    x = np.exp(np.linspace(np.log(1e-36), np.log(1e38), 200_001)).astype(np.float32)
    out = np.empty_like(x)
    roots(x, out)
    assert np.abs(out / np.cbrt(x.astype(np.float64)) - 1).max() < 6e-7
    ends = np.array([0.0, np.inf, np.nan], dtype=np.float32)
    roots(ends, ends)
    assert ends[:2].tolist() == [0.0, np.inf]
    assert np.isnan(ends[2])


def test_a_slot_whose_elements_lie_in_another_order_is_seen() -> None:
    found = []
    for execution in ("native", "reference"):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(4, 4))
        optimizer = untuned.Adam([p], lr=0.1, execution=execution)
        for k in range(4):
            p.grad = torch.sin(p.detach() + k)
            if k == 2:
                held = optimizer.state[p]["exp_avg"]
                held.data = held.data.t().contiguous().t()
            optimizer.step()
        found.append([p.detach()])
    assert difference(*found) < 1e-6
