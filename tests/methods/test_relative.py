"""Steps in proportion to the weights: the step size alone, RelativeMuon, and Muon on kernels of convolutions."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import untuned
from untuned.directions import Adam, Gradient, Momentum, Muon
from untuned.step_sizes import Fixed, Relative
from untuned.testing import oracles
from untuned.weight_decay import Decoupled

executions = pytest.mark.parametrize("execution", ["reference", "native"])
STEPS = 15
# Two matrices, a tall table and a wide one, a matrix of one row, one of one column, a kernel, two vectors, a scalar.
SHAPES = [(4, 6), (5, 3), (20, 2), (2, 19), (1, 4), (3, 1), (3, 2, 2, 2), (5,), (1,), ()]
_rng = np.random.default_rng(3)
START = [_rng.normal(size=shape) * 0.5**i for i, shape in enumerate(SHAPES)]  # of sizes of their own
NOISE = [[_rng.normal(size=shape) for shape in SHAPES] for _ in range(STEPS)]


def problem(x: list[np.ndarray], k: int) -> tuple[float, list[np.ndarray]]:
    """The sum of log cosh(x - c_k), of batch k."""
    errors = [a - b for a, b in zip(x, NOISE[k - 1], strict=True)]
    return sum(float(np.log(np.cosh(e)).sum()) for e in errors), [np.tanh(e) for e in errors]


def parameters(start: Any = START) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(a, dtype=torch.float64)) for a in start]


def follow(optimizer: untuned.Optimizer, params: list[nn.Parameter], steps: int = STEPS) -> list[list[np.ndarray]]:
    points = []
    for k in range(1, steps + 1):
        _, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        points.append([p.detach().numpy().copy() for p in params])
    return points


def assert_near(ours: list[list[np.ndarray]], theirs: list[list[np.ndarray]], tolerance: float = 1e-11) -> None:
    """Tensor by tensor, within a part of the way that each has gone."""
    for i, start in enumerate(START):
        way = abs(theirs[-1][i] - start).max()
        assert way > 1e-5
        for a, b in zip(ours, theirs, strict=True):
            assert abs(a[i] - b[i]).max() <= tolerance * way


def stepped(optimizer: untuned.Optimizer, *gradients: Any) -> None:
    """One step with these gradients, for all parameters in order."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.as_tensor(g, dtype=p.dtype).expand_as(p).clone()
    optimizer.step()


def rms(*tensors: Any) -> float:
    return float(torch.cat([torch.as_tensor(t).detach().double().flatten() for t in tensors]).square().mean().sqrt())


def weight(*values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


# ---------------------------------------------------------------- against the oracles


@executions
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.03, "weight_decay": 0.2},
        {"own": 0.0},
        {"own": 0.3, "floor": 0.5},
        {"floor": 0.0},
        {"floor": 1.0, "least": 5.0},
        {"momentum": 0.8},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_the_step_size_follows_its_oracle(base: Any, options: dict[str, Any], execution: str) -> None:
    momentum = options.get("momentum", 0.0)
    heavy_ball = Momentum(momentum) if momentum else Gradient()
    direction = heavy_ball if base == "sgd" else Adam((momentum, 0.99))
    rule = Relative(**{k: v for k, v in options.items() if k in ("lr", "own", "floor", "least")})
    params, decay = parameters(), Decoupled(options.get("weight_decay", 0.0))
    groups = [{"params": params[::2]}, {"params": params[1::2], "lr": 0.02}]
    if momentum:  # the second group has a share of its own, too
        groups[1] |= {"own": 0.25}
        options = options | {"own": [0.25 if i % 2 else 1.0 for i in range(len(SHAPES))]}
    ours = follow(untuned.compose(groups, direction, rule, decay=decay, execution=execution), params)
    second: Any = [{"indices": [*range(1, len(SHAPES), 2)], "lr": 0.02}]
    beside = {"betas": (momentum, 0.99)} if base == "adam" else {}
    theirs, _ = oracles.relative(START, problem, STEPS, base=base, groups=second, **beside, **options)
    assert_near(ours, theirs)


