"""Gradients taken ahead of the weights: reductions, closed forms, and what is saved and refused."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import untuned
from untuned.wrappers import Extrapolated, WeightProjector

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "sgd with nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),  # writes into gradients
    "adamw": lambda p: untuned.AdamW(p, lr=0.02),
    "momo": lambda p: untuned.MoMo(p, lr=1.0),
    "schedule-free": lambda p: untuned.SGDScheduleFree(p, lr=0.3),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def loss_on(model, k):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    return (model(x) - x.sin().sum(1, keepdim=True)).square().mean()


def train(model, optimizer, steps, block=True):
    """Returns the weights at the end as a vector."""
    for k in steps:
        optimizer.zero_grad()
        if block:
            with optimizer.extrapolated():
                loss = loss_on(model, k)
                loss.backward()
        else:
            loss = loss_on(model, k)
            loss.backward()
        inner = getattr(optimizer, "optimizer", optimizer)
        optimizer.step(loss=loss) if isinstance(inner, untuned.Optimizer) else optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def ended(base, *options, steps=range(10), **others):
    model = network()
    return train(model, Extrapolated(BASES[base](model.parameters()), *options, **others), steps)


# ---------------------------------------------------------------- reductions


@pytest.mark.parametrize("direction", ["local", "global", "noise"])
@pytest.mark.parametrize("base", BASES)
def test_without_an_inner_rate_it_is_the_base_optimizer(base, direction):
    model = network()
    alone = train(model, BASES[base](model.parameters()), range(10), block=False)
    assert torch.equal(ended(base, 0.0, direction), alone)
    assert not torch.equal(ended(base, 0.05, direction), alone)


@pytest.mark.parametrize("base", BASES)
def test_with_one_process_local_is_global(base):
    assert torch.equal(ended(base, 0.05, "local"), ended(base, 0.05, "global"))


def test_gradients_are_those_at_the_point_ahead():
    """By hand: SGD with heavy ball, the plain form and the paper's with the buffer v."""
    for mu_ahead in (0.0, 0.9):
        w = torch.tensor([2.0, -1.0], dtype=torch.float64)
        h = torch.tensor([1.0, 0.3], dtype=torch.float64)
        p = nn.Parameter(w.clone())
        optimizer = Extrapolated(torch.optim.SGD([p], 0.1, momentum=0.9), 0.05, nesterov=mu_ahead)
        v, q = torch.zeros_like(w), torch.zeros_like(w)
        for _ in range(20):
            optimizer.zero_grad()
            with optimizer.extrapolated():
                assert torch.allclose(p.detach(), w - 0.1 * mu_ahead * v - 0.05 * q, rtol=0, atol=1e-15)
                (h * p.square() / 2).sum().backward()
            optimizer.step()
            q = h * (w - 0.1 * mu_ahead * v - 0.05 * q)
            v = 0.9 * v + q
            w = w - 0.1 * v
            assert torch.allclose(p.detach(), w, rtol=0, atol=1e-14)


def bilinear(inner_lr, steps=200):
    x, y = nn.Parameter(torch.ones(1, dtype=torch.float64)), nn.Parameter(torch.ones(1, dtype=torch.float64))
    base = torch.optim.SGD([{"params": [x]}, {"params": [y], "maximize": True}], 0.3)
    optimizer = Extrapolated(base, inner_lr)
    for _ in range(steps):
        optimizer.zero_grad()
        with optimizer.extrapolated():
            (x * y).sum().backward()
        optimizer.step()
    return torch.cat([x, y]).norm().item()


def test_games_converge_that_do_not_without():
    assert bilinear(0.0) == pytest.approx(2**0.5 * (1 + 0.3**2) ** 100, rel=1e-10)
    assert bilinear(0.0) == pytest.approx(7819, rel=1e-3)
    assert bilinear(0.3) == pytest.approx(4.2e-5, rel=0.02)


def quadratic(lr, inner_lr, steps=2000):
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = Extrapolated(torch.optim.SGD([p], lr), inner_lr)
    for _ in range(steps):
        optimizer.zero_grad()
        with optimizer.extrapolated():
            (p.square() / 2).sum().backward()
        optimizer.step()
        if not 1e-30 < abs(p.item()) < 1e30:
            break
    return abs(p.item())


@pytest.mark.parametrize("inner_lr", [0.1, 0.3, 0.5])
def test_quadratics_are_stable_below_the_bound(inner_lr):
    limit = 2 - 2 * inner_lr  # 1.8, 1.4, 1.0
    assert quadratic(0.98 * limit, inner_lr) < 1e-3
    assert quadratic(1.02 * limit, inner_lr) > 1e3


