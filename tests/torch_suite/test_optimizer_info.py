"""torch's generic optimizer checks for every method, on entries like those of torch's own test database.

The wheel has the database (`OptimizerInfo`, `OptimizerInput`, the inputs that must fail, the schedulers each class is
paired with) but not test_optim.py, so its generic checks are written anew here. torch's SGD and AdamW pass the same
checks: what is demanded of a method is what torch demands of its own.

What of test_optim.py does not apply: `foreach`, `fused`, `capturable` and `differentiable` (refused, see below), the
peak memory of foreach, several devices (they need accelerators), and dynamo (the step is not traced).
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import untuned
from untuned import registry

database = pytest.importorskip("torch.testing._internal.common_optimizers", reason="needs expecttest")

Run = Callable[[], Tensor]  # a closure

SAMPLES = 4


class _EverySample(untuned.Optimizer):
    """The checks know no samples: every batch holds all of them. A step of its own would run the hooks twice."""

    def _prepare(self) -> None:
        super()._prepare()
        ids = self._inputs._ids
        self._inputs._ids = lambda sample_ids, device: ids(range(SAMPLES), device)


class TAPS(untuned.TAPS, _EverySample):
    pass


class MOTAPS(untuned.MOTAPS, _EverySample):
    pass


REPLACED = {"taps": TAPS, "motaps": MOTAPS}


def inputs_of(name: str) -> Callable[..., list[Any]]:
    """What the database lists for every class: each common option alone, and two together."""

    def inputs(device: Any, dtype: Any = None) -> list[Any]:
        lr = registry.get(name).lr
        chosen = {
            "default": {},
            "non-default lr": {"lr": lr / 2},
            "tensor lr": {"lr": torch.tensor(lr)},
            "nonzero weight_decay": {"weight_decay": 0.01},
            "maximize": {"maximize": True},
            "maximize, weight_decay": {"maximize": True, "weight_decay": 0.01},
        }
        common = {"execution": "reference"} | ({"samples": SAMPLES} if registry.get(name).records_samples else {})
        return [database.OptimizerInput(None, common | options, desc) for desc, options in chosen.items()]

    return inputs


def theirs(cls: type[torch.optim.Optimizer]) -> Any:
    return next(info for info in database.optim_db if info.optim_cls is cls)


SCHEDULERS = theirs(torch.optim.SGD).scheduler_inputs  # the longest list: every class of schedulers the database has

OURS = {
    name: database.OptimizerInfo(
        REPLACED.get(name, registry.get(name).optimizer),
        optim_inputs_func=inputs_of(name),
        optim_error_inputs_func=database.get_error_inputs_for_all_optims,
        scheduler_inputs=SCHEDULERS,
        supported_impls=(),  # execution= says how a step runs
        supports_complex=False,  # a norm or an inner product would need a choice per method; view_as_real makes it
    )
    for name in untuned.list()
}
CONTROLS = {f"torch {cls.__name__}": theirs(cls) for cls in (torch.optim.SGD, torch.optim.AdamW)}
INFOS = OURS | CONTROLS

every = pytest.mark.parametrize("name", INFOS)
ours = pytest.mark.parametrize("name", OURS)


def inputs(name: str) -> list[Any]:
    return INFOS[name].optim_inputs_func(device="cpu")


def built(name: str, params: Any, **options: Any) -> torch.optim.Optimizer:
    return INFOS[name].optim_cls(params, **inputs(name)[0].kwargs | options)


AVERAGING = ("gpa_adamw", "prodigy_schedule_free", "schedule_free_adamw", "schedule_free_sgd")
LOSS_DRIVEN = [
    name
    for name in OURS
    if any("loss" in part.needs for part in built(name, [nn.Parameter(torch.ones(1))]).parts.values())
]


def fixed(*shape: int, dtype: torch.dtype = torch.float64, shift: int = 0) -> Tensor:
    """Numbers between -0.9 and 0.9 without a pattern that a method could feel."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) + shift) * 37 % 19 - 9).to(torch.float64) / 10).to(dtype).reshape(shape)