@executions
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02},
        {"weight_decay": 0.3},
        {"weight_decay": 0.0, "momentum": 0.0},
        {"betas": (0.5, 0.9), "ns_steps": 2},
    ],
    ids=str,
)
def test_relative_muon_follows_its_oracle(options: dict[str, Any], execution: str) -> None:
    params, options = parameters(), {"weight_decay": 0.01} | options
    groups = [{"params": params[:4]}, {"params": params[4:], "lr": 0.07}]
    optimizer = untuned.RelativeMuon(groups, execution=execution, **options)
    second: Any = [{"indices": [*range(4, len(SHAPES))], "lr": 0.07}]
    theirs, scalars = oracles.relative_muon(START, problem, STEPS, groups=second, **options)
    assert_near(follow(optimizer, params), theirs)
    assert optimizer.metrics()["rms_of_model"] == pytest.approx(scalars["rms_of_model"][-1], rel=1e-12)


# ---------------------------------------------------------------- closed forms of the step size


@executions
def test_a_direction_of_ones_moves_by_lr_times_the_size(execution: str) -> None:
    start = [1.0, -2.0, 3.0]
    w = weight(*start)
    stepped(untuned.compose([w], Gradient(), Relative(lr=0.25), execution=execution), 1.0)
    assert w.tolist() == pytest.approx([a - 0.25 * (14 / 3) ** 0.5 for a in start], rel=1e-14)


@executions
def test_every_tensor_has_the_size_of_its_own_weights(execution: str) -> None:
    start = weight(3.0, 4.0), weight(0.5), nn.Parameter(torch.tensor([[1.0, 7.0]]))
    params = [nn.Parameter(p.detach().clone()) for p in start]
    stepped(untuned.compose(params, Gradient(), Relative(lr=0.1), execution=execution), 1.0, -1.0, 1.0)
    whole = rms(*start)
    for p, old, sign in zip(params, start, (1, -1, 1), strict=True):
        size = max(rms(old), 0.1 * whole)
        assert torch.allclose(p, old - sign * 0.1 * size, rtol=1e-6 if p.dtype == torch.float32 else 1e-14, atol=0)


@executions
def test_a_tensor_of_zeros_moves_by_a_share_of_the_model(execution: str) -> None:
    for floor in (0.1, 0.75):
        w, zeros = weight(3.0, -3.0, 3.0), weight(0.0)
        stepped(untuned.compose([w, zeros], Gradient(), Relative(lr=0.2, floor=floor), execution=execution), 1.0, 1.0)
        assert zeros.item() == pytest.approx(-0.2 * floor * (27 / 4) ** 0.5, rel=1e-14)


@executions
@pytest.mark.parametrize("own", [0.0, 0.25, 1.0])
def test_a_group_may_take_the_size_of_the_model(own: float, execution: str) -> None:
    w, v = weight(3.0, -3.0, 3.0), weight(2.0)
    groups = [{"params": [w]}, {"params": [v], "own": own}]
    stepped(untuned.compose(groups, Gradient(), Relative(lr=0.2), execution=execution), 1.0, 1.0)
    model = (31 / 4) ** 0.5
    assert v.item() == pytest.approx(2 - 0.2 * (own * 2 + (1 - own) * model), rel=1e-14)
    assert w.tolist() == pytest.approx([a - 0.2 * 3 for a in (3.0, -3.0, 3.0)], rel=1e-14)


