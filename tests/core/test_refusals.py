"""What a part may not say: refused when an optimizer is built, in one sentence, and not found out by the weights."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import untuned
from untuned import directions, iterates, step_sizes
from untuned.parts import (
    Direction,
    Iterate,
    Place,
    StepSize,
    WeightDecay,
    dot,
    each,
    hyper,
    number,
    sign,
    slot,
    where,
)
from untuned.weight_decay import Coupled, Decoupled

EXECUTIONS = ["reference"] + (["native"] if importlib.util.find_spec("numba") else [])


@pytest.fixture(params=EXECUTIONS)
def runner(request: pytest.FixtureRequest) -> str:
    """What runs the sweeps; a refusal comes from both."""
    return request.param


def built(execution: str = "reference", **parts: Any) -> untuned.Optimizer:
    return untuned.compose([nn.Parameter(torch.ones(2, dtype=torch.float64))], **parts, execution=execution)


class Along(Direction):
    """u = g; the base of the directions below, which say one thing more."""

    def unit(self, x: Place) -> Any:
        return x.g


class Rate(StepSize):
    """lr; the base of the step sizes below."""

    lr: float = hyper(default=0.1, within="[0, inf)")

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.lr, x.lr


class Moves(Iterate):
    """The plain step; the base of the iterates below."""

    gives: ClassVar[frozenset[str]] = frozenset({"additive"})

    def move(self, x: Place) -> None:
        x.p = x.base(x.p)


class Shrinks(WeightDecay):
    """No weight decay; the base of the one below."""

    weight_decay: float = hyper(default=0.0, within="[0, inf)")

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def decay(self, x: Place, w: Any, at: Any) -> Any:
        return w

    def shrink(self, x: Place) -> Any:
        return 1.0


def test_the_bases_are_accepted() -> None:
    assert built(direction=Along(), step_size=Rate(), iterate=Moves(), decay=Shrinks())


# ---------------------------------------------------------------- verbs


class MisspeltDirection(Along):
    m = slot("mean")

    def acumulate(self, x: Place) -> None:
        x.m = x.m + x.g


class MisspeltStepSize(Rate):
    def mesure(self, x: Place) -> Any:
        return dot(x.g, x.u)


class MisspeltIterate(Moves):
    def leaves(self, x: Place) -> None:
        x.p = x.p * 2.0


class MisspeltDecay(Shrinks):
    def gradients(self, x: Place, g: Any) -> Any:
        return g


@pytest.mark.parametrize(
    ("parts", "kind", "verb", "nearest"),
    [
        ({"direction": MisspeltDirection()}, "Direction", "acumulate", "accumulate"),
        ({"step_size": MisspeltStepSize()}, "StepSize", "mesure", "measure"),
        ({"iterate": MisspeltIterate()}, "Iterate", "leaves", "leave"),
        ({"decay": MisspeltDecay()}, "WeightDecay", "gradients", "gradient"),
    ],
)
def test_a_misspelt_verb(runner: str, parts: dict[str, Any], kind: str, verb: str, nearest: str) -> None:
    (name,) = (part.name for part in parts.values())
    with pytest.raises(TypeError, match=rf"^{name}: '{verb}' is no verb of a {kind}.* '{nearest}'"):
        built(runner, **parts)


def test_a_verb_of_another_kind_of_part() -> None:
    class Sized(Along):
        def size(self, x: Place) -> tuple[Any, Any]:
            return 1.0, 1.0

    class Left(Rate):
        def leave(self, x: Place) -> None:
            pass

    with pytest.raises(TypeError, match=r"^Sized: 'size' is no verb of a Direction"):
        built(direction=Sized())
    with pytest.raises(TypeError, match=r"^Left: 'leave' is no verb of a StepSize"):
        built(step_size=Left())


def test_a_static_function_is_no_verb_either() -> None:
    class Static(Along):
        @staticmethod
        def wieght(x: Place) -> tuple[Any, Any]:
            return 1.0, 1.0

    with pytest.raises(TypeError, match=r"^Static: 'wieght' is no verb of a Direction.* 'weight'"):
        built(direction=Static())


def test_helpers_have_an_underscore(runner: str) -> None:
    class Helped(Along):
        @staticmethod
        def _doubled(q: Any) -> Any:
            return q + q

        def _mixed(self, x: Place) -> Any:
            return self._doubled(x.g)

        def unit(self, x: Place) -> Any:
            return self._mixed(x)

    optimizer = built(runner, direction=Helped(), step_size=Rate(0.5))
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
    optimizer.step()
    assert p.tolist() == [0.0, 3.0]


@pytest.mark.parametrize("verb", ["advice", "caution"])
@pytest.mark.parametrize(("role", "base"), [("direction", Along), ("step_size", Rate), ("iterate", Moves)])
def test_advice_and_caution_are_known(verb: str, role: str, base: type[Any]) -> None:
    silent = {"advice": lambda self, numbers: None, "caution": lambda self, group, decay: None}
    assert built(**{role: type("Advising", (base,), {verb: silent[verb]})()})


class MeasuresOnly(Rate):
    def measure(self, x: Place) -> Any:
        return dot(x.g, x.g)


class MovesAndMeasures(Moves):
    def measure(self, x: Place) -> Any:
        return dot(x.g, x.g)


class LooksOnly(Along):
    def look(self, x: Place) -> Any:
        return dot(x.g, x.g)


class LeavesOnly(Moves):
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "modes"})

    def leave(self, x: Place) -> None:
        x.p = x.p * 2.0


class EntersOnly(Moves):
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "modes"})

    def enter(self, x: Place) -> None:
        x.p = x.p / 2.0


@pytest.mark.parametrize(
    ("parts", "has", "lacks"),
    [
        ({"step_size": MeasuresOnly()}, "measure", "decide"),
        ({"iterate": MovesAndMeasures()}, "measure", "decide"),
        ({"direction": LooksOnly()}, "look", "decide"),
        ({"iterate": LeavesOnly()}, "leave", "enter"),
        ({"iterate": EntersOnly()}, "enter", "leave"),
    ],
)
def test_one_verb_without_the_other(runner: str, parts: dict[str, Any], has: str, lacks: str) -> None:
    (name,) = (part.name for part in parts.values())
    with pytest.raises(TypeError, match=rf"^{name}: it has '{has}' and no '{lacks}'"):
        built(runner, **parts)


def test_two_points_without_the_word() -> None:
    """Else eval() would leave the weights where they are."""

    class TwoPoints(Moves):
        def leave(self, x: Place) -> None:
            x.p = x.p * 2.0

        def enter(self, x: Place) -> None:
            x.p = x.p / 2.0

    with pytest.raises(TypeError, match=r"^TwoPoints: it must give 'modes' if and only if it has 'leave' and 'enter'"):
        built(iterate=TwoPoints())


class TwoSums(Rate):
    n = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        return dot(x.g, x.g), dot(x.g, x.u)

    def decide(self, c: Place, gg: Any) -> None:
        c.n = gg


class OneSum(Rate):
    n = number(0.0)

    def measure(self, x: Place) -> Any:
        return each(dot(x.g, x.g))

    def decide(self, c: Place, gg: Any, gu: Any) -> None:
        c.n = gg + gu


class UnreadSum(Moves):
    n = number(0.0)

    def measure(self, x: Place) -> Any:
        return dot(x.g, x.g)

    def decide(self, c: Place) -> None:
        c.n = c.n + 1.0


class LookedAtTwice(Along):
    n = number(0.0)

    def look(self, x: Place) -> tuple[Any, Any]:
        return dot(x.g, x.g), dot(x.g, x.g)

    def decide(self, c: Place, gg: Any) -> None:
        c.n = gg


@pytest.mark.parametrize(
    ("parts", "returned", "taken"),
    [
        ({"step_size": TwoSums()}, "'measure' returns 2 sums", "'decide' takes 1"),
        ({"step_size": OneSum()}, "'measure' returns 1 sum", "'decide' takes 2"),
        ({"iterate": UnreadSum()}, "'measure' returns 1 sum", "'decide' takes 0"),
        ({"direction": LookedAtTwice()}, "'look' returns 2 sums", "'decide' takes 1"),
    ],
)
def test_as_many_sums_are_taken_as_are_returned(runner: str, parts: dict[str, Any], returned: str, taken: str) -> None:
    (name,) = (part.name for part in parts.values())
    with pytest.raises(TypeError, match=rf"^{name}: its {returned} and its {taken}"):
        built(runner, **parts)


class NothingMeasured(Rate):
    n = number(0.0)

    def decide(self, c: Place, gg: Any) -> None:
        c.n = gg


class NothingLookedAt(Along):
    n = number(0.0)

    def decide(self, c: Place, gg: Any) -> None:
        c.n = gg


@pytest.mark.parametrize(
    ("parts", "verb"), [({"step_size": NothingMeasured()}, "measure"), ({"direction": NothingLookedAt()}, "look")]
)
def test_sums_that_nothing_returns(runner: str, parts: dict[str, Any], verb: str) -> None:
    (name,) = (part.name for part in parts.values())
    with pytest.raises(TypeError, match=rf"^{name}: its 'decide' takes 1 sum and there is no '{verb}'"):
        built(runner, **parts)


# ---------------------------------------------------------------- words


class GivesUnknown(Along):
    gives: ClassVar[frozenset[str]] = frozenset({"avarage"})


class GivesUnknownInside(Along):
    """Options may decide what a part gives."""

    online: bool = False

    @property
    def gives(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return frozenset({"avarage"})


class NeedsUnknown(Rate):
    needs: ClassVar[frozenset[str]] = frozenset({"avarage"})


class ExcusesUnknown(Along):
    lacks: ClassVar[dict[str, str]] = {"avarage": "it has none"}


@pytest.mark.parametrize(
    ("parts", "where"),
    [
        ({"direction": GivesUnknown()}, "gives"),
        ({"direction": GivesUnknownInside()}, "gives"),
        ({"step_size": NeedsUnknown()}, "needs"),
        ({"direction": ExcusesUnknown()}, "lacks"),
    ],
)
def test_an_unknown_word(parts: dict[str, Any], where: str) -> None:
    (name,) = (part.name for part in parts.values())
    with pytest.raises(TypeError, match=rf"^{name}: 'avarage' in {where} is no word .* 'average'"):
        built(**parts)


# ---------------------------------------------------------------- letters


def deciding(letter: str) -> StepSize:
    """A step size whose decision reads a letter."""

    class Reading(Rate):
        n = number(0.0)

        def decide(self, c: Place) -> None:
            c.n = c.n + getattr(c, letter)

    return Reading()


def measuring(letter: str) -> StepSize:
    """A step size whose measure reads a letter."""

    class Reading(Rate):
        n = number(0.0)

        def measure(self, x: Place) -> Any:
            return dot(x.g, getattr(x, letter))

        def decide(self, c: Place, s: Any) -> None:
            c.n = s

    return Reading()


def test_a_letter_that_does_not_exist(runner: str) -> None:
    with pytest.raises(AttributeError, match=r"^Reading: c\.nonsense is neither one of its letters nor one of "):
        built(runner, step_size=deciding("nonsense"))
    with pytest.raises(AttributeError, match=r"^Reading: x\.nonsense is neither one of its letters nor one of "):
        built(runner, step_size=measuring("nonsense"))


@pytest.mark.parametrize("letter", ["u", "g", "p", "raw", "old"])
@pytest.mark.parametrize("direction", [directions.Adam(), directions.Gradient()], ids=lambda d: d.name)
def test_letters_of_elements_are_not_in_a_decision(direction: Direction, letter: str) -> None:
    with pytest.raises(AttributeError, match=rf"^Reading: c\.{letter} exists only in sweeps.*'measure'"):
        built(direction=direction, step_size=deciding(letter))


@pytest.mark.parametrize("letter", ["loss", "ids"])
def test_letters_of_decisions_are_not_in_a_sweep(runner: str, letter: str) -> None:
    with pytest.raises(AttributeError, match=rf"^Reading: x\.{letter} exists only in 'decide'"):
        built(runner, step_size=measuring(letter))


@pytest.mark.parametrize("verb", ["unit", "accumulate", "weight", "scale", "bias", "factor", "remember"])
def test_a_letter_that_does_not_exist_in_any_verb(runner: str, verb: str) -> None:
    """Also in those that nothing here asks for: the next step size may."""

    def body(self: Any, x: Place) -> Any:
        return x.nonsense

    direction = type("Reading", (Along,), {verb: body})()
    with pytest.raises(AttributeError, match=r"^Reading: x\.nonsense is neither one of its letters nor one of "):
        built(runner, direction=direction)


def test_the_kinds_of_what_verbs_write(runner: str) -> None:
    class NumberInSweep(Along):
        n = number(0.0)

        def accumulate(self, x: Place) -> None:
            x.n = 1.0

    class SlotInDecision(Rate):
        q = slot("q")

        def decide(self, c: Place) -> None:
            c.q = 1.0

    class OptionInDecision(Rate):
        def decide(self, c: Place) -> None:
            c.lr = 1.0

    with pytest.raises(AttributeError, match=r"^NumberInSweep: x\.n is not one of its slots, so it cannot be written"):
        built(runner, direction=NumberInSweep())
    with pytest.raises(AttributeError, match=r"^SlotInDecision: c\.q is not one of its numbers, so it cannot be "):
        built(runner, step_size=SlotInDecision())
    with pytest.raises(AttributeError, match=r"^OptionInDecision: c\.lr is not one of its numbers, so it cannot be "):
        built(runner, step_size=OptionInDecision())


@pytest.mark.parametrize("verb", ["unit", "scale", "bias"])
def test_what_is_asked_for_at_every_mention_writes_nothing(runner: str, verb: str) -> None:
    """x.u is evaluated anew at each mention, so a slot that `unit` wrote would be written any number of times."""

    def body(self: Any, x: Place) -> Any:
        x.m = x.m + x.g
        return x.g

    direction = type("Writing", (Along,), {"m": slot("mean"), verb: body})()
    with pytest.raises(AttributeError, match=rf"^Writing: x\.m cannot be written in '{verb}'.*'remember'"):
        built(runner, direction=direction)


# ---------------------------------------------------------------- steps that are not added


class Multiplicative(Iterate):
    """p <- p / (1 + size u p), which is no step of the length that a rule has in mind."""

    def move(self, x: Place) -> None:
        x.p = x.p / (1.0 + x.size * x.u * x.p)


BY_THE_LOSS: dict[str, Callable[[], StepSize]] = {
    "MoMo": step_sizes.MoMo,
    "SPS": step_sizes.SPS,
    "DecSPS": step_sizes.DecSPS,
    "SP": step_sizes.SP,
    "NGN": step_sizes.NGN,
    "ALIG": step_sizes.ALIG,
    "TAPS": lambda: step_sizes.TAPS(samples=3),
    "MOTAPS": lambda: step_sizes.MOTAPS(samples=3),
}


@pytest.mark.parametrize("rule", BY_THE_LOSS)
def test_rules_with_a_model_of_the_loss_need_a_step_that_is_added(rule: str) -> None:
    parts: dict[str, Any] = {"direction": directions.Gradient(), "step_size": BY_THE_LOSS[rule]()}
    with pytest.raises(TypeError, match=rf"^{rule} cannot use Multiplicative: it needs 'additive' \(.*Use .*Plain"):
        built(iterate=Multiplicative(), **parts)
    for iterate in (iterates.Plain(), iterates.ScheduleFree(), iterates.Mechanic(), Moves()):
        assert built(iterate=iterate, **parts)


def test_a_rate_of_the_user_goes_with_any_step(runner: str) -> None:
    optimizer = built(runner, direction=Along(), step_size=Rate(1.0), iterate=Multiplicative())
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.tensor([1.0, 3.0], dtype=torch.float64)
    optimizer.step()
    assert p.tolist() == [0.5, 0.25]


# ---------------------------------------------------------------- summands that are constant


class Counting(Rate):
    """Sums of what is the same for all elements."""

    ones = number(0.0)
    twos = number(0.0)
    rates = number(0.0)
    squares = number(0.0)
    own = number(0.0, each=True)

    def measure(self, x: Place) -> tuple[Any, ...]:
        return dot(1.0, 1.0), 2.0, dot(x.lr, 1.0), dot(x.t, x.k), each(dot(1.0, 1.0))

    def decide(self, c: Place, ones: Any, twos: Any, rates: Any, squares: Any, own: Any) -> None:
        c.ones, c.twos, c.rates, c.squares, c.own = ones, twos, rates, squares, own


def test_a_constant_summand_counts_the_elements(runner: str) -> None:
    sizes = (3, 70001)  # the second is more than one block of memory
    weights = [nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in sizes]
    optimizer = untuned.compose(weights, direction=Along(), step_size=Counting(0.25), execution=runner)
    for k in (1, 2):
        for p in weights:
            p.grad = torch.ones_like(p)
        optimizer.step()
        numbers = optimizer.metrics()
        n = sum(sizes)
        assert [numbers[key] for key in ("ones", "twos", "rates", "squares")] == [n, 2 * n, n / 4, n * k * k]
        assert [float(optimizer.state[p]["own"]) for p in weights] == [*sizes]


class OneConstant(Rate):
    """One summand, not in a tuple, and nothing else in the sweep."""

    n = number(0.0)

    def measure(self, x: Place) -> Any:
        return dot(1.0, 1.0)

    def decide(self, c: Place, ones: Any) -> None:
        c.n = ones


def test_a_constant_alone(runner: str) -> None:
    optimizer = built(runner, direction=Along(), step_size=OneConstant())
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.metrics()["n"] == 2
    assert p.tolist() == [0.9, 0.9]


# ---------------------------------------------------------------- what a direction keeps for its next step


class Gain(Direction):
    """u = g (1 + sign(g) m / 4), m being the average before this gradient: as AdaRem without its largest element."""

    m = slot("mean")

    def unit(self, x: Place) -> Any:
        return x.g * (1.0 + sign(x.g) * x.m / 4.0)

    def remember(self, x: Place) -> None:
        x.m = 0.9 * x.m + 0.1 * x.g


class GainOfTwoSlots(Direction):
    """The same without `remember`, at the price of a slot."""

    m = slot("mean")
    before = slot("before")

    def accumulate(self, x: Place) -> None:
        x.before, x.m = x.m, 0.9 * x.m + 0.1 * x.g

    def unit(self, x: Place) -> Any:
        return x.g * (1.0 + sign(x.g) * x.before / 4.0)


class Late(Direction):
    """u = the gradient of the step before, which does not mention the one of this step."""

    m = slot("previous")

    def unit(self, x: Place) -> Any:
        return x.m

    def remember(self, x: Place) -> None:
        x.m = x.g


class LionThatRemembers(Direction):
    """Lion as it is printed: arXiv 2302.06675, Algorithm 2."""

    betas: tuple[float, float] = hyper(default=(0.9, 0.99), within="[0, 1)")
    m = slot("exp_avg")

    def unit(self, x: Place) -> Any:
        return sign(x.beta1 * x.m + (1 - x.beta1) * x.g)

    def remember(self, x: Place) -> None:
        x.m = x.beta2 * x.m + (1 - x.beta2) * x.g


STEPS, RESUMED = 12, 5
STARTS = [np.array([3.0, -4.0, 0.5]), np.array([[1.0, 2.0], [-2.0, 7.0]])]
SCALES = [np.array([1.0, 0.25, 2.0]), np.array([[0.5, 1.0], [1.5, 0.125]])]
Array = Any


def loss_and_gradients(x: list[Array]) -> tuple[float, list[Array]]:
    """1/2 sum h (x - 1)^2, h being the scales."""
    loss = sum(float((h * (a - 1) ** 2).sum()) for h, a in zip(SCALES, x, strict=True)) / 2
    return loss, [h * (a - 1) for h, a in zip(SCALES, x, strict=True)]


def trained(runner: str, resumed: bool, **parts: Any) -> list[list[Array]]:
    """The weights after every step; `resumed`: the last steps are those of another optimizer, from a state dict."""
    weights = [nn.Parameter(torch.tensor(a)) for a in STARTS]

    def build() -> untuned.Optimizer:
        return untuned.compose(weights, **copy.deepcopy(parts), execution=runner)

    optimizer, seen = build(), []
    for k in range(STEPS):
        if resumed and k == RESUMED:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = build()
            optimizer.load_state_dict(saved)
        loss, grads = loss_and_gradients([p.detach().numpy() for p in weights])
        for p, g in zip(weights, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step(loss=loss)
        seen.append([p.detach().numpy().copy() for p in weights])
    return seen


def total(a: list[Array], b: list[Array]) -> float:
    return sum(float((q * r).sum()) for q, r in zip(a, b, strict=True))


def fixed(k: int, loss: float, g: list[Array], u: list[Array]) -> float:
    return 0.1


def sps(k: int, loss: float, g: list[Array], u: list[Array]) -> float:
    """arXiv 2002.10542, equation 3, with the cap 0.5 and c = 1/2."""
    slope = total(g, u)
    return 0.5 * min(loss / (0.5 * 0.5 * slope), 1.0) if slope > 0 else 0.0


def sp(k: int, loss: float, g: list[Array], u: list[Array]) -> float:
    """arXiv 2106.11851, equation 3, relaxed by 0.5."""
    return 0.5 * loss / total(g, u)


RULES: dict[str, tuple[Callable[..., float], Callable[[], StepSize]]] = {
    "fixed": (fixed, lambda: step_sizes.Fixed(0.1)),
    "sps": (sps, lambda: step_sizes.SPS(0.5)),
    "sp": (sp, lambda: step_sizes.SP(0.5)),
}


def gain(m: Array, g: Array) -> Array:
    return g * (1 + np.sign(g) * m / 4)


def loop(
    size: Callable[..., float],
    unit: Callable[[Array, Array], Array],
    remember: Callable[[Array, Array], Array],
    averaged: bool = False,
    coupled: float = 0.0,
    decoupled: float = 0.0,
) -> list[list[Array]]:
    """The weights after every step; `averaged`: at the point y of Schedule-Free (beta = 0.9), weights rate^2."""
    y = [a.copy() for a in STARTS]
    z, x, m = [a.copy() for a in y], [a.copy() for a in y], [0.0 * a for a in y]
    seen, weights, largest = [], 0.0, 0.0
    for k in range(1, STEPS + 1):
        loss, g = loss_and_gradients(y)
        loss += coupled * total(y, y) / 2
        g = [a + coupled * b for a, b in zip(g, y, strict=True)]
        u = [unit(a, b) for a, b in zip(m, g, strict=True)]
        eta = size(k, loss, g, u)
        z = [a - eta * b - eta * decoupled * c for a, b, c in zip(z, u, y, strict=True)]
        m = [remember(a, b) for a, b in zip(m, g, strict=True)]
        largest = max(largest, eta)
        weights += largest**2
        c = largest**2 / weights if weights > 0 else 0.0
        x = [(1 - c) * a + c * b for a, b in zip(x, z, strict=True)]
        y = [0.1 * a + 0.9 * b for a, b in zip(z, x, strict=True)] if averaged else [a.copy() for a in z]
        seen.append(y)
    return seen


def assert_equal(ours: list[list[Array]], theirs: list[list[Array]], tolerance: float = 1e-14) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for q, r in zip(a, b, strict=True):
            np.testing.assert_allclose(q, r, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "schedule_free"])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_remembered_is_from_the_step_before(runner: str, rule: str, averaged: bool, resumed: bool) -> None:
    size, step_size = RULES[rule]
    wanted = loop(size, gain, lambda m, g: 0.9 * m + 0.1 * g, averaged)
    iterate = iterates.ScheduleFree(measure_at="y") if averaged else iterates.Plain()  # as the loop does
    parts: dict[str, Any] = {"step_size": step_size(), "iterate": iterate, "decay": Decoupled()}
    assert_equal(trained(runner, resumed, direction=Gain(), **parts), wanted)
    without = loop(size, lambda m, g: g, lambda m, g: m, averaged)
    assert np.abs(without[-1][0] - wanted[-1][0]).max() > 1e-6  # the memory matters


@pytest.mark.parametrize("step_size", [step_sizes.DoG(reps_rel=0.1), step_sizes.DecSPS(0.5), step_sizes.SPS(0.5)])
@pytest.mark.parametrize("iterate", [iterates.Plain(), iterates.Mechanic(s_init=0.1)], ids=lambda i: i.name)
def test_remembering_is_a_second_slot(step_size: StepSize, iterate: Iterate) -> None:
    """In one to three sweeps."""
    parts = {"step_size": step_size, "iterate": iterate}
    one, two = (trained("reference", False, direction=d, **parts) for d in (Gain(), GainOfTwoSlots()))
    assert_equal(one, two)


@pytest.mark.parametrize("rule", ["fixed", "sps"])
def test_the_gradient_that_is_remembered_holds_the_decay_of_the_weights_before_the_step(runner: str, rule: str) -> None:
    size, step_size = RULES[rule]
    parts = {"step_size": step_size(), "decay": Coupled(0.5)}
    wanted = loop(size, lambda m, g: m, lambda m, g: g, coupled=0.5)
    assert_equal(trained(runner, False, direction=Late(), **parts), wanted)


@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.0)], ids=str)
def test_lion_as_it_is_printed(runner: str, betas: tuple[float, float], resumed: bool) -> None:
    b1, b2 = betas
    wanted = loop(
        fixed, lambda m, g: np.sign(b1 * m + (1 - b1) * g), lambda m, g: b2 * m + (1 - b2) * g, decoupled=0.25
    )
    parts = {"step_size": step_sizes.Fixed(0.1), "decay": Decoupled(0.25)}
    assert_equal(trained(runner, resumed, direction=LionThatRemembers(betas), **parts), wanted)
    if b2 > 0:
        assert_equal(trained(runner, resumed, direction=directions.Lion(betas), **parts), wanted)


def test_a_skipped_step_is_not_remembered(runner: str) -> None:
    optimizer = built(runner, direction=Gain(), step_size=step_sizes.Fixed(0.1))
    (p,) = optimizer.param_groups[0]["params"]
    for g in (1.0, float("nan")):
        p.grad = torch.full_like(p, g)
        optimizer.step()
    assert optimizer.state[p]["mean"].tolist() == [0.1, 0.1]
    assert p.tolist() == [0.9, 0.9]


def test_a_tensor_that_rests_remembers_nothing(runner: str) -> None:
    weights = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    groups: list[Any] = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.0}]
    optimizer = untuned.compose(groups, direction=Gain(), step_size=step_sizes.SPS(0.5), execution=runner)
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=1.0)
    assert optimizer.state[weights[0]]["mean"].tolist() == [0.1, 0.1]
    assert "mean" not in optimizer.state[weights[1]] or not optimizer.state[weights[1]]["mean"].any()


def test_an_option_is_read_from_the_place_and_not_from_the_part(runner: str) -> None:
    """self.eps would be one value for all groups, whatever they say."""

    class Misread(Along):
        eps: float = hyper(default=0.5, within="(0, inf)")

        def unit(self, x: Place) -> Any:
            return x.g * self.eps

    with pytest.raises(TypeError, match=r"the verb 'unit' of Misread .*OptionOfGroups.*x\.lr, not self\.lr"):
        built(runner, direction=Misread())


def test_a_field_without_a_declaration() -> None:
    with pytest.raises(TypeError, match=r"^Undeclared: eps must be declared by hyper"):

        class Undeclared(Along):
            eps: float = 1e-8


def test_a_choice_by_an_option_of_the_group_is_made_in_both_executions(runner: str) -> None:
    class Chosen(Along):
        power: float = hyper(default=1.0, within="(0, inf)")

        def unit(self, x: Place) -> Any:
            return where(x.power == 1.0, x.g, abs(x.g) ** x.power)

    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    w.grad = torch.tensor([0.5, 0.25], dtype=torch.float64)
    untuned.compose([w], direction=Chosen(), step_size=Rate(1.0), execution=runner).step()
    assert w.tolist() == [0.5, 0.75]


def test_a_late_gradient_with_decay_of_weights_that_moved() -> None:
    """Mechanic moves the weights before the last sweep, in which Lion remembers g + lambda p."""
    with pytest.raises(TypeError, match=r"^Lion cannot use Mechanic with Coupled: decay the weights"):
        built(direction=directions.Lion(), iterate=iterates.Mechanic(), decay=Coupled(0.1))
    assert built(direction=directions.Lion(), iterate=iterates.Mechanic(), decay=Decoupled(0.1))


@pytest.mark.parametrize(("scope", "letter"), [("row", "t"), ("row", "rho"), ("group", "rho"), ("model", "rho")])
def test_letters_that_a_decision_of_some_scopes_has_not(scope: str, letter: str) -> None:
    rule = type("Reading", (type(deciding(letter)),), {"scope": scope})()
    with pytest.raises(AttributeError, match=f"letter '{letter}' does not exist here"):
        built(step_size=rule)


def test_rho_is_kept_for_directions_that_correct_only() -> None:
    class Weighed(Rate):
        def size(self, x: Place) -> tuple[Any, Any]:
            return x.lr / x.rho, x.lr

    assert built(direction=directions.Momentum(correct=True), step_size=Weighed())
    with pytest.raises(AttributeError, match="letter 'rho' does not exist here: the sum of the weights in m"):
        built(direction=directions.Momentum(), step_size=Weighed())
