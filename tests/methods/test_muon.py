"""Muon beside torch's and its oracles, alone and in partitions; and a direction whose slots are factors of matrices."""

import copy
import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import untuned
from untuned.directions import SNGM, TAM, Adam, Momentum, Muon
from untuned.iterates import Mechanic, ScheduleFree
from untuned.parts import Direction, Place, hyper, slot, sqrt
from untuned.step_sizes import DAdaptation, Fixed, MoMo, Prodigy
from untuned.study.contenders import MODELS
from untuned.testing import oracles
from untuned.testing.oracles.matrix import _newton_schulz
from untuned.weight_decay import Coupled, Decoupled, Proximal

EXECUTIONS = ["reference", "native"]
STEPS = 20
MATRICES, REST = [0, 2, 4], [1, 3]  # a tall, a wide and a square matrix, and two biases
NS = (3.4445, -4.7750, 2.0315)
_rng = np.random.default_rng(7)
START = [_rng.normal(size=shape) for shape in [(4, 3), (4,), (2, 4), (2,), (2, 2)]]


def network_loss(x: Any, k: int) -> torch.Tensor:
    """The loss of a net with one hidden layer on batch k."""
    rng = np.random.default_rng(k)
    inputs, labels = torch.tensor(rng.normal(size=(5, 3))), torch.tensor(np.sign(rng.normal(size=(5, 2))))
    hidden = torch.tanh(inputs @ x[0].T + x[1])
    scores = (hidden @ x[2].T + x[3]) @ x[4].T
    return torch.nn.functional.softplus(-labels * scores).mean()


def problem(x: list[np.ndarray], k: int) -> tuple[float, list[np.ndarray]]:
    points = [torch.tensor(a, requires_grad=True) for a in x]
    loss = network_loss(points, k)
    return loss.item(), [g.numpy() for g in torch.autograd.grad(loss, points)]


def only_matrices(x: list[np.ndarray], k: int) -> tuple[float, list[np.ndarray]]:
    every = [START[i] for i in range(5)]
    for i, a in zip(MATRICES, x, strict=True):
        every[i] = a
    loss, grads = problem(every, k)
    return loss, [grads[i] for i in MATRICES]


def parameters(start: list[np.ndarray], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(a, dtype=dtype)) for a in start]