@executions
def test_a_model_of_zeros_moves_by_the_least_size(execution: str) -> None:
    w, v = weight(0.0, 0.0), weight(0.0)
    groups = [{"params": [w]}, {"params": [v], "own": 0.0}]
    rule = Relative(lr=0.5, floor=0.25, least=0.01)
    stepped(untuned.compose(groups, Gradient(), rule, execution=execution), 1.0, 1.0)
    assert w.tolist() == pytest.approx([-0.5 * 0.25 * 0.01] * 2, rel=1e-14)
    assert v.item() == pytest.approx(-0.5 * 0.01, rel=1e-14)


@executions
def test_weights_decay_where_their_step_shrinks_them(execution: str) -> None:
    """By lr weight_decay, which no size scales. The matrix moves against g, which has rank one."""
    start = [[2.0, 2.0], [-2.0, -2.0]], [10.0, 10.0, -10.0, -10.0]
    gradients = [[1.0, -1.0], [1.0, -1.0]], [1.0, -1.0, 1.0, -1.0]
    ends = []
    for decay in (0.0, 0.5):
        params = [weight(*values) for values in start]  # a matrix and a vector
        stepped(untuned.RelativeMuon(params, lr=0.1, weight_decay=decay, execution=execution), *gradients)
        ends.append(params)
    for free, decayed, old, g in zip(*ends, start, gradients, strict=True):
        p = torch.tensor(old, dtype=torch.float64)
        assert torch.equal((free - p).sign(), -torch.tensor(g, dtype=torch.float64))
        assert torch.allclose(free - decayed, 0.05 * p * (p * torch.tensor(g) > 0), rtol=0, atol=1e-14)


def test_weight_decay_has_the_lr_alone() -> None:
    """Where the gradient is 0, Adam's u is 0, and all weights shrink by lr weight_decay, whatever their size."""
    w, v = weight(100.0), weight(0.01)
    optimizer = untuned.RelativeMuon([w, v], lr=0.1, weight_decay=0.5, execution="reference")
    stepped(optimizer, 0.0, 0.0)
    assert [w.item(), v.item()] == pytest.approx([95.0, 0.0095], rel=1e-14)


@executions
def test_resting_tensors_are_not_in_the_size_of_the_model(execution: str) -> None:
    w, v, rest = weight(2.0), weight(1.0), weight(100.0)
    groups: list[dict[str, Any]] = [{"params": [w]}, {"params": [v], "own": 0.0}, {"params": [rest], "lr": 0.0}]
    stepped(untuned.compose(groups, Gradient(), Relative(lr=0.1), execution=execution), 1.0, 1.0, 1.0)
    assert v.item() == pytest.approx(1 - 0.1 * 2.5**0.5, rel=1e-14)
    assert rest.item() == 100.0


# ---------------------------------------------------------------- closed forms of the composite


@executions
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6), (3, 2, 2)])
def test_a_matrix_of_rank_one_moves_by_a_fifth_of_lr_times_its_size(shape: Any, execution: str) -> None:
    """m / |m| is its own polar factor: only its one singular value, 1, goes through Newton and Schulz's steps."""
    rng = np.random.default_rng(0)
    start = torch.tensor(rng.normal(size=shape))
    rows, columns = shape[0], start[0].numel()
    g = torch.outer(torch.tensor(rng.normal(size=rows)), torch.tensor(rng.normal(size=columns)))
    s = 1.0
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    w = nn.Parameter(start.clone())
    stepped(untuned.RelativeMuon([w], lr=0.1, weight_decay=0.0, execution=execution), g.view(shape))
    moved = 0.1 * rms(start) * 0.2 * max(rows, columns) ** 0.5 * s * (g / g.norm()).view(shape)
    assert torch.allclose(w.detach(), start - moved, rtol=0, atol=1e-13)
    assert 0.6 < s < 1.3


def test_the_first_step_of_a_vector_is_lr_times_the_size_of_the_model() -> None:
    w, v = nn.Parameter(torch.full((3, 2), 2.0, dtype=torch.float64)), weight(0.0, 1.0)
    optimizer = untuned.RelativeMuon([w, v], lr=0.1, weight_decay=0.0, execution="reference")
    stepped(optimizer, torch.ones(3, 2), [1e-3, -50.0])
    model = (25 / 8) ** 0.5
    assert v.tolist() == pytest.approx([-0.1 * model, 1 + 0.1 * model], rel=1e-11)


