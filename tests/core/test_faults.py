"""Full disks, cut, foreign and spoiled checkpoints, bursts of bad gradients: an error in words, and nothing changed."""

import contextlib
import copy
import errno
import math
import os
import re
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import EVERY, LOSS_DRIVEN, OPTIONS, different, everything, loss_of, net, train
from torch import Tensor, nn

import untuned
from untuned.study.config import StudyError, parse_methods
from untuned.study.resolve import resolve
from untuned.study.runner import CURVE, Result
from untuned.study.store import Store


def two_groups(name: str, model: nn.Module, **options: Any) -> untuned.Optimizer:
    params = list(model.parameters())
    return EVERY[name]([{"params": params[:2]}, {"params": params[2:]}], **options)


def begun(name: str, steps: int = 3, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, untuned.Optimizer]:
    model = net(dtype)
    optimizer = two_groups(name, model)
    train(model, optimizer, range(steps))
    return model, optimizer


class Watch:
    """What an optimizer and its model are, in every bit, to be asked whether they still are."""

    def __init__(self, model: nn.Module, optimizer: untuned.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.values, self.groups, self.params = self.now()
        self.twins = copy.deepcopy((model, optimizer))

    def now(self) -> tuple[dict[Any, Tensor], list[dict[str, str]], list[int]]:
        """Tensors, everything in the groups as text with its type, and which parameters they are."""
        groups = self.optimizer.param_groups
        shown = [{key: f"{type(v)} {v!r}" for key, v in group.items() if key != "params"} for group in groups]
        return everything(self.optimizer), shown, [id(p) for group in groups for p in group["params"]]

    def same(self) -> bool:
        values, groups, params = self.now()
        return different(self.values, values) == [] and (groups, params) == (self.groups, self.params)

    def goes_on(self) -> bool:
        same = train(self.model, self.optimizer, range(50, 52)) == train(*self.twins, range(50, 52))
        return same and different(everything(self.optimizer), everything(self.twins[1])) == []


def refusals(optimizer: untuned.Optimizer, watch: Watch, loads: dict[str, tuple[Any, str]]) -> dict[str, str]:
    """Load each state dict, whose error must match; -> what is wrong with how it was refused."""
    wrong: dict[str, str] = {}
    for what, (state, named) in loads.items():
        try:
            optimizer.load_state_dict(state)
        except (ValueError, TypeError) as error:
            if not re.search(named, str(error)):
                wrong[what] = f"{type(error).__name__} does not name {named}: {error}"
        except Exception as error:  # the test is about which it is
            wrong[what] = f"{type(error).__name__}: {error}"
        else:
            wrong[what] = "is taken"
        if not watch.same():
            wrong[what] = f"changes the optimizer ({wrong.get(what, 'and is refused')})"
            return wrong  # what follows would be told of this
    if not watch.goes_on():
        wrong["afterwards"] = "goes on differently"
    return wrong


# ---------------------------------------------------------------- a full disk


class FullDisk:
    """A file on a disk with room for so many bytes more."""

    def __init__(self, path: Path, room: int) -> None:
        self.file, self.room = path.open("wb"), room

    def write(self, data: Any) -> int:
        self.file.write(bytes(data)[: max(self.room, 0)])
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    def flush(self) -> None:
        self.file.flush()


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more into any file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", EVERY)
def test_a_full_disk_costs_neither_the_run_nor_the_old_checkpoint(name: str, tmp_path: Path) -> None:
    """Saved beside the old file, to be moved into its place afterwards."""
    model, optimizer = begun(name)
    old = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, old)
    kept = old.read_bytes()
    reference = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(3, 5))
    watch = Watch(model, optimizer)
    for part in (0.0, 0.3, 0.9):
        disk = FullDisk(tmp_path / "new.pt", int(part * len(kept)))
        with contextlib.closing(disk.file), pytest.raises((OSError, RuntimeError)):  # which of them is torch's choice
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, disk)
        assert watch.same() and old.read_bytes() == kept
    assert watch.goes_on()
    loaded = torch.load(old, weights_only=True)
    other = net()
    other.load_state_dict(loaded["model"])
    resumed = two_groups(name, other)
    resumed.load_state_dict(loaded["optimizer"])
    assert train(other, resumed, range(3, 5)) == train(*reference, range(3, 5))