def test_an_inner_rate_of_half_the_bound_is_never_stable():
    assert quadratic(0.05, 1.0) > 1e3


@pytest.mark.parametrize("library", [torch.optim, untuned])
def test_a_maximum_is_approached_from_ahead(library):
    """The gradient of the first step is followed upwards in the second block, whoever the base optimizer is from."""
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Extrapolated(library.SGD([w], lr=0.1, maximize=True), inner_lr=0.25)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        with optimizer.extrapolated():
            seen.append(w.item())
            (3 * w).sum().backward()
        optimizer.step()
    assert seen == pytest.approx([1.0, 1.3 + 0.25 * 3])


@pytest.mark.parametrize(("inner_lr", "variance"), [(0.0, 0.0526), (0.1, 0.0481), (0.3, 0.0414), (0.5, 0.0370)])
def test_the_stationary_variance_shrinks(inner_lr, variance):
    """Of SGD with lr 0.1 on w^2 / 2 with unit noise in the gradient: 40,000 walks, each 150 steps long."""
    p = nn.Parameter(torch.zeros(40_000, dtype=torch.float64))
    optimizer = Extrapolated(torch.optim.SGD([p], 0.1), inner_lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        with optimizer.extrapolated():
            p.grad = p.detach() + torch.randn(p.shape, dtype=p.dtype, generator=generator)
        optimizer.step()
    # five standard errors of a variance, and the last digit of the number
    assert p.var().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / 40_000) + 5e-5)


# ---------------------------------------------------------------- the block


def test_weights_come_back_bit_by_bit_also_after_an_error():
    model = network()
    optimizer = Extrapolated(BASES["sgd"](model.parameters()), 0.05, nesterov=0.9)
    train(model, optimizer, range(3))
    before = [p.detach().clone() for p in model.parameters()]

    def fail():
        with optimizer.extrapolated():
            assert all((p - a).abs().max() > 1e-6 for p, a in zip(model.parameters(), before, strict=True))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(map(torch.equal, model.parameters(), before))
    train(model, optimizer, range(3, 5))


def test_parameters_without_gradients_are_not_moved():
    used, unused, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = Extrapolated(torch.optim.SGD([used, unused, frozen], 0.1), 0.5)
    for k in range(3):
        optimizer.zero_grad()
        with optimizer.extrapolated():
            ((used.sum() + unused.sum()) if k == 0 else used.sum()).backward()
            assert unused.tolist() == pytest.approx([0.4, 0.4] if k == 1 else [1.0, 1.0] if k == 0 else [0.9, 0.9])
            assert frozen.tolist() == [1.0, 1.0]
        optimizer.step()


def test_one_gradient_that_is_not_finite_spoils_no_later_one():
    p = nn.Parameter(torch.ones(2))
    optimizer = Extrapolated(untuned.SGD([p], lr=0.1), 0.5)  # leaves out steps that are not finite
    for factor in (torch.tensor([1.0, torch.nan]), torch.ones(2)):
        optimizer.zero_grad()
        with optimizer.extrapolated():
            (factor * p).sum().backward()
        optimizer.step()
    assert p.tolist() == pytest.approx([0.9, 0.9])


def test_micro_batches_are_added_up_at_one_point():
    ends = []
    for parts in (1, 2):
        model = network()
        optimizer = Extrapolated(BASES["sgd"](model.parameters()), 0.05)
        for k in range(6):
            optimizer.zero_grad()
            with optimizer.extrapolated():
                for _ in range(parts):
                    (loss_on(model, k) / parts).backward()
            optimizer.step()
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.allclose(*ends, rtol=0, atol=1e-15)


def test_a_closure_runs_in_a_block():
    model = network()
    optimizer = Extrapolated(BASES["sgd"](model.parameters()), 0.05)
    for k in range(10):

        def closure(k=k):
            optimizer.zero_grad()
            loss = loss_on(model, k)
            loss.backward()
            return loss

        assert optimizer.step(closure).item() > 0
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), ended("sgd", 0.05))


