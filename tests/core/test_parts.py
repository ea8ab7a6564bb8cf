"""The contract between parts and engine: names, the order of verbs, and what the docstrings promise."""

import re
from typing import Any

import pytest
import torch
from problems import net
from torch import nn

import untuned
from untuned.directions import Adam, Gradient
from untuned.iterates import Mechanic, Plain, ScheduleFree
from untuned.parts import Direction, Place, StepSize, dot, hyper, number, slot
from untuned.recipe.plan import plan, read_by_model_decisions
from untuned.step_sizes import Fixed, MoMo, Prodigy
from untuned.weight_decay import Decoupled


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values or (3.0, 4.0), dtype=torch.float64))


def stepped(optimizer: untuned.Optimizer, *gradient: float) -> torch.Tensor:
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.tensor(gradient or (3.0, -4.0), dtype=torch.float64)
    optimizer.step(loss=1.0)
    return p.detach()


@pytest.mark.parametrize("name", untuned.list())
def test_docstrings_tell_sweeps_and_slots(name: str) -> None:
    needed = {"samples": 3} if name in ("taps", "motaps") else {}
    optimizer = untuned.create(net(), name, **needed)
    document = type(optimizer).__doc__ or ""
    sweeps = [verbs for verbs, _ in plan(optimizer.recipe.variants.values()) if verbs]
    assert int(re.search(r"Sweeps:\s+(\d)", document).group(1)) == len(sweeps)
    slots = [slot for part in optimizer.parts.values() for slot in part.slots().values() if slot.kept]
    assert int(re.search(r"Slots:\s+(\d)", document).group(1)) == len(slots)


def test_the_order_of_verbs_and_decisions() -> None:
    def planned(**parts: Any) -> list[Any]:
        return plan([untuned.compose([weight()], **parts).parts])

    accumulate, move = ("direction", "accumulate"), ("iterate", "move")
    measures = [("step_size", "measure"), ("iterate", "measure")]
    by_rule, by_iterate = ("step_size", "decide"), ("iterate", "decide")
    assert planned(direction=Gradient()) == [([move], [])]
    assert planned() == [([accumulate, move], [])]
    assert planned(iterate=ScheduleFree()) == [([], [by_iterate]), ([accumulate, move], [])]
    assert planned(step_size=Prodigy(), iterate=ScheduleFree()) == [
        ([accumulate, measures[0]], [by_rule, by_iterate]),
        ([move], []),
    ]
    assert planned(step_size=MoMo()) == [([accumulate, measures[0]], [by_rule]), ([move], [])]
    assert planned(iterate=Mechanic()) == [([accumulate, measures[1]], [by_iterate]), ([move], [])]
    assert planned(step_size=MoMo(), iterate=Mechanic()) == [  # whose measure needs the size that MoMo decides
        ([accumulate, measures[0]], [by_rule]),
        ([measures[1]], [by_iterate]),
        ([move], []),
    ]
    assert planned(direction=untuned.directions.TAM(), step_size=Prodigy()) == [
        ([("direction", "look")], [("direction", "decide")]),
        ([accumulate, measures[0]], [by_rule]),
        ([move], []),
    ]


def test_what_a_decision_reads_and_what_a_number_starts_from() -> None:
    def shared(**parts: Any) -> list[str]:
        return [key for _, key in read_by_model_decisions(untuned.compose([weight()], **parts).parts)]

    assert shared() == []
    assert shared(step_size=MoMo()) == ["betas", "lb"]
    assert shared(step_size=Prodigy()) == ["beta3", "d0", "d_coef", "freeze_after", "growth_rate"]
    assert shared(iterate=Mechanic()) == ["decays", "s_decay", "s_init"]
    assert shared(iterate=ScheduleFree()) == []


# ---------------------------------------------------------------- parts of one's own


class Normalised(Direction):
    """u = g / |g| of the model, scaled."""

    scale_by: float = hyper(default=1.0, within="(0, inf)")
    norm = number(0.0, key="gradient_norm")

    def look(self, x: Place) -> Any:
        return dot(x.g, x.g)

    def decide(self, c: Place, gg: Any) -> None:
        c.norm = gg**0.5

    def unit(self, x: Place) -> Any:
        return x.scale_by * x.g / x.norm


def test_a_direction_of_ones_own() -> None:
    optimizer = untuned.compose([weight()], direction=Normalised(2.0), step_size=Fixed(0.5), execution="reference")
    assert stepped(optimizer).tolist() == pytest.approx([3 - 0.6, 4 + 0.8])
    assert optimizer.metrics()["gradient_norm"] == pytest.approx(5.0)
    assert optimizer.param_groups[0]["scale_by"] == 2.0