def test_a_full_disk_below_torch_save(tmp_path: Path) -> None:
    """The same with the limit of the operating system, through the writer that torch uses for paths."""
    model, optimizer = begun("prodigy")
    watch = Watch(model, optimizer)
    with pytest.raises((OSError, RuntimeError)), files_of_at_most(2048):
        torch.save(optimizer.state_dict(), tmp_path / "new.pt")
    assert watch.same() and watch.goes_on()
    with pytest.raises((OSError, RuntimeError, EOFError)):
        torch.load(tmp_path / "new.pt", weights_only=True)


def curve(rows: int) -> Any:
    import pyarrow as pa

    return pa.table({n: pa.array([float(i) * 1.0001**k for i in range(rows)]).cast(t.type) for k, (n, t) in enumerate(
        zip(CURVE.names, CURVE, strict=True))}, schema=CURVE)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    study = resolve(["logreg-iris"], parse_methods("sgd"), (0.1, 1.0), seeds=1)
    return Store.create(tmp_path / "study", study)


def test_a_full_disk_costs_a_study_only_the_curve_being_written(store: Store) -> None:
    first, second = store.study.runs()
    with store.writing():
        store.start(first)
        store.write_curve(first, curve(3))
        store.finish(first, Result("done", 1.0, 3, {"val_loss": 0.5}))
        store.start(second)
        store.write_curve(second, curve(3))
        with files_of_at_most(4096), pytest.raises(OSError, match=r"File too large|No space|write"):
            store.write_curve(second, curve(2000))
        assert store.curve(second.id).num_rows == 3  # the old one, not half of the new one
        assert store.curve(first.id).num_rows == 3
    with store.writing():  # the next process sweeps up what is half-written
        assert {path.name for path in (store.folder / "curves").iterdir()} == {
            f"{r.id}.parquet" for r in (first, second)
        }
        assert store.statuses() == {first.id: "done", second.id: "running"}


def test_a_full_disk_costs_no_entry_of_a_ledger(store: Store) -> None:
    first, second = store.study.runs()
    with store.writing():
        store.start(first)
        store.finish(first, Result("done", 1.0, 3, {"val_loss": 0.5}))
        with files_of_at_most(1024), pytest.raises(sqlite3.OperationalError, match="disk"):
            store.start(second)
    assert store.statuses() == {first.id: "done"}
    with store.writing():
        store.start(second)
    assert store.statuses() == {first.id: "done", second.id: "running"}


def test_a_study_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    study = resolve(["logreg-iris"], parse_methods("sgd"), (0.1,), seeds=1)
    with files_of_at_most(64), pytest.raises(StudyError, match=r"cannot write a study to .* choose another --out"):
        Store.create(tmp_path / "study", study)
    assert not (tmp_path / "study" / "study.json").exists()
    assert Store.create(tmp_path / "study", study).study.canonical() == study.canonical()


# ---------------------------------------------------------------- cut and foreign checkpoints


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["prodigy", "momo_adam", "schedule_free_adamw"])
def test_a_truncated_file_does_not_reach_the_optimizer(name: str, part: float, tmp_path: Path) -> None:
    model, optimizer = begun(name)
    path = tmp_path / "checkpoint.pt"
    torch.save(optimizer.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    watch = Watch(model, optimizer)
    with pytest.raises((RuntimeError, EOFError, OSError)):
        optimizer.load_state_dict(torch.load(path, weights_only=True))
    assert watch.same() and watch.goes_on()


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, tuple[str, dict[str, Any]]]:
    """The recipe and the state dict of every method after three steps."""
    found = {}
    for name in EVERY:
        _, optimizer = begun(name)
        found[name] = optimizer.recipe.method, optimizer.state_dict()
    return found