def train(optimizer: untuned.Optimizer, params: list[nn.Parameter], steps: Any, problem: Any = problem) -> list[Any]:
    """-> the parameters after each step, as NumPy's."""
    points = []
    for k in steps:
        loss, grads = problem([p.detach().double().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g, dtype=p.dtype)
        optimizer.step(loss=loss)
        points.append([p.detach().double().numpy().copy() for p in params])
    return points


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference between two runs, of which the first must have moved."""
    assert max(float(abs(a - b).max()) for a, b in zip(ours[0], ours[-1], strict=True) if a.size) > 1e-3
    pairs = [(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    return max(float(abs(a - b).max(initial=0.0)) for a, b in pairs)


def everything(optimizer: untuned.Optimizer) -> dict[Any, torch.Tensor]:
    found: dict[Any, torch.Tensor] = {}
    for i, group in enumerate(optimizer.param_groups):
        found |= {(i, key): value.clone() for key, value in group.items() if isinstance(value, torch.Tensor)}
        for j, p in enumerate(group["params"]):
            found |= {(i, j, key): value.clone() for key, value in optimizer.state[p].items()}
            found[i, j, "p"] = p.detach().clone()
    return found


def assert_equal(left: dict[Any, torch.Tensor], right: dict[Any, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [key for key in left if left[key].dtype != right[key].dtype or not torch.equal(left[key], right[key])] == []


def saved(optimizer: untuned.Optimizer) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


# ---------------------------------------------------------------- beside torch's

HIDDEN = [shape for shape in dict.fromkeys(MODELS["gpt2"]) if len(shape) == 2]
SMALL = [(max(1, rows // 12), columns // 12) for rows, columns in HIDDEN]  # torch's own step takes minutes on the list
TORCH = [
    {"nesterov": nesterov, "weight_decay": decay, "adjust_lr_fn": adjust}
    for nesterov in (True, False)
    for decay in (0.1, 0.0)
    for adjust in ("original", "match_rms_adamw")
]


def beside_torch(shapes: Any, steps: int, draw: Any, execution: str, momentum: float, options: Any) -> float:
    ours = [nn.Parameter(0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))) for shape in shapes]
    theirs, start = copy.deepcopy(ours), [p.detach().clone() for p in ours]
    muon = Muon(momentum, nesterov=options["nesterov"], adjust=options["adjust_lr_fn"])
    decay = Decoupled(options["weight_decay"])
    optimizer = untuned.compose(ours, muon, Fixed(0.02), decay=decay, execution=execution)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=momentum, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = draw(p.shape, generator)
            q.grad = p.grad.clone()
        optimizer.step()
        other.step()
    assert min(float((p.detach() - a).abs().max()) for p, a in zip(ours, start, strict=True)) > 1e-3
    return max(float((p - q).detach().abs().max()) for p, q in zip(ours, theirs, strict=True))


def normal(shape: Any, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def of_few_bits(shape: Any, generator: torch.Generator) -> torch.Tensor:
    """Halving averages of these are exact in float32, so that nobody rounds before bfloat16 does."""
    return torch.randint(-128, 129, shape, generator=generator) / 128.0


@pytest.mark.parametrize("options", TORCH, ids=str)
def test_steps_are_torchs_on_the_matrices_of_gpt2(options: dict[str, Any]) -> None:
    """Kernels fuse m + take (g - m) into one rounding as torch.lerp does: Newton and Schulz's steps see equal bits."""
    assert beside_torch(SMALL, 6, normal, "native", 0.95, options) <= 1e-6


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("options", TORCH, ids=str)
def test_steps_are_torchs_where_averages_are_exact(options: dict[str, Any], execution: str) -> None:
    assert beside_torch(SMALL, 6, of_few_bits, execution, 0.5, options) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("options", TORCH[:2], ids=str)
def test_steps_are_torchs_on_matrices_of_full_size(options: dict[str, Any]) -> None:
    assert beside_torch(HIDDEN[1:], 2, normal, "native", 0.95, options) <= 1e-6


def test_rounding_of_averages_is_all_that_sets_the_reference_apart() -> None:
    """One step from m = 0 rounds alike; later ones differ by bfloat16's rounding of X, an eighth of a per cent."""
    assert beside_torch(SMALL, 6, normal, "reference", 0.95, TORCH[0]) <= 0.02 * 6 * 2**-7


# ---------------------------------------------------------------- beside the oracles


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "weight_decay": 0.1},
        {"momentum": 0.5, "adjust": "match_rms_adamw"},
        {"ns_steps": 12, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e-3},
        {"momentum": 0.0, "ns_steps": 1},
    ],
    ids=str,
)
def test_muon_follows_its_oracle(options: dict[str, Any], execution: str) -> None:
    start = [START[i] for i in MATRICES]
    params, decay = parameters(start), options.get("weight_decay", 0.0)
    groups = [{"params": [params[0], params[2]]}, {"params": [params[1]], "lr": 0.03}]
    mine = {k: v for k, v in options.items() if k != "weight_decay"}
    optimizer = untuned.compose(groups, Muon(**mine), Fixed(0.1), decay=Decoupled(decay), execution=execution)
    ours = train(optimizer, params, range(1, STEPS + 1), only_matrices)
    theirs = {("adjust_lr_fn" if k == "adjust" else k): v for k, v in ({"weight_decay": 0.0} | options).items()}
    expected, _ = oracles.muon(start, only_matrices, STEPS, lr=0.1, groups=[{"indices": [1], "lr": 0.03}], **theirs)
    assert apart(ours, expected) < 1e-12


def partition(params: list[nn.Parameter], **changes: Any) -> list[dict[str, Any]]:
    """Two groups of matrices, of which `changes` are in the second, and one of the rest."""
    return [
        {"params": [params[0], params[4]], "label": "matrices"},
        {"params": [params[1], params[3]], "label": "rest"},
        {"params": [params[2]], "label": "matrices", **changes},
    ]