# ---------------------------------------------------------------- units


def trained(make: Any, unit: float, loss_unit: float) -> list[Tensor]:
    """The weights of a small network, times 1 / unit, after each step; they are held in other units, as is the loss."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)
    model = nn.Sequential(*layers).double()
    names = [name for name, _ in model.named_parameters()]
    table = nn.Parameter(torch.randn(12, 1, dtype=torch.float64))  # an embedding
    held = [nn.Parameter(unit * p.detach()) for p in (*model.parameters(), table)]
    optimizer = make(held)
    generator = torch.Generator().manual_seed(1)
    points = []
    for _ in range(12):
        x = torch.randn(8, 1, 3, 3, dtype=torch.float64, generator=generator)
        word = torch.randint(12, (8,), generator=generator)
        values = [p / unit for p in held]
        out = torch.func.functional_call(model, dict(zip(names, values[:-1], strict=True)), x)
        loss = loss_unit * (out + values[-1][word] - x.mean((1, 2, 3)).view(8, 1).sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        points.append(torch.cat([p.detach().flatten() / unit for p in held]))
    return points


@executions
@pytest.mark.parametrize(("unit", "loss_unit"), [(1.0, 1000.0), (100.0, 1.0), (0.02, 1.0), (30.0, 7e-3)])
def test_steps_are_the_same_in_all_units(unit: float, loss_unit: float, execution: str) -> None:
    def make(params: Any) -> untuned.Optimizer:
        return untuned.RelativeMuon(params, lr=0.05, weight_decay=0.1, execution=execution)

    here, there = trained(make, 1.0, 1.0), trained(make, unit, loss_unit)
    way = float((here[-1] - here[0]).abs().max())
    assert way > 0.1
    assert max(float((a - b).abs().max()) for a, b in zip(here, there, strict=True)) < 1e-9 * way


@pytest.mark.parametrize(("unit", "loss_unit"), [(100.0, 1.0), (30.0, 7e-3)])
def test_steps_of_adamw_are_not(unit: float, loss_unit: float) -> None:
    """So the test above can fail."""

    def make(params: Any) -> untuned.Optimizer:
        return untuned.AdamW(params, lr=0.05, execution="reference")

    assert float((trained(make, 1.0, 1.0)[-1] - trained(make, unit, loss_unit)[-1]).abs().max()) > 0.1


# ---------------------------------------------------------------- how groups are divided


class Net(nn.Module):
    """One tensor of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 4)
        self.image = nn.Conv2d(2, 3, 3)
        self.hidden = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 1)


def layout(optimizer: untuned.Optimizer, model: nn.Module) -> dict[str, list[str]]:
    """The names of the parameters in each group, by its label and its share of the tensor's own size."""
    names = {p: name for name, p in model.named_parameters()}
    return {f"{g['label']} {g['own']:g}": [names[p] for p in g["params"]] for g in optimizer.param_groups}


WHOLE = {
    "matrices 1": ["image.weight", "hidden.weight"],
    "rest 1": ["words.weight", "out.weight"],
    "rest 0": ["image.bias", "hidden.bias", "norm.weight", "norm.bias", "out.bias"],
}