def problem(dtype: torch.dtype = torch.float64, contiguous: bool = True) -> tuple[list[nn.Parameter], Tensor]:
    """A weight and a bias of torch's problem, |W x + b|^2 / 6, and its x."""
    weight, bias = fixed(6, 3, 2, dtype=dtype), fixed(6, 2, dtype=dtype, shift=5)
    tensors = (weight[..., 0], bias[..., 0])
    params = [nn.Parameter(t.clone() if contiguous else t) for t in tensors]
    assert all(p.is_contiguous() == contiguous for p in params)
    return params, fixed(3, dtype=dtype, shift=11)


def closure_of(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], x: Tensor, sign: float = 1.0) -> Run:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sign * (params[0].mv(x) + params[1]).square().mean()
        loss.backward()
        return loss

    return closure


def begun(name: str, steps: int = 3, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, list[Any], Run]:
    """An optimizer that has taken some steps, its parameters and its closure."""
    params, x = problem(dtype)
    optimizer = built(name, [{"params": [params[0]]}, {"params": [params[1]]}], **options)
    closure = closure_of(optimizer, params, x)
    for _ in range(steps):
        optimizer.step(closure)
    return optimizer, params, closure


def like(name: str, params: list[Any], **options: Any) -> tuple[Any, list[Any], Run]:
    """A second optimizer over copies of these parameters."""
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = built(name, [{"params": [copies[0]]}, {"params": [copies[1]]}], **options)
    return optimizer, copies, closure_of(optimizer, copies, problem(params[0].dtype)[1])


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def equal(one: Any, other: Any) -> bool:
    """Whether two state dicts hold the same, bit by bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def go_on_alike(one: tuple[Any, list[Any], Run], other: tuple[Any, list[Any], Run]) -> None:
    """Three more steps of both, which must agree in every bit and move."""
    before = [p.detach().clone() for p in one[1]]
    for _ in range(3):
        assert torch.equal(one[0].step(one[2]), other[0].step(other[2]))
    assert all(torch.equal(p, q) for p, q in zip(one[1], other[1], strict=True))
    assert all(not torch.equal(p, q) for p, q in zip(one[1], before, strict=True))


# ---------------------------------------------------------------- the database


def test_every_method_has_an_entry() -> None:
    assert len(OURS) == len(untuned.list()) >= 40
    assert {"momo", "momo_adam", "sps", "taps", "motaps", "alig"} <= {*LOSS_DRIVEN}
    assert len(SCHEDULERS) == 7


@ours
def test_options_of_torch_kernels_are_taken_if_they_change_nothing(name: str) -> None:
    """Exception: no step is differentiable."""
    for flag in ("foreach", "fused", "capturable"):
        assert flag not in built(name, problem()[0], **{flag: True}).param_groups[0]
    with pytest.raises(ValueError, match="differentiable is always False here, not True"):
        built(name, problem()[0], differentiable=True)


WORDS = {  # our sentence for each input that must fail; torch only warns of a parameter that is twice in one group
    "invalid param type": (TypeError, "params must be a list or an iterator of tensors"),
    "a param group cannot have duplicate parameters": (ValueError, r"of shape \(1, 1\) was given twice"),
    "duplicate parameters should not occur across param groups either": (ValueError, "was given twice"),
    "Tensor lr must be 1-element": (ValueError, "lr must be a number or a one-element tensor"),
    "all optimizer params should be with/without names": (ValueError, "with/without names"),
    "all optimizer param groups should be with/without names.": (ValueError, "with/without names"),
}


@ours
def test_errors(name: str) -> None:
    info = OURS[name]
    failing = [entry.optimizer_error_input for entry in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)]
    assert {entry.desc for entry in failing} == WORDS.keys()
    for entry in failing:
        error, sentence = WORDS[entry.desc]
        with pytest.raises(error, match=sentence):
            built(name, entry.params or problem()[0], **entry.kwargs)


@ours
def test_complex_and_sparse_are_refused_with_a_reason(name: str) -> None:
    """Exceptions: supports_complex and supports_sparse are False for every method."""
    with pytest.raises(TypeError, match=r"must be float64, 32, 16 or bfloat16, not torch\.complex64"):
        built(name, [nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    p = nn.Parameter(torch.ones(3))
    optimizer = built(name, [p])
    p.grad = torch.tensor([0.0, 1.0, 0.0]).to_sparse()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(TypeError, match="gradients must be dense"):
        optimizer.step(lambda: torch.tensor(1.0))
    assert equal(before, optimizer.state_dict()) and p.tolist() == [1.0, 1.0, 1.0]


# ---------------------------------------------------------------- steps


@every
@pytest.mark.parametrize("contiguous", [True, False])
def test_every_input_goes_in_the_right_direction(name: str, contiguous: bool) -> None:
    for entry in inputs(name) if contiguous else inputs(name)[:1]:
        params, x = problem(contiguous=contiguous)
        optimizer = INFOS[name].optim_cls(params, **copy.deepcopy(entry.kwargs))
        sign = -1.0 if entry.kwargs.get("maximize") else 1.0
        closure = closure_of(optimizer, params, x, sign=sign if name in LOSS_DRIVEN else 1.0)
        assert str(len(params[0])) in repr(optimizer) or "lr" in repr(optimizer)
        first = closure().item()
        for _ in range(10):
            optimizer.step(closure)
        maximize = entry.kwargs.get("maximize", False)
        assert closure().item() > first if maximize else closure().item() < first, entry.desc


@every
def test_schedulers_change_the_lr_of_the_step(name: str) -> None:
    """With each set of schedulers of the database; the same lr written by hand gives the same bits."""
    rates: set[tuple[float, ...]] = set()
    for makers in SCHEDULERS:
        optimizer, params, closure = begun(name, 0)
        written, copies, same = like(name, params)
        schedulers = [make(optimizer) for make in makers]
        losses, used = [], []
        for _ in range(12):
            used.append(float(optimizer.param_groups[0]["lr"]))
            for group, own in zip(written.param_groups, optimizer.param_groups, strict=True):
                group["lr"] = own["lr"]
            loss = optimizer.step(closure).detach()
            written.step(same)
            for scheduler in schedulers:
                scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
            losses.append(loss.item())
        assert min(losses) < losses[0]  # one that starts over may be back at the start in the end
        assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))
        rates.add(tuple(used))
    assert len(rates) == 6 and all(len({*used}) > 1 for used in rates)  # two lists agree in their first steps


@every
def test_a_group_has_its_own_lr_and_weight_decay(name: str) -> None:
    """torch's test_param_groups_lr and _weight_decay: a group nobody uses rests, lr 0 rests, the others go downhill."""
    params, x = problem()
    rest = nn.Parameter(fixed(3))
    optimizer = built(
        name,
        [
            {"params": [params[0]], "weight_decay": 0.0},
            {"params": [params[1]], "lr": 0.0},
            {"params": [rest], "lr": 0.5},
        ],
        weight_decay=0.01,
    )
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.01, 0.01]
    closure = closure_of(optimizer, params, x)
    first, bias = closure().item(), params[1].detach().clone()
    for _ in range(10):
        optimizer.step(closure)
    assert closure().item() < first
    assert torch.equal(params[1], bias) and torch.equal(rest, fixed(3))