def mixed(params: list[nn.Parameter], step_size: Any = None, iterate: Any = None, **options: Any) -> Any:
    changes = options.pop("changes", {})
    direction = {"matrices": Muon(0.9, nesterov=False), "rest": Adam()}
    return untuned.compose(partition(params, **changes), direction, step_size or Fixed(0.1), iterate, **options)


MOMO: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"lr": 50.0},
    {"lr": 50.0, "lb": 0.4, "weight_decay": 0.01},
    {"lr": 0.3, "weight_decay": 0.1, "divide": False},
    {"lr": 0.3, "weight_decay": 0.1, "second": 0.1},
    {"lr": 0.3, "second": 0.0},  # frozen
]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("setting", MOMO, ids=str)
def test_momo_over_a_partition_follows_its_oracle(setting: dict[str, Any], execution: str) -> None:
    options = dict(setting)
    second, decay = options.pop("second", options["lr"]), options.get("weight_decay", 0.0)
    params = parameters(START)
    optimizer = mixed(
        params,
        MoMo(options["lr"], options.get("lb", 0.0)),
        decay=Proximal(decay) if options.get("divide", True) else Decoupled(decay),
        changes={"lr": second},
        execution=execution,
    )
    ours = train(optimizer, params, range(1, STEPS + 1))
    expected, columns = oracles.muon_momo(START, problem, STEPS, groups=[{"indices": [2], "lr": second}], **options)
    assert apart(ours, expected) < 1e-9
    found = optimizer.metrics()
    assert found["theta"] == pytest.approx(columns["theta"][-1], rel=1e-9)
    assert found["loss_avg"] == pytest.approx(columns["loss_average"][-1], rel=1e-12)
    assert found["lr_effective"] == pytest.approx((1 - 0.9**STEPS) * columns["tau"][-1], rel=1e-9)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_momo_on_matrices_alone_follows_its_oracle(execution: str) -> None:
    start = [START[i] for i in MATRICES]
    params = parameters(start)
    optimizer = untuned.compose(params, Muon(0.9, nesterov=False), MoMo(0.05), execution=execution)
    ours = train(optimizer, params, range(1, STEPS + 1), only_matrices)
    assert apart(ours, oracles.muon_momo(start, only_matrices, STEPS, lr=0.05)[0]) < 1e-10


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_fixed_steps_of_a_partition_are_those_of_two_optimizers(execution: str) -> None:
    params = parameters(START)
    optimizer = mixed(params, decay=Decoupled(0.1), changes={"lr": 0.02}, execution=execution)
    ours = train(optimizer, params, range(1, STEPS + 1))
    expected = [np.array(a) for a in START]
    m, v = [0 * a for a in START], [0 * a for a in START]
    for k, found in enumerate(ours, 1):
        _, grads = problem(expected, k)
        for i, g in enumerate(grads):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            lr = 0.02 if i == 2 else 0.1
            if i in MATRICES:
                u = max(1, len(g) / g.shape[1]) ** 0.5 * _newton_schulz(m[i], NS, 5, 1e-7)
            else:
                u = m[i] / (1 - 0.9**k) / (np.sqrt(v[i] / (1 - 0.999**k)) + 1e-8)
            expected[i] = (1 - lr * 0.1) * expected[i] - lr * u
        assert max(abs(a - b).max() for a, b in zip(found, expected, strict=True)) < 1e-11
    moved = [abs(a - b).max() for a, b in zip(START, expected, strict=True)]
    assert min(moved) > 0.1


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_schedule_free_muon_in_numbers(execution: str) -> None:
    start = [START[i] for i in MATRICES]
    params = parameters(start)
    optimizer = untuned.compose(params, Muon(), Fixed(0.1), ScheduleFree(0.8), execution=execution)
    ours = train(optimizer, params, range(1, STEPS + 1), only_matrices)
    x, z, m = copy.deepcopy(start), copy.deepcopy(start), [0 * a for a in start]
    for k in range(1, STEPS + 1):
        _, grads = only_matrices([0.2 * c + 0.8 * a for a, c in zip(x, z, strict=True)], k)
        for i, g in enumerate(grads):
            m[i] = 0.95 * m[i] + 0.05 * g
            u = _newton_schulz(0.95 * m[i] + 0.05 * g, NS, 5, 1e-7)
            z[i] = z[i] - 0.1 * max(1, len(g) / g.shape[1]) ** 0.5 * u
            x[i] = x[i] + (z[i] - x[i]) / k
    expected = [0.2 * c + 0.8 * a for a, c in zip(x, z, strict=True)]
    assert apart([start, ours[-1]], [start, expected]) < 1e-11
    with optimizer.averaged_parameters():
        assert max(abs(p.detach().numpy() - a).max() for p, a in zip(params, x, strict=True)) < 1e-11


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_mechanic_on_muon_in_numbers(execution: str) -> None:
    start = [START[i] for i in MATRICES]
    params = parameters(start)
    iterate = Mechanic(s_init=0.1, decays=(0.9, 0.99))
    ours = train(
        untuned.compose(params, Muon(), Fixed(0.1), iterate, execution=execution),
        params,
        range(1, STEPS + 1),
        only_matrices,
    )
    beta = np.array([0.9, 0.99])
    s, v, wealth, largest, scale = np.zeros(2), np.zeros(2), np.zeros(2), np.full(2, 1e-6), 0.0
    D, m, x = [0 * a for a in start], [0 * a for a in start], copy.deepcopy(start)
    for k in range(1, STEPS + 1):
        _, grads = only_matrices(x, k)
        steps = []
        for i, g in enumerate(grads):
            m[i] = 0.95 * m[i] + 0.05 * g
            u = _newton_schulz(0.95 * m[i] + 0.05 * g, NS, 5, 1e-7)
            steps.append(-0.1 * max(1, len(g) / g.shape[1]) ** 0.5 * u)
        y = [a + b for a, b in zip(x, steps, strict=True)]
        gg, yy = (sum((a * a).sum() for a in these) for these in (grads, y))
        gD, yD = (sum((a * b).sum() for a, b in zip(these, D, strict=True)) for these in (grads, y))
        h = gD + 0.01 * scale * gg**0.5 / (yy**0.5 + 1e-8) * yD
        largest = np.maximum(beta * largest, abs(h))
        v = beta**2 * v + h * h
        wealth = np.maximum(beta * wealth - s * h, 0)
        s = (0.1 * largest / 2 + wealth) / (np.sqrt(v) + 1e-8)
        scale = s.sum()
        D = [a + b for a, b in zip(D, steps, strict=True)]
        x = [a + scale * b for a, b in zip(start, D, strict=True)]
    assert apart([start, ours[-1]], [start, x]) < 1e-10