@pytest.mark.parametrize(
    "give", [lambda m: m.parameters(), lambda m: [*m.parameters()], lambda m: m.named_parameters()]
)
def test_a_model_is_divided_by_the_kinds_of_its_tensors(give: Any) -> None:
    model = Net()
    optimizer = untuned.RelativeMuon(give(model))
    assert layout(optimizer, model) == WHOLE
    if "param_names" in optimizer.param_groups[0]:
        assert [group["param_names"] for group in optimizer.param_groups] == [*WHOLE.values()]
    assert {*optimizer.state_dict()["state"][0]} == {"step", "rms", "momentum_buffer"}


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((16, 2), "matrices 1"),
        ((17, 2), "rest 1"),
        ((2, 16), "matrices 1"),
        ((2, 17), "rest 1"),
        ((24, 3), "matrices 1"),
        ((25, 3), "rest 1"),
        ((3, 4, 6), "matrices 1"),
        ((3, 5, 5), "rest 1"),  # a row per slice along the first dimension: 3 of 25
        ((1, 5), "rest 1"),
        ((5, 1), "rest 1"),
        ((4, 1, 1), "rest 1"),
        ((4, 1, 2), "matrices 1"),
        ((0, 3), "rest 1"),
        ((3, 0), "rest 1"),
        ((3,), "rest 0"),
        ((), "rest 0"),
    ],
    ids=str,
)
def test_what_a_tensor_is(shape: Any, kind: str) -> None:
    p = nn.Parameter(torch.ones(shape))
    [group] = untuned.RelativeMuon([p]).param_groups
    assert f"{group['label']} {group['own']:g}" == kind
    [group] = untuned.RelativeMuon([{"params": p}]).param_groups  # a tensor alone, as torch takes it
    assert f"{group['label']} {group['own']:g}" == kind


def test_options_of_a_group_are_those_of_all_that_it_becomes() -> None:
    model = Net()
    hidden, others = [*model.hidden.parameters()], [*model.words.parameters(), *model.norm.parameters()]
    groups = [{"params": hidden, "lr": 0.03, "weight_decay": 0.0, "name": "hidden"}, {"params": others, "own": 0.5}]
    optimizer = untuned.RelativeMuon(groups, lr=0.2, weight_decay=0.1)
    found = [(g["label"], g["own"], g["lr"], g["weight_decay"], g.get("name")) for g in optimizer.param_groups]
    assert found == [
        ("matrices", 1.0, 0.03, 0.0, "hidden"),
        ("rest", 0.0, 0.03, 0.0, "hidden"),
        ("rest", 0.5, 0.2, 0.1, None),  # own is the user's, for the embedding as for the norm
        ("rest", 0.5, 0.2, 0.1, None),
    ]
    assert groups[0]["params"] is hidden and set(groups[0]) == {"params", "lr", "weight_decay", "name"}  # as they were


def test_create_decays_biases_and_norms_too() -> None:
    model = Net()
    optimizer = untuned.create(model, "relative_muon", weight_decay=0.3)
    assert layout(optimizer, model) == WHOLE
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.3]


def test_a_group_with_a_label_stays_as_it_is() -> None:
    model = Net()
    groups = [
        {"params": model.words.weight, "label": "matrices"},
        {"params": [*model.out.parameters()], "label": "rest"},
    ]
    optimizer = untuned.RelativeMuon(groups)
    assert layout(optimizer, model) == {"matrices 1": ["words.weight"], "rest 1": ["out.weight", "out.bias"]}
    with pytest.raises(ValueError, match="RelativeMuon: the 'label' of a group must be one of 'matrices', 'rest'"):
        optimizer.add_param_group({"params": [*model.hidden.parameters()], "label": "vectors"})
    with pytest.raises(ValueError, match=r"RelativeMuon: Muon takes matrices .*, not a tensor of shape \(5,\)"):
        optimizer.add_param_group({"params": [*model.hidden.parameters()], "label": "matrices"})
    assert len(optimizer.param_groups) == 2