@every
def test_tensor_lr(name: str) -> None:
    """The same as a number, to rounding; the tensor is read, not replaced."""
    lr = float(begun(name, 0)[0].param_groups[0]["lr"])
    for given in (torch.tensor(lr, dtype=torch.float64), torch.tensor([lr], dtype=torch.float64)):
        optimizer, params, _ = begun(name, 10, lr=given)
        _, expected, _ = begun(name, 10, lr=lr)
        assert all(group["lr"] is given for group in optimizer.param_groups) and given.item() == lr
        for p, q in zip(params, expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


@every
def test_step_is_noop_when_params_have_no_grad(name: str) -> None:
    for entry in inputs(name):
        params, _ = problem()
        optimizer = INFOS[name].optim_cls(params, **copy.deepcopy(entry.kwargs))
        before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        assert equal(state, optimizer.state_dict())


@every
def test_step_is_noop_for_zero_grads(name: str) -> None:
    """Without weight decay, as in torch; an estimate of a distance does not grow on nothing.

    Exception: averaging writes (1 - beta) z + beta x, which for z = x is x to half a unit in the last place.
    """
    for entry in inputs(name):
        if "weight_decay" in entry.kwargs or "weight_decay" not in built(name, problem()[0]).defaults:
            continue
        params, _ = problem()
        options = copy.deepcopy(entry.kwargs) | {"weight_decay": 0.0}
        optimizer = INFOS[name].optim_cls(params, **options)
        before = [p.detach().clone() for p in params]
        for _ in range(3):
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step(lambda: torch.tensor(1.0))
        ulp = 2.0**-53 if name in AVERAGING else 0.0
        assert all((p - q).abs().max() <= ulp for p, q in zip(params, before, strict=True)), entry.desc
        assert "d" not in optimizer.param_groups[0] or optimizer.param_groups[0]["d"] == optimizer.param_groups[0]["d0"]


@every
def test_maximize_is_minimising_the_negative(name: str) -> None:
    """Bitwise: a sign changes no rounding. Our loss-driven methods are told the loss that is maximised."""
    params, x = problem()
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    down, up = built(name, params, weight_decay=0.01), built(name, copies, weight_decay=0.01, maximize=True)
    for _ in range(6):
        down.step(closure_of(down, params, x))
        up.step(closure_of(up, copies, x, sign=-1.0))
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))
    assert not torch.equal(params[0], problem()[0][0])