@pytest.mark.parametrize("name", EVERY)
def test_the_checkpoints_of_all_other_methods_are_refused(name: str, checkpoints: dict[str, Any]) -> None:
    model, optimizer = begun(name)
    loads = {
        by: (
            saved,
            re.escape(f"another method saved this checkpoint, {recipe}, not {optimizer.recipe.method}. Load it into"),
        )
        for by, (recipe, saved) in checkpoints.items()
        if recipe != optimizer.recipe.method
    }
    assert len(loads) >= len(EVERY) - 2
    assert refusals(optimizer, Watch(model, optimizer), loads) == {}


TORCH = [cls for cls in vars(torch.optim).values() if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)]
DENSE = [cls for cls in TORCH if cls.__name__ not in ("Optimizer", "SparseAdam", "LBFGS", "Muon")]


def by_torch(cls: type[torch.optim.Optimizer], model: nn.Module) -> dict[str, Any]:
    params = list(model.parameters())
    optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    loss_of(model, 0).backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.fixture(scope="module")
def of_torch() -> dict[str, dict[str, Any]]:
    assert len(DENSE) >= 11
    return {cls.__name__: by_torch(cls, net()) for cls in DENSE}


@pytest.mark.parametrize("name", OPTIONS)
def test_checkpoints_of_torch_are_refused_by_every_method(name: str, of_torch: dict[str, Any]) -> None:
    model, optimizer = begun(name)
    named = rf"^{type(optimizer).__name__}: (this checkpoint (has no state|has no '\w+'|has a foreign '\w+')"
    named += r"|a group is labelled None in this checkpoint)"
    named += r".*\. If another package saved it, go on with untuned\.migrate\(optimizer, state_dict\)\.$"
    loads = {f"torch.optim.{by}": (saved, named) for by, saved in of_torch.items()}
    assert refusals(optimizer, Watch(model, optimizer), loads) == {}


def layout(model: nn.Module, group: dict[str, Any], **state: Callable[[Tensor], Any]) -> dict[str, Any]:
    """A checkpoint in the layout of another package: its group entries, and its state made from each parameter."""
    params = [p.detach() for p in model.parameters()]
    groups = [{"lr": 1.0, **group, "params": [0, 1]}, {"lr": 1.0, **group, "params": [2, 3, 4, 5]}]
    return {
        "state": {i: {key: of(p) for key, of in state.items()} for i, p in enumerate(params)},
        "param_groups": groups,
    }


def count(p: Tensor) -> int:
    return 3


def number(p: Tensor) -> Tensor:
    return torch.tensor(3.0)