@executions
def test_a_group_that_is_added_in_the_middle(execution: str) -> None:
    torch.manual_seed(0)
    model = Net().double()
    late = [*model.hidden.parameters(), *model.norm.parameters()]
    optimizer = untuned.RelativeMuon(
        [p for p in model.parameters() if not any(p is q for q in late)], execution=execution
    )
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        optimizer.step()

    step()
    before = {p: p.detach().clone() for p in model.parameters()}
    optimizer.add_param_group({"params": late, "lr": 0.05})
    assert [(g["label"], g["own"], g["lr"]) for g in optimizer.param_groups[3:]] == [
        ("matrices", 1.0, 0.05),
        ("rest", 0.0, 0.05),
    ]
    step()
    assert optimizer.metrics()["rms_of_model"] == pytest.approx(rms(*before.values()), rel=1e-12)
    for p in model.parameters():
        assert float(optimizer.state[p]["rms"]) == pytest.approx(rms(before[p]), rel=1e-12)
        assert (p != before[p]).any()


@pytest.mark.parametrize("wrong", [[3], "ab", {}, [None], [()], [("a",)], [("a", 3)]], ids=str)
def test_what_is_no_tensor_is_refused_as_everywhere(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        untuned.AdamW(wrong)
    with pytest.raises(theirs.type) as ours:
        untuned.RelativeMuon(wrong)
    assert str(ours.value).replace("RelativeMuon", "") == str(theirs.value).replace("AdamW", "")


def test_a_lazy_module_must_have_its_shapes_first() -> None:
    with pytest.raises(ValueError, match="uninitialized parameter"):
        untuned.RelativeMuon(nn.LazyLinear(3).parameters())


def test_what_is_wrong_with_a_group_is_refused_before_any_is_added() -> None:
    optimizer = untuned.RelativeMuon(Net().parameters())
    mixed = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    for wrong in ({"lr": -1.0}, {"own": 2.0}, {"betas": (0.9, 2.0)}, {"clip_grad_norm": 3.0}):
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group({"params": mixed, **wrong})
        assert len(optimizer.param_groups) == 3
    with pytest.raises(ValueError, match="given twice"):
        optimizer.add_param_group({"params": [*mixed, mixed[1]]})
    with pytest.raises(ValueError, match="momentum is an option of the optimizer, not of a group; a group may have"):
        optimizer.add_param_group({"params": mixed[1:], "momentum": 0.5})
    assert len(optimizer.param_groups) == 3


def test_options_of_one_direction_go_to_the_tensors_that_have_it() -> None:
    mixed = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    matrices, rest = untuned.RelativeMuon([{"params": mixed, "momentum": 0.5, "betas": (0.6, 0.7)}]).param_groups
    assert matrices["momentum"] == 0.5 and "betas" not in matrices
    assert rest["betas"] == (0.6, 0.7) and "momentum" not in rest


def test_an_empty_group_stays_for_matrices_to_come() -> None:
    optimizer = untuned.RelativeMuon([{"params": []}, {"params": [weight(1.0)]}], execution="reference")
    assert [(g["label"], len(g["params"])) for g in optimizer.param_groups] == [("matrices", 0), ("rest", 1)]
    late = nn.Parameter(torch.eye(3, dtype=torch.float64))
    optimizer.param_groups[0]["params"].append(late)
    stepped(optimizer, torch.eye(3), 1.0)
    assert "momentum_buffer" in optimizer.state[late] and (late != torch.eye(3)).any()


@executions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_unbroken_one_bitwise(dtype: torch.dtype, execution: str) -> None:
    torch.manual_seed(0)
    model = Net().to(dtype)
    groups = [{"params": [*model.hidden.parameters()], "lr": 0.03}, {"params": [*model.words.parameters()]}]
    groups.append({"params": [*model.image.parameters(), *model.norm.parameters(), *model.out.parameters()]})
    place = {p: i for i, p in enumerate(model.parameters())}
    places = [[place[p] for p in group["params"]] for group in groups]

    def rebuilt(other: nn.Module) -> untuned.Optimizer:
        params = [*other.parameters()]
        again = [{**group, "params": [params[i] for i in where]} for group, where in zip(groups, places, strict=True)]
        return untuned.RelativeMuon(again, execution=execution)

    def train(model: nn.Module, optimizer: untuned.Optimizer, steps: range) -> None:
        for k in steps:
            generator = torch.Generator().manual_seed(k)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            optimizer.step()

    def values(model: nn.Module, optimizer: untuned.Optimizer) -> list[Tensor]:
        return [v for p in model.parameters() for v in (p.detach(), *optimizer.state[p].values())]

    optimizer = rebuilt(model)
    train(model, optimizer, range(4))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    other = copy.deepcopy(model)
    resumed = rebuilt(other)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    train(model, optimizer, range(4, 8))
    train(other, resumed, range(4, 8))
    assert all(map(torch.equal, values(model, optimizer), values(other, resumed)))
    assert optimizer.metrics() == resumed.metrics()


# ---------------------------------------------------------------- Muon on kernels of convolutions


@executions
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "adjust": "match_rms_adamw"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (40, 3, 2, 2), (4, 5, 2), (3, 2, 2, 2, 2)], ids=str)
def test_a_kernel_is_the_matrix_of_its_flattened_rows_bitwise(
    shape: Any, dtype: torch.dtype, options: dict[str, Any], execution: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator).to(dtype)
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    both = [
        untuned.compose([p], Muon(**options), Fixed(0.1), decay=Decoupled(0.1), execution=execution)
        for p in (kernel, matrix)
    ]
    for _ in range(4):
        kernel.grad = torch.randn(shape, generator=generator).to(dtype)
        matrix.grad = kernel.grad.flatten(1).clone()
        for optimizer in both:
            optimizer.step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach())
    assert (kernel.detach() != start).any()
    held = [optimizer.state[p]["momentum_buffer"] for optimizer, p in zip(both, (kernel, matrix), strict=True)]
    assert held[0].shape == shape and torch.equal(held[0].flatten(1), held[1])