@every
def test_grads_are_never_inplaced_into(name: str) -> None:
    for entry in inputs(name):
        params, x = problem()
        optimizer = INFOS[name].optim_cls(params, **copy.deepcopy(entry.kwargs))
        for _ in range(2):
            loss = closure_of(optimizer, params, x)()
            grads = [p.grad for p in params]
            values, versions = [g.clone() for g in grads], [g._version for g in grads]
            optimizer.step(lambda: loss)  # noqa: B023
            for p, grad, value, version in zip(params, grads, values, versions, strict=True):
                assert p.grad is grad and grad._version == version and torch.equal(grad, value)


@every
def test_mixed_dtypes_in_one_optimizer(name: str) -> None:
    """Each keeps its dtype and moves like the one of float64, as far as the units of its last place allow."""
    dtypes = {torch.float64: 0.0, torch.float32: 5 * 2.0**-25, torch.bfloat16: 5 * 2.0**-9}  # five roundings near 0.5
    params = [nn.Parameter(torch.full((4,), 0.5, dtype=dtype)) for dtype in dtypes]
    optimizer = built(name, params, **({"kahan_sum": True} if name in OURS else {}))
    for _ in range(5):
        for p in params:
            p.grad = p.detach().clone()
        optimizer.step(lambda: torch.stack([p.detach().double().square().sum() / 2 for p in params]).sum())
    moved = [(p.detach().double() - 0.5).mean().item() for p in params]
    assert [p.dtype for p in params] == [*dtypes]
    assert moved[0] < 0
    for found, rounding in zip(moved, dtypes.values(), strict=True):
        assert found == pytest.approx(moved[0], rel=0.002, abs=rounding)  # distances of the first steps are rounded too


@every
@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_dtype_does_not_matter(name: str, default: torch.dtype) -> None:
    optimizer, params, _ = begun(name, 3, torch.float32)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        other, copies, _ = begun(name, 3, torch.float32)
    finally:
        torch.set_default_dtype(kept)
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))
    if name in OURS:  # torch's counters follow the default dtype
        assert equal(optimizer.state_dict(), other.state_dict())