def test_noise_has_the_norm_of_each_tensor_and_touches_no_other_generator():
    model = network()
    optimizer = Extrapolated(torch.optim.SGD(model.parameters(), 0.0), 0.25, "noise", seed=3)
    before = [p.detach().clone() for p in model.parameters()]
    state, seen = torch.get_rng_state(), []
    for _ in range(2):
        with optimizer.extrapolated():
            seen.append([p - a for p, a in zip(model.parameters(), before, strict=True)])
        loss_on(model, 0).backward()
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    for noise, a in zip(seen[0], before, strict=True):
        assert noise.norm().item() == pytest.approx(0.25 * a.norm().item(), rel=1e-12)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(*seen, strict=True))  # another in each step


# ---------------------------------------------------------------- as an optimizer


def test_groups_schedulers_and_scalers_work_on_it():
    model = network()
    base = torch.optim.SGD(model[0].parameters(), 0.1)
    optimizer = Extrapolated(base, 0.05)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.2})
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(4):
        optimizer.zero_grad()
        with optimizer.extrapolated():
            scaler.scale(loss_on(model, k)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert [group["lr"] for group in base.param_groups] == pytest.approx([0.025, 0.05])
    assert "inner_lr=0.05" in repr(optimizer)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.param_groups[1]["lr"] == pytest.approx(0.05)
    again.register_step_post_hook(lambda *_: None)


def test_what_else_the_base_optimizer_can_do_it_can():
    model = network()
    optimizer = Extrapolated(untuned.SGDScheduleFree(model.parameters(), lr=0.3), 0.05)
    train(model, optimizer, range(4))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    assert not all(map(torch.equal, model.parameters(), before))
    optimizer.train()
    assert optimizer.metrics()["steps"] == 4
    assert not hasattr(optimizer, "nothing")
    assert not hasattr(
        Extrapolated(torch.optim.AdamW(model.parameters(), fused=True), 0.1), "_step_supports_amp_scaling"
    )


def test_a_projector_finds_the_optimizer_inside():
    model = network()
    optimizer = Extrapolated(BASES["sgd"](model.parameters()), 0.05)
    WeightProjector(model, optimizer)
    before = model[0].weight.norm().item()
    train(model, optimizer, range(4))
    assert model[0].weight.norm().item() == pytest.approx(before, rel=1e-14)


class Bucket:
    def __init__(self, *pairs):
        self.pairs = pairs

    def parameters(self):
        return [p for p, _ in self.pairs]

    def gradients(self):
        return [g for _, g in self.pairs]


def test_the_hook_keeps_what_is_not_averaged_yet_and_unscales_it():
    p = nn.Parameter(torch.zeros(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    optimizer = Extrapolated(torch.optim.SGD([p], 0.0), 0.5, scaler=scaler)
    hook = optimizer.keep_local(lambda state, bucket: bucket.gradients()[0].zero_())
    with optimizer.extrapolated():
        hook(None, Bucket((p, torch.tensor([4.0, 8.0]))))
        with pytest.raises(RuntimeError, match="averaged twice in one block"):
            hook(None, Bucket((p, torch.ones(2))))
    p.grad = torch.ones(2)
    optimizer.step()
    with optimizer.extrapolated():
        assert p.tolist() == [-0.5, -1.0]
        hook(None, Bucket((p, torch.ones(2))))
    with optimizer.extrapolated():  # that step was left out
        hook(None, Bucket((p, torch.ones(2))))


# ---------------------------------------------------------------- what is saved


@pytest.mark.parametrize("options", [(0.05, "local"), (0.05, "global"), (0.05, "noise")])
@pytest.mark.parametrize("nesterov", [0.0, 0.9])
@pytest.mark.parametrize("base", ["sgd", "adamw", "schedule-free"])
def test_resumed_it_goes_on_bit_by_bit(base, options, nesterov, tmp_path):
    model = network()
    optimizer = Extrapolated(BASES[base](model.parameters()), *options, nesterov=nesterov)
    train(model, optimizer, range(5))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "saved.pt")
    expected = train(model, optimizer, range(5, 9))
    other = network()
    resumed = Extrapolated(BASES[base](other.parameters()), 1.0, options[1])
    weights, state = torch.load(tmp_path / "saved.pt")
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert resumed.inner_lr == 0.05
    assert torch.equal(train(other, resumed, range(5, 9)), expected)


def test_a_state_of_the_base_optimizer_begins_without_a_direction():
    model = network()
    base = BASES["sgd"](model.parameters())
    train(model, base, range(3), block=False)
    optimizer = Extrapolated(base, 0.05)
    train(model, optimizer, range(3))
    optimizer.load_state_dict(copy.deepcopy(base.state_dict()))
    before = [p.detach().clone() for p in model.parameters()]
    with optimizer.extrapolated():
        assert all(map(torch.equal, model.parameters(), before))


# ---------------------------------------------------------------- refusals


def refused(error, text, call, *args, **options):
    with pytest.raises(error) as caught:
        call(*args, **options)
    said = str(caught.value)
    assert text in said
    assert said.endswith(".")
    assert "\n" not in said


def test_bad_options_are_refused_in_a_sentence():
    p = nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([p], 0.1)
    refused(TypeError, "takes a torch.optim.Optimizer", Extrapolated, [p], 0.1)
    refused(TypeError, "one gradient per step", Extrapolated, torch.optim.LBFGS([p]), 0.1)
    refused(TypeError, "takes a torch.optim.Optimizer", Extrapolated, Extrapolated(base, 0.1), 0.1)
    refused(ValueError, "direction must be", Extrapolated, base, 0.1, "sideways")
    for bad in (-1.0, math.nan, math.inf, "much"):
        refused(ValueError, "inner_lr must be", Extrapolated, base, bad)
        refused(ValueError, "nesterov must be", Extrapolated, base, 0.1, nesterov=bad)
    for bad in (1.5, "a", None, True):
        refused(ValueError, "seed must be a whole number", Extrapolated, base, 0.1, "noise", seed=bad)
    refused(TypeError, "scaler must be a gradient scaler", Extrapolated, base, 0.1, scaler=3)


def test_a_step_inside_the_block_and_a_block_inside_a_block_change_nothing():
    model = network()
    optimizer = Extrapolated(BASES["sgd"](model.parameters()), 0.05)
    train(model, optimizer, range(2))
    before, state = [p.detach().clone() for p in model.parameters()], copy.deepcopy(optimizer.state_dict())
    with optimizer.extrapolated():
        ahead = [p.detach().clone() for p in model.parameters()]
        refused(RuntimeError, "still hold the extrapolated point", optimizer.step)
        refused(RuntimeError, "still hold the extrapolated point", optimizer.optimizer.step)
        refused(RuntimeError, "is open already", optimizer.extrapolated().__enter__)
        refused(RuntimeError, "leave the block", optimizer.load_state_dict, {})
        assert all(map(torch.equal, model.parameters(), ahead))
    assert all(map(torch.equal, model.parameters(), before))
    after = optimizer.state_dict()
    assert after["extrapolation"]["steps"] == state["extrapolation"]["steps"]
    assert all(torch.equal(after["extrapolation"]["q"][i], q) for i, q in state["extrapolation"]["q"].items())


def test_states_that_do_not_fit_are_refused_and_nothing_changed():
    p = nn.Parameter(torch.ones(2))
    optimizer = Extrapolated(torch.optim.SGD([p], 0.1), 0.1)
    good = optimizer.state_dict()
    own = good["extrapolation"]
    refused(
        ValueError,
        "is of direction='noise'",
        optimizer.load_state_dict,
        good | {"extrapolation": own | {"direction": "noise"}},
    )
    for bad in ({0: torch.ones(3)}, {5: torch.ones(2)}):
        refused(
            ValueError, "does not fit parameter", optimizer.load_state_dict, good | {"extrapolation": own | {"q": bad}}
        )
    for bad in (3, {"q": 3}, own | {"before": [p]}):
        refused(ValueError, "'extrapolation' is none", optimizer.load_state_dict, good | {"extrapolation": bad})
    for bad in ({0: 3}, {"a": torch.ones(2)}):
        refused(
            ValueError, "does not fit parameter", optimizer.load_state_dict, good | {"extrapolation": own | {"q": bad}}
        )
    for key, bad in (("inner_lr", "x"), ("nesterov", 1.0), ("seed", 0.5), ("steps", -1)):
        refused(ValueError, f"{key} must be ", optimizer.load_state_dict, good | {"extrapolation": own | {key: bad}})
    refused(TypeError, "takes a dict", optimizer.load_state_dict, [good])
    assert optimizer.state_dict() == good


def test_sparse_gradients_are_refused_and_nothing_changed():
    table = nn.Embedding(3, 2, sparse=True)
    optimizer = Extrapolated(torch.optim.SparseAdam(table.parameters()), 0.1)
    before = table.weight.detach().clone()
    with optimizer.extrapolated():
        table(torch.tensor([1])).sum().backward()
    refused(TypeError, "cannot follow sparse gradients", optimizer.step)
    assert torch.equal(table.weight, before)