# ---------------------------------------------------------------- odd gradients, odd matrices, dtypes


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_to_follow_is_no_step(dtype: torch.dtype, execution: str) -> None:
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in [(3, 2), (0, 4), (4, 0), (2, 2)]]
    optimizer = untuned.compose(params, Muon(), Fixed(1.0), execution=execution)
    for p in params:
        p.grad = torch.zeros_like(p)
    params[3].grad = torch.eye(2, dtype=dtype)
    optimizer.step()
    assert torch.equal(params[0].detach(), torch.ones(3, 2, dtype=dtype))
    assert torch.allclose((1 - params[3].detach()).double(), 0.7 * torch.eye(2).double(), atol=0.5)
    before = everything(optimizer)
    params[0].grad[1, 1] = float("nan")
    optimizer.step()
    after = everything(optimizer)
    assert after.pop((0, "skipped")) - before.pop((0, "skipped")) == 1
    assert_equal(before, after)


@pytest.mark.parametrize("slot_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_any_dtypes_of_parameters_and_slots(dtype: torch.dtype, slot_dtype: torch.dtype, execution: str) -> None:
    start = [START[i] for i in MATRICES]
    params, exact = parameters(start, dtype), parameters(start)
    ours = train(
        untuned.compose(params, Muon(), Fixed(0.02), slot_dtype=slot_dtype, execution=execution),
        params,
        range(1, 6),
        only_matrices,
    )
    theirs = train(untuned.compose(exact, Muon(), Fixed(0.02), execution=execution), exact, range(1, 6), only_matrices)
    assert apart(ours, theirs) < 0.05


def test_clipping_maximizing_and_coupled_decay_reach_the_matrix_stage() -> None:
    start = [START[i] for i in MATRICES]
    results = []
    for engine in (True, False):
        params = parameters(start)
        options: dict[str, Any] = {"clip_grad_norm": 0.05, "maximize": True} if engine else {}
        decay = Coupled(0.3) if engine else None
        optimizer = untuned.compose(params, Muon(), Fixed(0.1), decay=decay, execution="reference", **options)

        def changed(x: Any, k: int) -> Any:
            loss, grads = only_matrices(x, k)
            norm = sum((g * g).sum() for g in grads) ** 0.5
            return loss, [-g * min(1, 0.05 / (norm + 1e-6)) + 0.3 * a for g, a in zip(grads, x, strict=True)]

        results.append(train(optimizer, params, range(1, 6), only_matrices if engine else changed))
    assert apart(*results) < 1e-12


# ---------------------------------------------------------------- refusals


def test_other_tensors_than_matrices_are_refused() -> None:
    told = r"^compose: Muon takes matrices and kernels of convolutions, not a tensor of shape \(4,\)\. Give it the"
    with pytest.raises(ValueError, match=told):
        untuned.compose(parameters(START), Muon())
    optimizer = untuned.compose([nn.Parameter(torch.ones(2, 2))], Muon())
    with pytest.raises(ValueError, match=r"not a tensor of shape \(\)\. Give"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(()))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("rule", [Prodigy(), DAdaptation()])
def test_estimates_of_a_distance_are_refused(rule: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{rule.name} cannot use Muon: .*Muon's distances are spectral norms.* Use "):
        untuned.compose([nn.Parameter(torch.ones(2, 2))], Muon(), rule)


def test_one_average_of_the_losses_needs_equal_weights_of_gradients() -> None:
    params = parameters(START)
    with pytest.raises(ValueError, match=r"^MoMo: one average of the losses serves all directions.*0\.95.*equal betas"):
        untuned.compose(partition(params), {"matrices": Muon(), "rest": Adam()}, MoMo())
    untuned.compose(partition(params), {"matrices": Muon(), "rest": Adam()}, Fixed())  # which has none
    optimizer = mixed(params, MoMo())
    optimizer.param_groups[1]["betas"] = (0.8, 0.999)
    with pytest.raises(ValueError, match="equal betas or momentum"):
        train(optimizer, params, [1])


def test_labels_that_are_missing_or_unknown() -> None:
    params = parameters(START)
    direction = {"matrices": Muon(), "rest": Adam()}
    for label in ({}, {"label": "matrix"}):
        with pytest.raises(ValueError, match=r"^compose: the 'label' of a group must be one of 'matrices', 'rest'"):
            untuned.compose([{"params": params[:1], **label}], direction)
    with pytest.raises(ValueError, match="'label' of a group must be one of"):
        untuned.compose(params, direction)
    with pytest.raises(TypeError, match="all dicts have the same labels"):
        untuned.compose(partition(params), direction, decay={"matrices": Decoupled()})


def test_the_checkpoint_of_another_partition_is_refused() -> None:
    params = parameters(START)
    optimizer = mixed(params)
    train(optimizer, params, [1])
    state = saved(optimizer)
    swapped = {"matrices": Adam(), "rest": Adam(eps=1e-6)}
    for direction in (swapped, {"matrices": Momentum(), "rest": Adam()}):
        other = untuned.compose(partition(parameters(START)), direction)
        with pytest.raises(ValueError, match=r"another method saved this checkpoint, \{matrices: Muon\(nest"):
            other.load_state_dict(state)
    alike = {"matrices": Muon(0.9, nesterov=False), "rest": Adam()}
    params = parameters(START)
    groups = [{"params": [params[i] for i in MATRICES], "label": "matrices"}, *partition(params)[1:2]]
    with pytest.raises(ValueError, match=r"has shape \(2, 2\) in this checkpoint, not \(2, 4\)"):
        untuned.compose(groups, alike).load_state_dict(state)
    turned = [partition(params)[i] for i in (1, 0, 2)]
    with pytest.raises(ValueError, match="labelled 'matrices' in this checkpoint, not 'rest'"):
        untuned.compose(turned, alike).load_state_dict(state)


# ---------------------------------------------------------------- partitions in the middle of a run

RULES = {
    "fixed": lambda: {"step_size": Fixed(0.1)},
    "momo": lambda: {"step_size": MoMo(0.3)},
    "mechanic": lambda: {"step_size": Fixed(0.1), "iterate": Mechanic(s_init=0.1)},
    "mechanic on momo": lambda: {"step_size": MoMo(0.3), "iterate": Mechanic(s_init=0.1)},
    "schedule free momo": lambda: {"step_size": MoMo(0.3), "iterate": ScheduleFree()},
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_a_partition_resumes_bitwise(rule: str, execution: str) -> None:
    params = parameters(START, torch.float32)
    optimizer = mixed(params, **RULES[rule](), decay=Decoupled(0.01), changes={"lr": 0.05}, execution=execution)
    train(optimizer, params, range(5))
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = mixed(others, **RULES[rule](), decay=Decoupled(0.01), execution=execution)
    resumed.load_state_dict(saved(optimizer))
    assert resumed.param_groups[2]["lr"] == 0.05
    train(optimizer, params, range(5, 10))
    train(resumed, others, range(5, 10))
    assert_equal(everything(optimizer), everything(resumed))
    assert optimizer.metrics() == resumed.metrics()
    assert {*optimizer.state[params[0]]} & {"orthogonal"} == set()  # scratch is not saved


@pytest.mark.parametrize("rule", RULES)
def test_kernels_follow_the_reference_in_a_partition(rule: str) -> None:
    runs = []
    for execution in EXECUTIONS:
        params = parameters(START)
        optimizer = mixed(params, **RULES[rule](), changes={"lr": 0.05}, decay=Decoupled(0.01), execution=execution)
        found = train(optimizer, params, range(STEPS))
        runs.append((found, optimizer.metrics()))
    assert apart(runs[0][0], runs[1][0]) < 1e-9
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-8)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_half_of_a_partition_without_gradients(rule: str, execution: str) -> None:
    """What has no gradient stays, and the other half goes on; with one half for good, the other is as if alone."""
    params, alone = parameters(START), parameters(START)
    optimizer = mixed(params, **RULES[rule](), execution=execution)
    for half in (MATRICES, REST, MATRICES):
        before = [p.detach().clone() for p in params]
        _, grads = problem([p.detach().numpy() for p in params], 1)
        for i, p in enumerate(params):
            p.grad = torch.tensor(grads[i]) if i in half else None
        optimizer.step(loss=1.0)
        moved = [i for i, (p, q) in enumerate(zip(params, before, strict=True)) if not torch.equal(p, q)]
        assert {*moved} <= {*half} and (moved or "mechanic" in rule)
        assert all(np.isfinite(value) for value in optimizer.metrics().values())
    one = mixed(params := parameters(START), **RULES[rule](), execution=execution)
    matrices = [alone[i] for i in MATRICES]
    two = untuned.compose(matrices, Muon(0.9, nesterov=False), **RULES[rule](), execution=execution)
    for k in range(5):
        loss, grads = only_matrices([params[i].detach().numpy() for i in MATRICES], k)
        for i, p, g in zip(MATRICES, matrices, grads, strict=True):
            params[i].grad, p.grad = torch.tensor(g), torch.tensor(g)
        one.step(loss=loss)
        two.step(loss=loss)
    assert max(float((params[i] - p).detach().abs().max()) for i, p in zip(MATRICES, matrices, strict=True)) < 1e-12
    assert all(torch.equal(params[i].detach(), torch.tensor(START[i])) for i in REST)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_group_added_in_the_middle(execution: str) -> None:
    params = parameters(START)
    optimizer = mixed(params, MoMo(0.1), execution=execution)
    train(optimizer, params, range(3))
    late = [nn.Parameter(torch.tensor(START[i] + 0.5)) for i in (0, 1)]
    with pytest.raises(ValueError, match="'label' of a group"):
        optimizer.add_param_group({"params": late})
    with pytest.raises(ValueError, match="Muon takes matrices"):
        optimizer.add_param_group({"params": late, "label": "matrices"})
    with pytest.raises(ValueError, match="betas must be equal in all groups"):
        optimizer.add_param_group({"params": late[1:], "label": "rest", "betas": (0.5, 0.999)})
    assert len(optimizer.param_groups) == 3
    optimizer.add_param_group({"params": late[:1], "label": "matrices"})
    optimizer.add_param_group({"params": late[1:], "label": "rest"})
    assert all(group["loss_avg"] is optimizer.param_groups[0]["loss_avg"] for group in optimizer.param_groups)
    assert "momentum" not in optimizer.param_groups[4] and "betas" not in optimizer.param_groups[3]
    before = [p.detach().clone() for p in late]
    train(optimizer, [*params, *late], range(3, 4), lambda x, k: (0.5, [0.1 + 0 * a for a in x]))
    theta = optimizer.metrics()["theta"]
    o = _newton_schulz(np.ones((4, 3)), NS, 5, 1e-7)
    u = torch.tensor((1 - 0.9**4) * (4 / 3) ** 0.5 * o)
    assert torch.allclose(late[0].detach(), before[0] - theta * 0.1 * u, rtol=0, atol=1e-12)
    assert (late[1].detach() - before[1]).abs().max() > 0


def test_what_people_see_of_a_partition() -> None:
    params = parameters(START)
    optimizer = mixed(params, MoMo(0.1), execution="reference")
    text = repr(optimizer)
    assert "{matrices: Muon(momentum=0.9, nesterov=False, " in text and ", rest: Adam(betas=" in text
    assert [re.search(r"label=\w+", line).group() for line in text.splitlines()[1:]] == [
        f"label={label}" for label in ("matrices", "rest", "matrices")
    ]
    assert optimizer.metrics()["lr_effective_1"] == 0.0
    train(optimizer, params, range(3))
    found = optimizer.metrics()
    assert found["steps"] == 3 and {"lr_effective", "lr_effective_1", "lr_effective_2", "theta", "mx"} <= found.keys()
    assert found["lr_effective"] == found["lr_effective_1"] == pytest.approx(found["theta"] * (1 - 0.9**3) * 0.1)


def test_a_label_without_a_group_is_no_obstacle() -> None:
    params = parameters([START[i] for i in MATRICES])
    groups = [{"params": params, "label": "matrices"}]
    optimizer = untuned.compose(groups, {"rest": SNGM(scope="model"), "matrices": Muon()}, execution="reference")
    train(optimizer, params, range(3), only_matrices)
    assert optimizer.metrics()["steps"] == 3
    twin = copy.deepcopy(optimizer)
    twin.load_state_dict(saved(optimizer))
    assert_equal(everything(twin), everything(optimizer))


def test_directions_that_look_for_different_things_in_one_partition() -> None:
    """Each decides on its own sums, however many the other has."""
    for order in (1, -1):
        labels = dict([("sngm", SNGM()), ("tam", TAM())][::order])
        both = parameters(START)
        groups = [{"params": [both[i] for i in MATRICES], "label": "sngm"}]
        groups.append({"params": [both[i] for i in REST], "label": "tam"})
        optimizer = untuned.compose(groups, labels, Fixed(0.1), execution="reference")
        apart_ = parameters(START)
        one = untuned.compose([apart_[i] for i in MATRICES], SNGM(), Fixed(0.1), execution="reference")
        two = untuned.compose([apart_[i] for i in REST], TAM(), Fixed(0.1), execution="reference")
        for k in range(5):
            loss, grads = problem([p.detach().numpy() for p in both], k)
            for p, q, g in zip(both, apart_, grads, strict=True):
                p.grad, q.grad = torch.tensor(g), torch.tensor(g)
            optimizer.step(loss=loss)
            one.step(loss=loss)
            two.step(loss=loss)
        assert max(float((p - q).detach().abs().max()) for p, q in zip(both, apart_, strict=True)) < 1e-13


# ---------------------------------------------------------------- another user of the matrix stage


class Factored(Direction):
    """u = g / sqrt(r c' / mean(r)): r and c average the means of g^2 over columns and rows, as in Adafactor."""

    beta: float = hyper(default=0.9, within="[0, 1)")
    r = slot("rows", shape=lambda shape: (shape[0],))
    c = slot("columns", shape=lambda shape: (shape[1],))
    v = untuned.parts.scratch("second_moment")

    def reform(self, x: Place) -> None:
        square = x.g * x.g + 1e-30
        x.r = x.beta * x.r + (1 - x.beta) * square.mean(1)
        x.c = x.beta * x.c + (1 - x.beta) * square.mean(0)
        x.v = torch.outer(x.r, x.c) / x.r.mean()

    def unit(self, x: Place) -> Any:
        return x.g / sqrt(x.v)

    def refuse(self, p: Any) -> str | None:
        return None if p.dim() == 2 else "Factored takes matrices."


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_slots_of_factors_follow_a_loop_in_numpy(execution: str) -> None:
    start = [START[i] for i in MATRICES]
    params = parameters(start)
    optimizer = untuned.compose(params, Factored(), Fixed(0.01), decay=Decoupled(0.1), execution=execution)
    ours = train(optimizer, params, range(1, STEPS + 1), only_matrices)
    x, rows, columns = copy.deepcopy(start), [np.zeros(len(a)) for a in start], [np.zeros(a.shape[1]) for a in start]
    expected = []
    for k in range(1, STEPS + 1):
        _, grads = only_matrices(x, k)
        for i, g in enumerate(grads):
            rows[i] = 0.9 * rows[i] + 0.1 * (g * g + 1e-30).mean(1)
            columns[i] = 0.9 * columns[i] + 0.1 * (g * g + 1e-30).mean(0)
            x[i] = 0.999 * x[i] - 0.01 * g / np.sqrt(np.outer(rows[i], columns[i]) / rows[i].mean())
        expected.append(list(x))
    assert apart(ours, expected) < 1e-12
    assert [optimizer.state[p]["rows"].shape for p in params] == [(4,), (2,), (2,)]
    assert [optimizer.state[p]["columns"].shape for p in params] == [(3,), (4,), (2,)]


@pytest.mark.parametrize("slot_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_slots_of_factors_resume_bitwise(execution: str, slot_dtype: Any) -> None:
    def build(params: list[nn.Parameter]) -> untuned.Optimizer:
        direction = {"matrices": Factored(), "rest": Adam()}
        return untuned.compose(partition(params), direction, Fixed(0.01), slot_dtype=slot_dtype, execution=execution)

    params = parameters(START, torch.float32)
    optimizer = build(params)
    train(optimizer, params, range(5))
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = build(others)
    resumed.load_state_dict(saved(optimizer))
    train(optimizer, params, range(5, 10))
    train(resumed, others, range(5, 10))
    assert_equal(everything(optimizer), everything(resumed))
    wrong = saved(optimizer)
    wrong["state"][0]["rows"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"'rows' of parameter 0 has shape \(3,\) in this checkpoint, not \(4,\)"):
        resumed.load_state_dict(wrong)


def test_a_slot_may_take_what_another_was() -> None:
    class Shifted(Direction):
        """u = the gradient of the step before."""

        g1, g0 = slot("this"), slot("before")

        def reform(self, x: Place) -> None:
            before = x.g1
            x.g1 = x.g.clone()
            x.g0 = before

        def unit(self, x: Place) -> Any:
            return x.g0

    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = untuned.compose([p], Shifted(), Fixed(1.0), execution="reference")
    for k in (1.0, 2.0, 4.0):
        p.grad = torch.full((2, 2), k)
        optimizer.step()
    assert torch.equal(p.detach(), torch.full((2, 2), -3.0))


def test_slots_of_factors_are_for_the_matrix_stage_alone() -> None:
    class Careless(Factored):
        def unit(self, x: Place) -> Any:
            return x.g / sqrt(x.r)

    with pytest.raises((AttributeError, TypeError), match=r"^Careless: x\.r has a shape of its own: only 'ref"):
        untuned.compose([nn.Parameter(torch.ones(2, 2))], Careless())


def test_what_was_before_a_matrix_stage_is_refused_after_it() -> None:
    class Backward(Fixed):
        def measure(self, x: Place) -> Any:
            return x.old.m * x.p

        def decide(self, c: Place, s: Any) -> None: ...

    untuned.compose([nn.Parameter(torch.ones(2, 2))], Adam(), Backward())
    with pytest.raises((AttributeError, TypeError), match=r"^Backward: after 'reform' x\.old is not"):
        untuned.compose([nn.Parameter(torch.ones(2, 2))], Muon(), Backward())
