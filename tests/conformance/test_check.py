"""The checks can fail, each group of them on an optimizer with the defect it is about, and ours pass."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import untuned
from untuned.study import cli
from untuned.testing import check_optimizer
from untuned.testing.conformance import CHECKS, Pool, Result, Target, TargetError, report


class Sloppy(torch.optim.Optimizer):
    """Momentum SGD with a defect in every place where one was found in a published optimizer."""

    def __init__(self, params: Any, lr: float = 0.1, maximize: bool = False) -> None:
        super().__init__(list(params) or [torch.zeros(1, requires_grad=True)], {"lr": lr, "maximize": maximize})
        self.steps = 0
        self.state["total"] = {"gradient": torch.zeros(())}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if closure:
            closure()
        self.steps += 1
        total = self.state["total"]["gradient"]
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                g = p.grad.mul_(0.5)
                total += g.sum()
                unit = g / g.abs().max()
                p -= self.param_groups[0]["lr"] * (1 + i) / self.steps * unit - 1e-4 + 0 * total.item()
        print("step", self.steps)

    def __repr__(self) -> str:
        return self.name  # pyright: ignore[reportAttributeAccessIssue]


class Averaging(torch.optim.SGD):
    """Evaluates at half of the weights, and comes back wrongly; keeps what it loads in the wrong precision."""

    def eval(self) -> None:
        self._scale(0.5)

    def train(self) -> None:
        self._scale(1.0)

    def _scale(self, factor: float) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p *= factor

    def step(self, closure: Any = None, *, loss: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        held = self.state[p]
                        held.setdefault("sum", torch.zeros_like(p, dtype=torch.float32)).add_(p.grad.float().sign())
                        held.setdefault("list", [1.0])
                        p -= group["lr"] * loss.detach() * held["sum"]
        return loss


class Dying(torch.optim.SGD):
    """Hangs or ends the process where a check looks at it in its own way."""

    def __repr__(self) -> str:
        os._exit(3)

    def __deepcopy__(self, memo: Any) -> Any:
        time.sleep(60)


class Local(torch.optim.SGD):
    """Takes the norm of its shard for that of the gradient, and the loss of its process for that of the model."""

    def step(self, closure: Any = None, *, loss: Any) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                local = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad
                p.grad.mul_(loss.detach() / (local.norm() + 1))
        return super().step(closure)


class Lonely(torch.optim.SGD):
    """Raises in one process of two, so that the other waits for it in vain."""

    def step(self, closure: Any = None) -> Any:
        if dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError("rank 1 gives up")
        return super().step(closure)


class Refusal(Exception):  # noqa: N818
    """What a package may have of its own, neither ValueError nor TypeError."""


class Particular(torch.optim.SGD):
    """Refuses what is wrong with an exception class of its own."""

    def __init__(self, params: Any, **options: Any) -> None:
        if options.keys() - {"lr"}:
            raise Refusal("there is no such option")
        try:
            super().__init__(list(params), **options)
            if not 0 <= self.param_groups[0]["lr"] < float("inf"):
                raise Refusal("lr is out of range")
        except Exception as error:
            raise Refusal(str(error)) from None

    def load_state_dict(self, state_dict: Any) -> None:
        try:
            super().load_state_dict(state_dict)
        except Exception as error:
            raise Refusal(str(error)) from None


class OnlyLr(torch.optim.SGD):
    def __init__(self, params: Any, **options: Any) -> None:
        if options:
            raise Refusal("there are no options")
        super().__init__(params, lr=0.1)


class Holding(torch.optim.Optimizer):
    """Half of the way to where steps from its start lead: its state is of the constructor, a set says who has begun."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})
        if not all(group["params"] for group in self.param_groups):
            raise ValueError("a group is empty")
        self.begun: set[Any] = set()
        self.itself = self
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["z"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    z = self.state[p].setdefault("z", torch.zeros_like(p))
                    if p not in self.begun:
                        z.copy_(p)
                        self.begun.add(p)
                    z -= group["lr"] * p.grad
                    p.copy_((p + z) / 2)


class Gathering(torch.optim.SGD):
    """Averages the loss over the processes in steps that have a gradient."""

    def step(self, closure: Any = None, *, loss: Any) -> Any:
        if dist.is_initialized() and any(p.grad is not None for g in self.param_groups for p in g["params"]):
            dist.all_reduce(loss.detach().clone())
        return super().step(closure)


class Waiting(torch.optim.SGD):
    """Says on the process that has more batches than the other that it does not do that."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if dist.is_initialized() and dist.get_rank() == 1 and self.steps > 3:
            raise RuntimeError("Waiting does not work in DistributedDataParallel.join().")
        return super().step(closure)


def failures(factory: Any, **more: Any) -> dict[str, str]:
    with pytest.raises(AssertionError) as caught:
        check_optimizer(factory, **more)
    first, *lines = str(caught.value).splitlines()
    found = dict(line.split(": ", 1) for line in lines)
    assert f"fails {len(found)} of " in first
    return found


ONE_PROCESS = [name for name, check in CHECKS.items() if check.processes == 1]


def test_a_sloppy_optimizer_fails_in_sentences_about_its_users(capsys: pytest.CaptureFixture[str]) -> None:
    found = failures(Sloppy, only=ONE_PROCESS)
    assert set(found) >= {
        "negative_lr_is_refused",
        "nan_lr_is_refused",
        "no_parameters_are_refused",
        "prints_nothing",
        "can_be_shown",
        "closure",
        "loss_is_returned",
        "maximize",
        "no_host_read",
        "frozen_parameter",
        "parameter_without_gradient",
        "no_gradient_at_all",
        "late_gradient",
        "empty_parameter",
        "gradients_are_kept",
        "two_groups",
        "order_of_groups",
        "lr_of_a_group",
        "frozen_group",
        "warmup_from_zero",
        "lr_zero",
        "zero_gradient",
        "nan_gradient",
        "resume",
        "deepcopy",
        "distributed_checkpoint",
        "distributed_checkpoint_flattened",
        "distributed_checkpoint_before_first_step",
        "state_is_keyed_by_parameters",
    }
    passed = {"one_tensor_is_refused", "repeated_parameter_is_refused", "named_parameters", "moves", "accumulation"}
    assert not found.keys() & {*passed, "scalar_parameter", "not_contiguous", "weights_only", "is_an_optimizer"}
    assert found["resume"].startswith("resuming from state_dict() is not exact: the first step after it differs by ")
    assert found["two_groups"].startswith("two parameter groups with equal options (no decay on biases, say) train ")
    reads = "it reads values back 6 times with 6 tensors, 24 times with 24"
    assert found["no_host_read"] == f"on a GPU every step waits for the device: {reads}"
    assert found["prints_nothing"] == "it prints, on every rank: 'step 1'"


REFUSALS = [name for name in CHECKS if name.endswith(("_refused", "foreign_checkpoint"))]


def test_a_refusal_counts_whatever_the_class_of_the_exception() -> None:
    assert len(REFUSALS) == 7
    assert [r.status for r in check_optimizer(Particular, only=REFUSALS)] == ["passed"] * 7
    lr = [name for name in REFUSALS if "_lr_" in name]
    assert [r.remark for r in check_optimizer(OnlyLr, only=lr)] == ["it has no option lr"] * 3


HELD = ["empty_group", "exchanged_parameters", "deleted_state", "freed_at_once"]


def test_what_is_held_beside_the_groups_and_the_state() -> None:
    found = failures(Holding, only=HELD)
    assert found.keys() == {*HELD}
    assert found["empty_group"].endswith("is refused: training cannot start: ValueError: a group is empty")
    assert found["exchanged_parameters"].startswith("the tensors in its groups cannot be exchanged, as DeepSpeed ")
    assert ": KeyError: " in found["exchanged_parameters"]
    assert found["deleted_state"].startswith("after `del optimizer.state[p]` twenty steps move the weights by ")
    assert found["freed_at_once"].startswith("a deleted optimizer is part of a reference cycle: ")
    assert gc.isenabled()
    assert [r.status for r in check_optimizer(torch.optim.AdamW, only=HELD)] == ["passed"] * 4


class Faithful(torch.optim.SGD):
    """Keeps state of the tensors that it was built with, or trains them, whatever its groups hold by then."""

    def __init__(self, params: Any, lr: float = 0.01, trains: bool = False) -> None:
        super().__init__(params, lr=lr)
        self.built_with, self.trains = list(self.param_groups[0]["params"]), trains

    def step(self, closure: Any = None) -> Any:
        now = self.param_groups[0]["params"]
        if self.trains:
            self.param_groups[0]["params"] = self.built_with
        super().step(closure)
        self.param_groups[0]["params"] = now

    def state_dict(self) -> Any:
        for p in self.built_with:
            self.state.pop(p, None)
        saved = super().state_dict()
        self.state.update({p: {"size": p.numel()} for p in self.built_with})
        return saved


def test_exchanged_tensors_are_trained_and_the_others_let_go() -> None:
    found = failures(Faithful, only=["exchanged_parameters"])["exchanged_parameters"]
    assert found == "the state of 6 tensors that are in no group any more stays in memory"
    found = failures(Faithful, options={"trains": True}, only=["exchanged_parameters"])["exchanged_parameters"]
    assert found == "tensors put into a group in place of others train otherwise, by 1 of the way"


def test_a_model_that_its_optimizer_holds_is_noticed() -> None:
    kept: list[Any] = []

    def build(params: Any) -> Any:
        kept.extend(params := list(params))
        return torch.optim.SGD(params, lr=0.1)

    found = failures(build, only=["freed_at_once"])["freed_at_once"]
    assert found == "a deleted model stays in memory after its optimizer was deleted: something still holds it"


def test_modes_and_precision_of_loaded_state() -> None:
    found = failures(Averaging, options={"lr": 0.01}, only=ONE_PROCESS)
    assert found["modes"] == "eval() called twice, as nested evaluation does, changes the weights again"
    assert found["modes_before_first_step"] == "eval() before the first step changes the weights"
    assert found["step_in_evaluation"].startswith("a step in evaluation mode, train() forgotten, goes on from the aver")
    turned = "resuming turns 'sum' from torch.float32 into torch.bfloat16: precision is lost, silently"
    assert found["resume_bfloat16"] == turned
    assert found["missing_loss"].startswith("step() without the loss fails with a riddle: AttributeError: ")
    assert found["loss_keyword"].startswith("it cannot be given the loss, though step() has loss=: AttributeError: ")
    assert found["closure"] == "the same run with a closure ends elsewhere, by 1 of the way"
    assert "distributed_checkpoint_flattened" in found  # lists in the state
    assert "two_groups" not in found


@pytest.mark.parametrize(("name", "execution"), [("momo", "reference"), ("schedule_free_sgd", "native")])
def test_ours_pass_in_one_process(name: str, execution: str) -> None:
    results = check_optimizer(name, options={"execution": execution}, only=ONE_PROCESS)
    assert {r.check for r in results if r.status == "does not apply"} <= {"missing_loss", "step_in_evaluation"}


FEW = ["lr_of_a_group", "late_gradient", "warmup_from_zero", "resume_bfloat16", "nan_gradient"]


@pytest.mark.parametrize("name", untuned.list())
def test_every_method_passes_a_few(name: str) -> None:
    results = check_optimizer(name, options={"execution": "reference"}, only=FEW)
    assert [r.status for r in results] == ["passed"] * len(FEW)


def test_expected_failures_need_a_reason_and_must_fail() -> None:
    known = {"nan_gradient": "torch has no guard"}
    [result] = check_optimizer(torch.optim.Adam, only=["nan_gradient"], expected=known)
    assert result.status == "expected failure"
    assert result.remark.startswith("torch has no guard (after one NaN in one gradient 49 of 49 weights are NaN")
    found = failures(torch.optim.Adam, only=["resume"], expected={"resume": "it was broken once"})
    assert found == {"resume": "it passes, but was to fail: it was broken once"}


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no check is called 'resumes'; there are negative_lr_is_refused, "):
        check_optimizer("sgd", only=["resumes"])
    with pytest.raises(TargetError, match="no capability is called 'need_loss'; there are loss, needs_loss, "):
        check_optimizer("sgd", need_loss=True)
    with pytest.raises(TargetError, match="no method is called 'momo_adm'; did you mean momo_adam"):
        check_optimizer("momo_adm")
    with pytest.raises(TargetError, match=r"torch.optim:Adamm cannot be imported: module 'torch.optim' has no"):
        check_optimizer("torch.optim:Adamm")
    with pytest.raises(
        TargetError, match=r"builtins:list returns a list, which has no step\(\); it must return an opt"
    ):
        Target("builtins:list").with_capabilities()
    with pytest.raises(TargetError, match=r"cannot be built: TypeError: .*'lrr'"):
        check_optimizer(torch.optim.Adam, options={"lrr": 1})
    with pytest.raises(TargetError, match=r"cannot do a step: ValueError: MoMo.step\(\) needs the loss"):
        check_optimizer("momo", needs_loss=False, loss=False, closure=False, needs_closure=False)


def test_capabilities_are_found_by_trying() -> None:
    def able(factory: Any) -> set[str]:
        return {name for name, yes in Target(factory).with_capabilities().declared.items() if yes}

    assert able(torch.optim.AdamW) == {"closure"}
    assert able(torch.optim.LBFGS) == {"closure", "needs_closure"}
    assert able("adam") == {"closure", "loss", "modes"}
    assert able("taps") == {"closure", "loss", "modes", "needs_loss", "sample_ids"}


def test_an_optimizer_without_plain_steps() -> None:
    only = ["moves", "closure", "resume", "one_tensor_is_refused", "two_groups", "not_contiguous"]
    known = {"not_contiguous": "it takes views of gradients"}
    results = check_optimizer(torch.optim.LBFGS, options={"lr": 0.1}, only=only, expected=known)
    assert [r.status for r in results] == ["passed"] * 4 + ["does not apply", "expected failure"]


SAME, APART = ["fsdp2", "fsdp2_uneven", "ddp"], ["gradient_on_one_rank", "ddp_join"]
TOGETHER = [name for name, check in CHECKS.items() if check.processes == 2]
assert TOGETHER == SAME + APART


def test_a_check_that_hangs_or_dies_costs_itself_alone() -> None:
    with Pool(timeout=5.0) as workers:
        target = workers.detect(Target("test_check:Dying"))
        [hung] = workers.run(target, ["deepcopy"])
        [died] = workers.run(target, ["can_be_shown"])
    assert hung.remark == "model and optimizer cannot be copied: it does not end within 5 s"
    assert died.remark.endswith("and debuggers that show it: it ends the Python process with exit code 3")
    assert (hung.status, died.status) == ("failed", "failed")
    assert 5.0 <= hung.seconds < 15.0


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool() as workers:
        yield workers


def test_two_processes_fail_in_sentences(pool: Pool) -> None:
    sharded, uneven, replicated = pool.run(pool.detect(Target("test_check:Local")), SAME)
    assert [r.status for r in (sharded, uneven, replicated)] == ["failed"] * 3
    assert sharded.remark.startswith("under FSDP2 two processes train otherwise than one, by ")
    assert replicated.remark.startswith("the replicas of DDP drift apart, by ")


def test_one_of_two_processes_fails(pool: Pool) -> None:
    [result] = pool.run(pool.detect(Target("test_check:Lonely")), ["ddp"])
    harm = "it cannot train a model replicated by DistributedDataParallel"
    assert (result.status, result.remark) == ("failed", f"{harm}: RuntimeError: rank 1 gives up")


def test_ours_pass_in_two_processes(pool: Pool) -> None:
    target = pool.detect(Target("momo", {"execution": "reference"}))
    assert [r.status for r in pool.run(target, TOGETHER)] == ["passed"] * 5


def test_processes_that_do_not_do_the_same(pool: Pool) -> None:
    adamw = pool.run(pool.detect(Target("torch.optim:AdamW")), APART)
    assert [(r.status, r.remark) for r in adamw] == [("passed", "")] * 2
    [waiting] = pool.run(pool.detect(Target("test_check:Waiting")), ["ddp_join"])
    assert (waiting.status, waiting.remark) == ("passed", "it says that it does not work with join()")
    with Pool(timeout=8.0) as impatient:  # both would wait for as long as the process group does
        alone, joined = impatient.run(impatient.detect(Target("test_check:Gathering")), APART)
    assert (alone.status, joined.status) == ("failed", "failed")
    harm = "a step in which one of two processes has no gradient (an expert without tokens) does not end: "
    assert alone.remark.startswith(harm)
    assert "DistributedDataParallel.join()" in joined.remark


def untuned_check(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["untuned", "check", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_the_command_prints_writes_and_exits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("mine.py").write_text(
        "import torch\n\n\ndef make(params, lr=0.1):\n    return torch.optim.SGD(params, lr=lr)\n"
    )
    command = ["mine:make", "--option", "lr=0.5", "--only", "resume,nan_gradient,nan_lr_is_refused,modes"]
    command += ["--expected", "nan_gradient=no guard", "--json", "all.json", "--badge", "badge.svg"]
    assert untuned_check(monkeypatch, *command) == 1
    output = capfd.readouterr().out
    assert "✗  nan_lr_is_refused  lr=nan is accepted and the first step turns all weights to NaN" in output
    assert "no guard (after one NaN in one gradient 49 of 49 weights are NaN for ever)" in output
    assert output.endswith("1 does not apply, 1 expected failure, 1 failed, 1 passed\n")
    written = json.loads(Path("all.json").read_text())
    assert (written["target"], written["options"]) == ("mine:make", {"lr": "0.5"})
    assert written["counts"] == {"does not apply": 1, "expected failure": 1, "failed": 1, "passed": 1}
    assert written["versions"]["untuned"] == untuned.__version__
    assert written["capabilities"]["closure"] is True
    assert [c["check"] for c in written["checks"]] == ["nan_lr_is_refused", "nan_gradient", "resume", "modes"]
    assert written["checks"][3]["remark"] == "only where train() and eval() exist, and a step is taken in training mode"
    texts = [e.text for e in ET.fromstring(Path("badge.svg").read_text()).iter() if e.tag.endswith("text")]
    assert texts == ["untuned check", "2 of 3"]


def test_the_command_refuses_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments, sentence in (
        (["sgd", "--only", "resumes"], "no check is called 'resumes'; there are negative_lr_is_refused, "),
        (["sgd", "--option", "lr"], "--option 'lr': write name=value"),
        (["sgd", "--declare", "loss=1"], "--declare loss=1: write loss=yes or loss=no"),
        (["sgd", "--json", "nowhere/all.json"], "nowhere/all.json: there is no folder nowhere"),
    ):
        assert untuned_check(monkeypatch, *arguments) == 2
        assert capfd.readouterr().err.startswith(f"untuned: {sentence}")


def test_the_badge_is_green_only_without_failures() -> None:
    def colours(failed: int, passed: int) -> str:
        results = [Result("moves", "failed", "", 0.0)] * failed + [Result("moves", "passed", "", 0.0)] * passed
        return report.badge(results)

    assert "#2e7d32" in colours(0, 50)
    assert "#b26a00" in colours(1, 49)
    assert "#c62828" in colours(20, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", untuned.list())
def test_every_method_passes_every_check(name: str, pool: Pool) -> None:
    results = list(pool.run(pool.detect(Target(name)), list(CHECKS)))
    assert [r for r in results if r.status == "failed"] == []
    assert sum(r.status == "passed" for r in results) >= 55