def test_a_word_that_a_part_does_not_know() -> None:
    class Misspelt(Direction):
        m = slot("mean")

        def unit(self, x: Place) -> Any:
            return x.mm

    with pytest.raises(
        AttributeError, match=r"^Misspelt: x\.mm is neither one of its letters nor one of p g .* old\.$"
    ):
        stepped(untuned.compose([weight()], direction=Misspelt(), execution="reference"))


def test_a_part_writes_only_its_own() -> None:
    class Greedy(Direction):
        def accumulate(self, x: Place) -> None:
            x.p = x.g

        def unit(self, x: Place) -> Any:
            return x.g

    class Meddling(StepSize):
        lr: float = hyper(default=1.0, within="[0, inf)")
        n = number(0.0)

        def decide(self, c: Place) -> None:
            c.m = 1.0

        def size(self, x: Place) -> tuple[Any, Any]:
            return x.lr, x.lr

    with pytest.raises(AttributeError, match=r"^Greedy: x\.p is not one of its slots, so it cannot be written"):
        stepped(untuned.compose([weight()], direction=Greedy(), execution="reference"))
    with pytest.raises(AttributeError, match=r"^Meddling: c\.m is not one of its numbers, so it cannot be written"):
        untuned.compose([weight()], step_size=Meddling())


def test_a_scalar_decision_has_no_elements() -> None:
    class Peeking(StepSize):
        lr: float = hyper(default=1.0, within="[0, inf)")
        n = number(0.0)

        def decide(self, c: Place) -> None:
            c.n = c.q

        def size(self, x: Place) -> tuple[Any, Any]:
            return x.lr, x.lr

        q = slot("q")

    with pytest.raises(
        AttributeError, match="a scalar decision cannot read the slot 'q': it has one value per element"
    ):
        untuned.compose([weight()], step_size=Peeking())


@pytest.mark.parametrize("key", ["step", "rho"])
def test_names_of_the_engine_are_taken_in_the_state(key: str) -> None:
    class Taken(Direction):
        m = slot(key)

        def unit(self, x: Place) -> Any:
            return x.m

    with pytest.raises(TypeError, match=f"Taken and the engine both declare the per-parameter state '{key}'"):
        untuned.compose([weight()], direction=Taken())


@pytest.mark.parametrize("key", ["params", "param_names", "steps", "skipped", "training", "initial_lr"])
def test_names_of_the_engine_are_taken_in_the_groups(key: str) -> None:
    class Taken(Direction):
        n = number(0.0, key=key)

        def unit(self, x: Place) -> Any:
            return x.g

    with pytest.raises(TypeError, match=f"Taken and the engine both declare the group entry '{key}'"):
        untuned.compose([weight()], direction=Taken())


def test_slots_may_be_exchanged() -> None:
    """Values are read before anything is stored."""

    class Swapping(Direction):
        a = slot("first")
        b = slot("second", start="start")

        def accumulate(self, x: Place) -> None:
            x.a, x.b = x.b, x.a

        def unit(self, x: Place) -> Any:
            return 0.0 * x.g

    optimizer = untuned.compose([weight()], direction=Swapping(), execution="reference")
    for first, second in (([3.0, 4.0], [0.0, 0.0]), ([0.0, 0.0], [3.0, 4.0])):
        stepped(optimizer)
        (held,) = optimizer.state.values()
        assert (held["first"].tolist(), held["second"].tolist()) == (first, second)


def test_old_is_the_place_before_this_sweep() -> None:
    class Remembering(Direction):
        m = slot("now")
        b = slot("before")

        def accumulate(self, x: Place) -> None:
            x.m = x.m + x.g
            x.b = x.old.m + 0.0

        def unit(self, x: Place) -> Any:
            return x.m

    optimizer = untuned.compose([weight()], direction=Remembering(), step_size=Fixed(1.0), execution="reference")
    stepped(optimizer)
    assert stepped(optimizer).tolist() == [3 - 3 - 6, 4 + 4 + 8]
    (held,) = optimizer.state.values()
    assert (held["now"].tolist(), held["before"].tolist()) == ([6.0, -8.0], [3.0, -4.0])


def test_one_part_in_two_optimizers_keeps_nothing() -> None:
    direction, rule = Adam(), Prodigy(d0=0.1)
    one, other = (
        untuned.compose([weight()], direction=direction, step_size=rule, execution="reference") for _ in range(2)
    )
    for _ in range(3):
        stepped(one)
    alone = untuned.compose([weight()], direction=Adam(), step_size=Prodigy(d0=0.1), execution="reference")
    assert torch.equal(stepped(other), stepped(alone))
    assert isinstance(one.parts["iterate"], Plain)
    assert isinstance(one.parts["decay"], Decoupled)