@executions
def test_the_memory_format_of_a_kernel_changes_nothing(execution: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((6, 2, 3, 3), generator=generator, dtype=torch.float64)
    plain, last = nn.Parameter(start.clone()), nn.Parameter(start.clone(memory_format=torch.channels_last))
    assert plain.stride() != last.stride()
    both = [untuned.RelativeMuon([p], execution=execution) for p in (plain, last)]
    for _ in range(4):
        plain.grad = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        last.grad = plain.grad.clone(memory_format=torch.channels_last)
        for optimizer in both:
            optimizer.step()
    assert torch.allclose(plain, last, rtol=0, atol=1e-13)
    assert float((plain.detach() - start).abs().max()) > 0.01


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (8, 64), (12, 3, 2, 2)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_matrix_moves_by_a_fifth_of_lr_times_its_norm_whatever_the_gradient(
    shape: tuple[int, ...], size: float
) -> None:
    """Whatever the gradient; up to the singular values that Newton and Schulz's steps leave, between 0.7 and 1.2."""
    p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    optimizer = untuned.RelativeMuon([p], weight_decay=0.0)
    before = p.detach().clone()
    stepped(optimizer, size * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    share = float((p.detach() - before).norm() / before.norm()) / (0.2 * 0.12)
    assert 0.7 < share < 1.2


def test_with_weights_of_size_one_it_is_torchs_muon() -> None:
    start = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (nn.Parameter(start / start.square().mean().sqrt()) for _ in range(2))
    other = torch.optim.Muon([theirs], 0.12, 0.0, 0.8, nesterov=False, adjust_lr_fn="match_rms_adamw")
    g = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    theirs.grad = g
    other.step()
    stepped(untuned.RelativeMuon([ours], weight_decay=0.0), g)
    moved = float((theirs.detach() - start / start.square().mean().sqrt()).abs().max())
    assert moved > 1e-3
    assert float((ours - theirs).detach().abs().max()) < 1e-2 * moved  # of bfloat16, in which both compute