LAYOUTS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {  # what these packages put into a state dict, by name
    "prodigyopt": lambda m: layout(
        m, {"d": 1e-3, "d0": 1e-6, "d_max": 1e-3, "d_numerator": 0.1, "k": 3, "betas": (0.9, 0.999), "beta3": None},
        s=torch.zeros_like, p0=torch.clone, exp_avg=torch.zeros_like, exp_avg_sq=torch.ones_like, step=count,
    ),
    "dadaptation": lambda m: layout(
        m, {"d": 1e-3, "k": 3, "numerator_weighted": 0.1, "betas": (0.9, 0.999)},
        step=count, s=torch.zeros_like, exp_avg=torch.zeros_like, exp_avg_sq=torch.ones_like,
    ),
    "momo-opt": lambda m: layout(
        m, {"lb": 0.0}, step=count, grad_avg=torch.clone, grad_avg_sq=torch.clone, grad_dot_w=number
    ),
    "schedulefree": lambda m: layout(
        m, {"k": 3, "train_mode": True, "weight_sum": 1.0, "lr_max": 1.0}, z=torch.clone, exp_avg_sq=torch.ones_like
    ),
    "madgrad": lambda m: layout(m, {"k": 3}, grad_sum_sq=torch.ones_like, s=torch.zeros_like, x0=torch.clone),
    "pytorch_optimizer": lambda m: layout(m, {"step": 3}, exp_avg=torch.zeros_like, exp_avg_sq=torch.ones_like),
    "bitsandbytes": lambda m: layout(
        m, {"betas": (0.9, 0.999)}, step=count, state1=lambda p: p.to(torch.uint8), state2=lambda p: p.to(torch.uint8),
        absmax1=number, qmap1=lambda p: torch.arange(256.0),
    ),
    "flattened by torch.distributed.checkpoint": lambda m: {
        **{f"state.{n}.exp_avg": torch.zeros_like(p) for n, p in m.named_parameters()},
        **{f"param_groups.{n}.lr": 0.1 for n, _ in m.named_parameters()},
    },
    "of a model": lambda m: dict(m.state_dict()),
    "of a scheduler": lambda m: {"base_lrs": [0.1], "last_epoch": 3, "_step_count": 4},
    "a whole checkpoint": lambda m: {"model": dict(m.state_dict()), "optimizer": layout(m, {}), "epoch": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_layouts_of_other_packages_are_refused_by_every_method(name: str) -> None:
    model, optimizer = begun(name)
    named = rf"^{type(optimizer).__name__}: .*(this checkpoint(, not 'matrices'\.| has).* go on with untuned\.migrate|"
    named += "a state dict has the keys)"
    loads = {by: (of(net()), named) for by, of in LAYOUTS.items()}
    assert refusals(optimizer, Watch(model, optimizer), loads) == {}


# ---------------------------------------------------------------- spoiled checkpoints

State = dict[str, Any]


def put(path: str, value: Any) -> Callable[[State], State]:
    """Replace one entry: 'groups.0.lr', 'state.3.step', 'state.0.SLOT' (its first slot) or a whole branch."""

    def spoil(state: State) -> State:
        *way, last = path.replace("groups", "param_groups").split(".")
        at: Any = state
        for word in way:
            at = at[int(word) if word.isdigit() else word]
        key = int(last) if last.isdigit() else last
        at[key] = value
        return state

    return spoil


def without(path: str) -> Callable[[State], State]:
    def spoil(state: State) -> State:
        *way, last = path.replace("groups", "param_groups").split(".")
        at: Any = state
        for word in way:
            at = at[int(word) if word.isdigit() else word]
        del at[int(last) if last.isdigit() else last]
        return state

    return spoil


def one_group_more(state: State) -> State:
    state["param_groups"].append(copy.deepcopy(state["param_groups"][1]) | {"params": []})
    return state


SPOILED: dict[str, tuple[Callable[[State], Any], str]] = {  # what is wrong, and what the error must name
    "None": (lambda s: None, "state dict"),
    "a list": (lambda s: [s], "state dict"),
    "its text": (repr, "state dict"),
    "no state": (without("state"), "'state'"),
    "state None": (put("state", None), "'state'"),
    "state a list": (lambda s: s | {"state": [*s["state"].values()]}, "'state'"),
    "groups None": (put("groups", None), "'param_groups'"),
    "groups a number": (put("groups", 3), "'param_groups'"),
    "groups a dict": (lambda s: s | {"param_groups": s["param_groups"][0]}, "'param_groups'"),
    "groups of numbers": (put("groups", [1, 2]), "'param_groups'"),
    "a group more": (one_group_more, "group"),
    "a group less": (without("groups.1"), "group"),
    "no params": (without("groups.1.params"), "'params'"),
    "params None": (put("groups.1.params", None), "'params'"),
    "params a number": (put("groups.1.params", 4), "'params'"),
    "too many params": (put("groups.1.params", [2, 3, 4, 5, 6]), "group"),
    "params twice": (put("groups.1.params", [2, 2, 4, 5]), "'params'|group|parameter"),
    "unhashable params": (put("groups.1.params", [[2], [3], [4], [5]]), "'params'|group|parameter"),
    "lr a word": (put("groups.0.lr", "fast"), "lr"),
    "lr below 0": (put("groups.0.lr", -1.0), "lr"),
    "lr NaN": (put("groups.1.lr", math.nan), "lr"),
    "lr None": (put("groups.1.lr", None), "lr"),
    "lr True": (put("groups.1.lr", True), "lr"),
    "lr of two numbers": (put("groups.1.lr", torch.ones(2)), "lr"),
    "weight decay a list": (put("groups.1.weight_decay", [0.1]), "weight_decay"),
    "weight decay below 0": (put("groups.1.weight_decay", -0.1), "weight_decay"),
    "training a word": (put("groups.0.training", "yes"), "training"),
    "method a number": (put("groups.0.method", 3), "method"),
    "steps a word": (put("groups.0.steps", "three"), "steps"),
    "steps None": (put("groups.0.steps", None), "steps"),
    "steps of two": (put("groups.0.steps", torch.ones(2)), "steps"),
    "skipped a list": (put("groups.1.skipped", [0]), "skipped"),
    "state of a parameter None": (put("state.3", None), "parameter 3"),
    "state of a parameter a list": (put("state.3", [1.0]), "parameter 3"),
    "state of a parameter empty": (put("state.3", {}), "parameter 3"),
    "no step": (without("state.3.step"), "'step'.*parameter 3|no state for parameter 3"),
    "step a word": (put("state.3.step", "three"), "'step'.*parameter 3"),
    "step None": (put("state.3.step", None), "'step'.*parameter 3"),
    "step of two": (put("state.3.step", torch.ones(2)), "'step'.*parameter 3"),
    "step NaN": (put("state.3.step", torch.tensor(math.nan)), "'step'.*parameter 3"),
    "step below 0": (put("state.3.step", torch.tensor(-1.0)), "'step'.*parameter 3"),
    "a foreign key": (put("state.3.banana", torch.ones(4)), "'banana'.*parameter 3"),
}
OF_SLOTS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda v: None,
    "a list": lambda v: v.tolist(),
    "text": repr,
    "a number": lambda v: 0.5,
    "a dict": lambda v: {"value": v},
    "another shape": lambda v: v.flatten()[:-1],
    "turned": lambda v: v.t(),
    "one dimension more": lambda v: v[None],
    "complex": lambda v: v.to(torch.complex64),
    "of booleans": lambda v: v > 0,
    "sparse": lambda v: v.to_sparse(),
    "on no device": lambda v: v.to("meta"),
}
SPOILABLE = ["prodigy", "momo_adam", "schedule_free_adamw", "tam", "mechanic_sgd", "taps", "ldog", "dadapt_adan"]


@pytest.mark.parametrize("name", SPOILABLE)
def test_a_spoiled_checkpoint_is_refused_by_name(name: str) -> None:
    model, optimizer = begun(name)
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 5))
    loads = {what: (spoil(copy.deepcopy(state)), named) for what, (spoil, named) in SPOILED.items()}
    assert refusals(optimizer, Watch(model, optimizer), loads) == {}