@every
def test_zero_grad(name: str) -> None:
    optimizer, params, closure = begun(name)
    closure()
    grads = [p.grad for p in params]
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is g and not g.any() for p, g in zip(params, grads, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@every
def test_a_closure_runs_once_with_gradients_enabled(name: str) -> None:
    optimizer, _, closure = begun(name)
    modes: list[bool] = []

    def watched() -> Tensor:
        modes.append(torch.is_grad_enabled())
        return closure()

    with torch.no_grad():
        loss = optimizer.step(watched)
    assert modes == [True] and loss.requires_grad and loss.item() > 0


@every
def test_the_profiler_sees_the_step(name: str) -> None:
    optimizer, _, closure = begun(name, 1)
    with torch.autograd.profiler.profile() as profiler:
        optimizer.step(closure)
        optimizer.zero_grad()
    seen = [event.name for event in profiler.function_events]
    title = type(optimizer).__name__
    assert seen.count(f"Optimizer.step#{title}.step") == seen.count(f"Optimizer.zero_grad#{title}.zero_grad") // 2 == 1


# ---------------------------------------------------------------- hooks


@every
def test_hooks_of_a_step_run_in_order(name: str) -> None:
    """Global hooks before own ones on the way in; own before global ones on the way out; removed ones no more."""
    optimizer, params, closure = begun(name)
    order: list[str] = []
    start = params[0].detach().clone()

    def note(text: str, moved: bool) -> Callable[..., None]:
        def hook(opt: Any, args: Any, kwargs: Any) -> None:
            assert opt is optimizer and args == (opt, closure)[-len(args) :] and not kwargs
            assert torch.equal(params[0], start) != moved
            order.append(text)

        return hook

    handles = [
        register_optimizer_step_pre_hook(note("global before", False)),
        register_optimizer_step_post_hook(note("global after", True)),
        optimizer.register_step_pre_hook(note("before", False)),
        optimizer.register_step_post_hook(note("after", True)),
        optimizer.register_step_post_hook(note("after, second", True)),
    ]
    try:
        optimizer.step(closure)
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step(closure)
    assert order == ["global before", "before", "after", "after, second", "global after"]


@every
def test_a_hook_before_the_step_may_change_the_closure(name: str) -> None:
    optimizer, params, closure = begun(name)
    twin, copies, same = like(name, params)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((*args[:-1], closure), kwargs))
    optimizer.step(lambda: pytest.fail("the hook gave another closure"))
    twin.step(same)
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))