@pytest.mark.parametrize("name", [name for name in SPOILABLE if name != "taps"])  # which has no slots
def test_a_spoiled_slot_is_refused_by_name(name: str) -> None:
    model, optimizer = begun(name)
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 5))
    slots = [key for key, v in state["state"][0].items() if v.shape == next(model.parameters()).shape]
    loads = {
        f"{key} {what}": (
            put(f"state.0.{key}", spoil(state["state"][0][key]))(copy.deepcopy(state)),
            f"'{key}' of parameter 0",
        )
        for key in slots
        for what, spoil in OF_SLOTS.items()
    }
    assert refusals(optimizer, Watch(model, optimizer), loads) == {}


@pytest.mark.parametrize("name", SPOILABLE)
def test_a_spoiled_number_is_refused_by_name(name: str) -> None:
    """Those of the groups and those of tensors, each in turn."""
    model, optimizer = begun(name)
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 5))
    shape = next(model.parameters()).shape
    places = {f"groups.0.{key}": f"'{key}'" for key, v in state["param_groups"][0].items() if isinstance(v, Tensor)}
    places |= {f"state.0.{key}": f"'{key}' of parameter 0" for key, v in state["state"][0].items() if v.shape != shape}
    wrong = {"a word": "many", "None": None, "a list": [0.1], "of three": torch.ones(3), "complex": torch.tensor(1j)}
    loads = {
        f"{place} {what}": (put(place, value)(copy.deepcopy(state)), named)
        for place, named in places.items()
        for what, value in wrong.items()
    }
    assert len(places) >= 3
    assert refusals(optimizer, Watch(model, optimizer), loads) == {}


def test_an_error_in_a_hook_before_loading_changes_nothing() -> None:
    model, optimizer = begun("prodigy")
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 5))

    def fail(opt: Any, state_dict: State) -> None:
        raise KeyError("in the hook")

    handle = optimizer.register_load_state_dict_pre_hook(fail)
    watch = Watch(model, optimizer)
    with pytest.raises(KeyError, match="in the hook"):
        optimizer.load_state_dict(state)
    handle.remove()
    assert watch.same() and watch.goes_on()
    optimizer.load_state_dict(state)


# ---------------------------------------------------------------- bursts

BAD: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "nan in one": lambda params: params[3].grad.view(-1)[-1:].fill_(math.nan),
    "all nan": lambda params: [p.grad.fill_(math.nan) for p in params],
    "inf in one": lambda params: params[0].grad[1, 2:].fill_(math.inf),
    "minus inf": lambda params: [p.grad.fill_(-math.inf) for p in params],
    "both": lambda params: [params[0].grad.fill_(math.inf), params[1].grad.fill_(-math.inf)],
    "square too large": lambda params: params[2].grad.fill_(1e30 if params[2].dtype != torch.float64 else 1e200),
}
BURSTS = [  # good steps are dots
    pytest.param("xxxx....", torch.float64, id="at the start"),
    pytest.param("x.x.x.x.", torch.bfloat16, id="every other, bfloat16"),
    pytest.param("..xxxx..", torch.float64, id="in the middle", marks=pytest.mark.slow),
    pytest.param("....xxxx", torch.bfloat16, id="at the end, bfloat16", marks=pytest.mark.slow),
]


def spoiled_step(model: nn.Module, optimizer: untuned.Optimizer, k: int, bad: str) -> None:
    optimizer.zero_grad()
    loss = loss_of(model, k)
    loss.backward()
    BAD[bad](list(model.parameters()))
    optimizer.step(loss=loss)


@pytest.mark.parametrize(("burst", "dtype"), BURSTS)
@pytest.mark.parametrize("name", EVERY)
def test_a_burst_of_bad_steps_never_was(name: str, burst: str, dtype: torch.dtype) -> None:
    """The good steps alone give the same bits; a checkpoint from the middle of the run goes on the same way."""
    kinds = list(BAD)
    (model, hurt), (other, sound) = begun(name, 0, dtype), begun(name, 0, dtype)
    for k, step in enumerate(burst):
        if k == 4:
            model = copy.deepcopy(model)
            resumed = two_groups(name, model)
            resumed.load_state_dict(copy.deepcopy(hurt.state_dict()))
            hurt = resumed
        if step == "x":
            spoiled_step(model, hurt, k, kinds[k % len(kinds)])
        else:
            assert train(model, hurt, range(k, k + 1)) == train(other, sound, range(k, k + 1))
    assert [key for key in different(everything(hurt), everything(sound)) if key[-1] != "skipped"] == []
    found, expected = hurt.metrics(), sound.metrics()
    assert (found.pop("skipped"), expected.pop("skipped")) == (4.0, 0.0)
    for key in [key for key in expected if key.startswith("lr_effective")]:
        del found[key], expected[key]  # that of the last step, be it a skipped one
    assert found == expected


@pytest.mark.parametrize("name", LOSS_DRIVEN)
def test_a_burst_of_bad_losses_never_was(name: str) -> None:
    """Given, recorded for one micro-batch of three, or from a closure."""
    (model, hurt), (other, sound) = begun(name, 0), begun(name, 0)
    for k in range(8):
        if k in (2, 3, 4):
            hurt.zero_grad()
            loss_of(model, k).backward()
            if k == 2:
                hurt.step(loss=math.inf)
            elif k == 3:
                for loss in (1.0, math.nan, 2.0):
                    hurt.record_loss(loss)
                hurt.step()
            else:
                hurt.step(lambda: torch.tensor(-math.inf))
        else:
            assert train(model, hurt, range(k, k + 1)) == train(other, sound, range(k, k + 1))
    assert [key for key in different(everything(hurt), everything(sound)) if key[-1] != "skipped"] == []
    assert hurt.metrics()["skipped"] == 3