@every
def test_hooks_of_state_dict(name: str) -> None:
    optimizer, _, _ = begun(name)
    order: list[str] = []

    def after(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        order.append("after")
        return state_dict | {"note": 17}

    handles = [
        optimizer.register_state_dict_pre_hook(lambda opt: order.append("before")),
        optimizer.register_state_dict_post_hook(after),
        optimizer.register_state_dict_post_hook(lambda opt, state_dict: order.append("second")),
        optimizer.register_state_dict_post_hook(lambda opt, state_dict: order.append("first"), prepend=True),
    ]
    assert optimizer.state_dict()["note"] == 17
    assert order == ["before", "first", "after", "second"]
    for handle in handles:
        handle.remove()
    assert optimizer.state_dict().keys() == {"state", "param_groups"}
    assert len(order) == 4


@every
def test_hooks_of_load_state_dict(name: str) -> None:
    """A hook before it may write into what is loaded, or give something else, as torch's documentation says."""
    source, params, _ = begun(name, dtype=torch.bfloat16)
    saved = copy.deepcopy(source.state_dict())
    lr = float(saved["param_groups"][0]["lr"])
    one, _, _ = like(name, params)
    order: list[str] = []

    def halve(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        order.append("halve")
        return state_dict | {"param_groups": [g | {"lr": g["lr"] / 2} for g in state_dict["param_groups"]]}

    def check(opt: Any, state_dict: dict[str, Any]) -> None:
        order.append("check")
        assert state_dict["param_groups"][0]["lr"] == lr

    def done(opt: Any) -> None:
        order.append("done")
        assert opt.param_groups[0]["lr"] == lr / 2
        if name in OURS:  # and not as torch casts it, to the parameter's dtype
            assert {v.dtype for held in opt.state.values() for v in held.values()} <= {torch.float32, torch.float64}

    one.register_load_state_dict_pre_hook(halve)
    one.register_load_state_dict_pre_hook(check, prepend=True)
    one.register_load_state_dict_post_hook(done)
    one.load_state_dict(saved)
    assert order == ["check", "halve", "done"]
    assert saved["param_groups"][0]["lr"] == lr


@every
def test_a_hook_before_loading_may_adapt_the_state(name: str) -> None:
    """The recipe of torch's documentation for loading by name into an optimizer with another order of parameters."""
    params, x = problem()
    source = built(name, [("weight", params[0]), ("bias", params[1])])
    closure = closure_of(source, params, x)
    for _ in range(3):
        source.step(closure)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    turned = built(name, [("bias", copies[1]), ("weight", copies[0])])

    def by_name(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        adapted = copy.deepcopy(state_dict)
        held = adapted["state"]
        groups, mine = adapted["param_groups"], opt.state_dict()["param_groups"]
        index = {key: i for group in groups for key, i in zip(group["param_names"], group["params"], strict=True)}
        new = {key: i for group in mine for key, i in zip(group["param_names"], group["params"], strict=True)}
        adapted["state"] = {i: held[index[key]] for key, i in new.items() if index[key] in held}
        for group, here in zip(groups, mine, strict=True):
            group["param_names"] = here["param_names"]
        return adapted

    turned.register_load_state_dict_pre_hook(by_name)
    turned.load_state_dict(source.state_dict())
    names = {
        p: key for group in turned.param_groups for p, key in zip(group["params"], group["param_names"], strict=True)
    }
    assert names == {copies[0]: "weight", copies[1]: "bias"}
    same = closure_of(turned, copies, x)
    for _ in range(3):
        source.step(closure)
        turned.step(same)
    for p, q in zip(params, copies, strict=True):  # sums are added in another order
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


# ---------------------------------------------------------------- state


@every
def test_state_dict_is_deterministic_and_loads_with_weights_only(name: str) -> None:
    for entry in inputs(name):
        params, x = problem(torch.float32)
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        options = [copy.deepcopy(entry.kwargs) for _ in range(2)]
        one, two = (INFOS[name].optim_cls(ps, **o) for ps, o in zip((params, twins), options, strict=True))
        for optimizer, ps in ((one, params), (two, twins)):
            for _ in range(3):
                optimizer.step(closure_of(optimizer, ps, x))
        assert equal(one.state_dict(), two.state_dict())
        saved = through_a_file(one.state_dict())
        two.load_state_dict(saved)
        assert equal(one.state_dict(), two.state_dict())
        assert equal(saved, through_a_file(one.state_dict()))  # loading leaves it as it was


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_cast_to_other_parameters_and_back(name: str, dtype: torch.dtype) -> None:
    """A float64 run goes on in less precision: torch casts slots to the parameter's dtype, we to the slot dtype."""
    source, params, goes_on = begun(name)
    lower = [nn.Parameter(p.detach().to(dtype)) for p in params]
    other = built(name, [{"params": [lower[0]]}, {"params": [lower[1]]}])
    given = copy.deepcopy(source.state_dict())
    other.load_state_dict(given)
    assert equal(given, source.state_dict())
    closure = closure_of(other, lower, problem(dtype)[1])
    pairs = [(other.state[q], source.state[p]) for p, q in zip(params, lower, strict=True)]
    cast = all(torch.equal(h[k], v.to(h[k].dtype)) for h, held in pairs for k, v in held.items() if v.dim())
    for _ in range(3):
        other.step(closure)
        source.step(goes_on)
    assert all(p.dtype == dtype and p.isfinite().all() for p in lower)
    if dtype == torch.float32:
        if name == "relative_muon":  # Muon computes in bfloat16 unless its slots are float64: the cast itself is exact
            assert cast
        else:
            assert other.step(closure).item() == pytest.approx(source.step(goes_on).item(), rel=1e-3)
    slots = torch.float32 if name in OURS else dtype
    for p, held in other.state.items():
        assert all(value.dtype == slots for key, value in held.items() if value.shape == p.shape and key != "step")
    back, again, _ = like(name, params)
    back.load_state_dict(other.state_dict())
    for p, held in back.state.items():
        assert all(v.dtype == torch.float64 for key, v in held.items() if v.shape == p.shape), (again, held.keys())


@every
def test_older_state_dicts_load(name: str) -> None:
    """Without a key of the groups that a later version brought: the option takes its default, and the run goes on."""
    optimizer, params, _ = begun(name)
    source = optimizer.state_dict()
    options = [key for key in optimizer.defaults if key not in ("lr", "own")]  # RelativeMuon sets own group by group
    assert "weight_decay" in options
    for lost in options:
        older = copy.deepcopy(source)
        for group in older["param_groups"]:
            del group[lost]
        twin = like(name, params)
        if name in CONTROLS and lost not in ("foreach", "maximize", "differentiable", "fused", "capturable"):
            continue  # torch promises those that came later only
        twin[0].load_state_dict(older)
        assert twin[0].param_groups[0][lost] == built(name, problem()[0]).defaults[lost] or name in CONTROLS
        start = copy.deepcopy((optimizer, params))
        go_on_alike((start[0], start[1], closure_of(*start, problem()[1])), twin)


@every
def test_a_step_count_that_is_no_tensor_loads(name: str) -> None:
    source, params, closure = begun(name)
    saved = copy.deepcopy(source.state_dict())
    for held in saved["state"].values():
        if "step" in held:
            held["step"] = held["step"].item()
    twin = like(name, params)
    twin[0].load_state_dict(saved)
    assert all(isinstance(held["step"], Tensor) for held in twin[0].state.values() if "step" in held and name in OURS)
    if name in OURS:
        go_on_alike((source, params, closure), twin)
    else:
        twin[0].step(twin[2])


@every
def test_named_and_unnamed_state_dicts_load_into_each_other(name: str) -> None:
    for saves, loads in itertools.product([True, False], repeat=2):
        runs = []
        for named in (saves, loads):
            params, x = problem()
            optimizer = built(name, [(f"layer.{i}", p) for i, p in enumerate(params)] if named else params)
            runs.append((optimizer, params, closure_of(optimizer, params, x)))
        one, two = runs
        for _ in range(3):
            one[0].step(one[2])
        two[0].load_state_dict(through_a_file(one[0].state_dict()))
        with torch.no_grad():
            for p, q in zip(one[1], two[1], strict=True):
                q.copy_(p)
        names = [key for group in two[0].state_dict()["param_groups"] for key in group.get("param_names", [])]
        assert names == (["layer.0", "layer.1"] if saves or loads else [])
        go_on_alike(one, two)


@every
def test_copies_have_all_public_attributes_and_go_on(name: str) -> None:
    def public(optimizer: Any) -> set[str]:
        return {key for key in vars(optimizer) if not key.startswith("_")}

    optimizer, params, _ = begun(name)
    for copied_of in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        copied, copies = copied_of((optimizer, params))
        assert public(copied) == public(optimizer)
        assert equal(copied.state_dict(), optimizer.state_dict())
        original, originals = copy.deepcopy((optimizer, params))
        x = problem()[1]
        go_on_alike(
            (original, originals, closure_of(original, originals, x)), (copied, copies, closure_of(copied, copies, x))
        )


@every
def test_state_is_not_empty_and_belongs_to_the_parameters(name: str) -> None:
    optimizer, params, _ = begun(name, 2)
    if name != "torch SGD":  # without momentum it has none
        assert {*optimizer.state} == {*params} and all(optimizer.state.values())
    state = optimizer.state_dict()
    assert [g["params"] for g in state["param_groups"]] == [[0], [1]]


@pytest.fixture(autouse=True)
def no_global_hooks() -> Iterator[None]:
    """A hook left behind by a failed test would run in all later ones."""
    from torch.optim import optimizer

    yield
    assert not optimizer._global_optimizer_pre_hooks and not optimizer._global_optimizer_post_hooks
