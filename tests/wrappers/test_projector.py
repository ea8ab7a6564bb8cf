"""Weights that keep their norm behind the step of any optimizer: the equivalences, and what is chosen and refused."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import untuned
from untuned.around import Project
from untuned.directions import Momentum
from untuned.step_sizes import Fixed
from untuned.wrappers import EffectiveLR, WeightProjector, insert_norms
from untuned.wrappers.projector import _factors_on_device


def mlp(seed=0, eps=0.0, kind="layernorm", affine="none"):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    insert_norms(model, kind, affine=affine, eps=eps)
    return model


def batch(k, n=32):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    return x, torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2], x[:, 3].abs()], dim=1)


def backward(model, k):
    x, y = batch(k)
    model.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss


def hidden(model):
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)][:-1]


def norms(weights):
    return [w.detach().norm().item() for w in weights]


# ---------------------------------------------------------------- why weights may be projected


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_rescaled_hidden_weights_compute_the_same_function(kind):
    for eps, bound in ((0.0, 1e-14), (1e-5, 1e-1)):
        model = mlp(eps=eps, kind=kind)
        x = batch(0)[0]
        before = model(x)
        with torch.no_grad():
            for w, c in zip(hidden(model), (3.7, 0.2), strict=True):
                w.mul_(c)
        change = (model(x) - before).abs().max().item()
        assert change < bound
        assert eps == 0 or change > 1e-6  # the bound belongs to eps


def test_gradients_are_orthogonal_to_normalised_weights():
    model = mlp()
    backward(model, 0)
    for w in hidden(model):
        terms = (w.grad * w).abs().sum().item()
        assert abs((w.grad * w).sum().item()) < 1e-15 * max(1.0, terms * 10)


def test_relu_of_a_normalisation_is_homogeneous_in_scale_and_offset():
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(12).double(), torch.randn(7, 12, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        one = norm(x).relu()
        norm.weight.mul_(3.7)
        norm.bias.mul_(3.7)
        assert (norm(x).relu() - 3.7 * one).abs().max() < 1e-14


def follow(per_layer, steps=200, lr=0.4):
    """SGD, and projected SGD with learning rates from the norms of the former: -> largest distance of outputs."""
    free, kept = mlp(), mlp()
    rho = norms(hidden(free))
    sgd = torch.optim.SGD(free.parameters(), lr)
    weights = hidden(kept)
    rest = [p for p in kept.parameters() if not any(p is w for w in weights)]
    sgd_kept = torch.optim.SGD([*({"params": [w]} for w in weights), {"params": rest}], lr)
    WeightProjector(kept, sgd_kept)
    apart, x = 0.0, batch(1)[0]
    for k in range(steps):
        ratios = [(r / now) ** 2 for r, now in zip(rho, norms(hidden(free)), strict=True)]
        if not per_layer:
            ratios = [math.prod(ratios) ** (1 / len(ratios))] * len(ratios)
        for group, ratio in zip(sgd_kept.param_groups, ratios, strict=False):
            group["lr"] = lr * ratio
        for model, optimizer in ((free, sgd), (kept, sgd_kept)):
            backward(model, k)
            optimizer.step()
        apart = max(apart, (free(x) - kept(x)).abs().max().item())
    grown = [now / r for now, r in zip(norms(hidden(free)), rho, strict=True)]
    assert min(grown) > 1.1
    assert norms(weights) == pytest.approx(rho, rel=1e-14)
    return apart


def test_with_layerwise_rates_projected_sgd_is_sgd():
    assert follow(per_layer=True) < 1e-12


def test_one_rate_for_all_layers_is_something_else():
    assert follow(per_layer=False) > 0.1


def test_projecting_the_last_layer_changes_the_outputs():
    outputs = []
    for exclude in ("last", []):
        model = mlp()
        projector = WeightProjector(model, exclude=exclude)
        with torch.no_grad():
            for m in model.modules():
                if isinstance(m, nn.Linear):
                    m.weight.mul_(1.5)
        projector.project()
        outputs.append(model(batch(0)[0]))
    assert (outputs[0] - outputs[1]).abs().max() > 0.1


# ---------------------------------------------------------------- the projection


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_norms_are_kept_and_projecting_twice_changes_nothing(scope):
    model = mlp()
    projector = WeightProjector(model, torch.optim.Adam(model.parameters(), 0.1), scope=scope)

    def of(w):
        return np.linalg.norm(w.detach().numpy(), axis=1 if scope == "row" else None)

    before = [of(w) for w in hidden(model)]
    for k in range(5):
        backward(model, k)
        projector.effective_lr.optimizer.step()
    for w, kept in zip(hidden(model), before, strict=True):
        np.testing.assert_allclose(of(w), kept, rtol=1e-15 * 8)
    once = [w.detach().clone() for w in hidden(model)]
    projector.project()
    for w, a in zip(hidden(model), once, strict=True):
        np.testing.assert_allclose(w.detach().numpy(), a.numpy(), rtol=1e-15)


def run(model, optimizer, steps=12, start=0):
    for k in range(start, start + steps):
        backward(model, k)
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_never_projecting_is_the_optimizer_itself():
    ends = []
    for every in (None, math.inf):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        if every:
            WeightProjector(model, optimizer, every=every)
        ends.append(run(model, optimizer))
    assert torch.equal(*ends)


def test_only_every_third_step_is_projected():
    model = mlp()
    rho = norms(hidden(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    WeightProjector(model, optimizer, every=3)
    for k in range(7):
        run(model, optimizer, 1, k)
        assert (norms(hidden(model)) == pytest.approx(rho, rel=1e-14)) == (k % 3 == 2)


def test_the_part_of_this_library_projects_alike():
    """`around.Project` inside the step, and this one after it; neither touches the buffers of the momentum."""
    ends = []
    for inside in (True, False):
        model = mlp()
        weights = hidden(model)
        rest = [p for p in model.parameters() if not any(p is w for w in weights)]
        if inside:
            groups = [{"params": weights, "label": "hidden"}, {"params": rest, "label": "rest"}]
            around = {"hidden": [Project()], "rest": []}
            optimizer = untuned.compose(groups, Momentum(0.9), Fixed(0.02), around=around)
        else:
            optimizer = untuned.compose([*weights, *rest], Momentum(0.9), Fixed(0.02))
            WeightProjector(model, optimizer)
        ends.append(run(model, optimizer))
    assert (ends[0] - ends[1]).abs().max() < 1e-13
    model = mlp()
    free = run(model, untuned.compose(model.parameters(), Momentum(0.9), Fixed(0.02)))
    assert (ends[0] - free).abs().max() > 1e-4


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    lambda p: torch.optim.RMSprop(p, 0.01),
    lambda p: untuned.MoMoAdam(p, lr=0.05),
    lambda p: untuned.Prodigy(p, d0=1e-2),
    lambda p: untuned.SGDF(p, lr=0.1),
])  # fmt: skip
def test_any_optimizer(make):
    model = mlp()
    rho = norms(hidden(model))
    optimizer = make(model.parameters())
    WeightProjector(model, optimizer)
    start = torch.cat([w.detach().reshape(-1) for w in hidden(model)])
    for k in range(6):
        loss = backward(model, k)
        optimizer.step(loss=loss) if isinstance(optimizer, untuned.Optimizer) else optimizer.step()
    assert norms(hidden(model)) == pytest.approx(rho, rel=1e-14)
    assert (torch.cat([w.detach().reshape(-1) for w in hidden(model)]) - start).abs().max() > 1e-3


def test_in_low_precision_norms_are_measured_in_float32():
    w = nn.Parameter(torch.full((512, 512), 0.1, dtype=torch.bfloat16))
    projector = WeightProjector([w])
    with torch.no_grad():
        w.mul_(1.5)
    projector.project()
    assert w.dtype == torch.bfloat16
    assert w.float().norm().item() == pytest.approx(512 * 0.1, rel=1e-2)
    assert projector.state_dict()["kept_norms"]["0"].dtype == torch.float32


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_what_becomes_zero_or_not_finite_is_left_alone(bad):
    one, other = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    projector = WeightProjector([one, other])
    with torch.no_grad():
        one.fill_(bad)
        other.fill_(3.0)
    projector.project()
    assert torch.equal(one.detach(), torch.full((2, 2), bad)) or one.isnan().all()
    assert other.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_on_an_accelerator_the_factors_are_the_same():
    """There they stay tensors, so that nothing waits for them."""
    projector = WeightProjector([nn.Parameter(torch.full((2, 2), float(k + 1))) for k in range(4)])
    [block] = projector._blocks()
    for norms in ([2.0, 8.0, 1.5, 4.0], [0.0, math.nan, math.inf, 16.0]):
        norms = [torch.tensor(n) for n in norms]
        found = [f.item() for f in _factors_on_device(block, norms)]
        assert found == pytest.approx(projector._factors(block, norms), rel=1e-7)
    assert found == [1.0, 1.0, 1.0, 0.5]


def test_a_row_of_zeros_is_left_alone():
    w = nn.Parameter(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    projector = WeightProjector([w], scope="row")
    with torch.no_grad():
        w += 1.0
        w[1] = torch.tensor([6.0, 8.0])
    projector.project()
    assert w.tolist() == [[1.0, 1.0], [3.0, 4.0]]


# ---------------------------------------------------------------- scales and offsets


def test_scale_and_offset_are_projected_together():
    model = mlp(affine="joint")
    projector = WeightProjector(model)
    relu, tanh = model[1].norm, model[3].norm
    with torch.no_grad():
        for norm in (relu, tanh):
            norm.weight.uniform_(0.5, 3.0)
            norm.bias.uniform_(-1.0, 1.0)
    ratio, before = relu.weight / relu.bias, tanh.weight.detach().clone()
    projector.project()
    joint = torch.cat([relu.weight, relu.bias]).norm().item()
    assert joint == pytest.approx(4.0, rel=1e-14)  # R = sqrt(d)
    assert (relu.weight / relu.bias - ratio).abs().max() < 1e-12
    assert torch.equal(tanh.weight, before)  # tanh is not homogeneous
    WeightProjector(model, pull=0.25).project()
    assert torch.allclose(tanh.weight, before + 0.25 * (1 - before), rtol=1e-15)


def test_other_normalisations_are_projected_if_they_are_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    projector = WeightProjector(model, joint=[model[1]])
    with torch.no_grad():
        model[1].weight.fill_(7.0)
    projector.project()
    assert model[1].weight.tolist() == [1.0] * 4
    assert {*projector.state_dict()["kept_norms"]} == {"0.weight", "1"}
    assert {*WeightProjector(model).state_dict()["kept_norms"]} == {"0.weight"}


# ---------------------------------------------------------------- which weights


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.weightless_name = nn.Conv1d(8, 8, 1)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight


def names(target, **options):
    return [*WeightProjector(target, **options).state_dict()["kept_norms"]]


def test_weights_are_chosen_by_the_type_of_their_module():
    model = Attentive()
    kept = ["attention.in_proj_weight", "attention.out_proj.weight", "weightless_name.weight"]
    assert names(model) == kept
    assert names(model, exclude=["attention", model.head]) == ["weightless_name.weight"]
    assert names(model, exclude=["attention.out_proj.weight", model.embedding]) == [kept[0], kept[2]]
    assert names(nn.DataParallel(model)) == kept


def test_tied_weights_are_projected_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    assert names(model) == ["0.weight"]
    tied_to_the_head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    tied_to_the_head[2].weight = tied_to_the_head[0].weight
    assert names(tied_to_the_head) == ["1.weight"]
    w = nn.Parameter(torch.full((2, 2), 1.0))
    projector = WeightProjector([w, w])
    with torch.no_grad():
        w.mul_(2)
    projector.project()
    assert w.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert names([("a", w)]) == ["a"]


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_resumed_it_goes_on_bit_by_bit(scope):
    def made():
        model = mlp(affine="joint")
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        return model, optimizer, WeightProjector(model, optimizer, every=2, scope=scope)

    model, optimizer, projector = made()
    run(model, optimizer, 5)
    saved = [copy.deepcopy(one.state_dict()) for one in (model, optimizer, projector)]
    other = made()
    with torch.no_grad():
        for p in other[0].parameters():
            p.mul_(5)  # norms of its own, which the checkpoint replaces
    for one, state in zip(other, saved, strict=True):
        one.load_state_dict(state)
    assert torch.equal(run(model, optimizer, 6, 5), run(other[0], other[1], 6, 5))


# ---------------------------------------------------------------- the probe


def test_effective_learning_rates():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 0.3)
    found = WeightProjector(model, optimizer).metrics()
    first = hidden(model)[0].norm().item()
    assert found["lr_per_norm/0.weight"] == pytest.approx(0.3 / first)
    assert found["lr_per_norm_sq/0.weight"] == pytest.approx(0.3 / first**2)
    assert {name.partition("/")[2] for name in found} == {"0.weight", "2.weight"}


def test_the_rate_is_the_one_that_the_method_chose():
    model = mlp()
    optimizer = untuned.Prodigy([{"params": [p]} for p in model.parameters()], d0=1e-2)
    probe = EffectiveLR(model, optimizer)
    run(model, optimizer)
    chosen = optimizer.metrics()
    assert chosen["lr_effective"] < 0.5 < optimizer.param_groups[0]["lr"]
    found = probe.metrics()
    assert found["lr_per_norm/0.weight"] * found["norm/0.weight"] == pytest.approx(chosen["lr_effective"])
    assert not {*found} & {*chosen}


# ---------------------------------------------------------------- refusals


def refused(error, text, call, *args, **options):
    with pytest.raises(error) as caught:
        call(*args, **options)
    said = str(caught.value)
    assert text in said
    assert said.endswith(".")
    assert "\n" not in said
    return said


def test_bad_input_is_refused_in_a_sentence():
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    for options, text in (
        ({"scope": "column"}, "scope must be"),
        ({"every": 0}, "every must be"),
        ({"every": 2.5}, "every must be"),
        ({"every": True}, "every must be"),
        ({"pull": 2.0}, "pull must be"),
        ({"pull": "hard"}, "pull must be"),
        ({"every": "day"}, "every must be"),
        ({"exclude": ["nobody"]}, "nothing in the model is named 'nobody'"),
        ({"exclude": [model]}, "found no hidden weight"),
        ({"joint": [nn.Tanh()]}, "no scale per feature"),
    ):
        refused(ValueError, text, WeightProjector, model, sgd, **options)
    refused(TypeError, "takes a model or its parameters", WeightProjector, 3)
    refused(TypeError, "takes a model or its parameters", WeightProjector, [3])
    refused(TypeError, "needs a torch.optim.Optimizer", WeightProjector, model, 3)
    refused(ValueError, "is a vector", WeightProjector, model.parameters())
    refused(ValueError, "no values yet", WeightProjector, nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)))
    refused(ValueError, "no values yet", WeightProjector, [nn.Parameter(torch.ones(2, 2, device="meta"))])
    refused(ValueError, "needs the optimizer", WeightProjector(model).metrics)
    refused(ValueError, "is in no group", EffectiveLR, mlp(), sgd)
    parametrized = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 1))
    refused(TypeError, "the weight of '0'", WeightProjector, parametrized)
    assert names(nn.Sequential(*parametrized, nn.Linear(1, 1)), exclude=["0"]) == ["1.weight", "2.weight"]
    assert not sgd._optimizer_step_post_hooks


def test_what_cannot_be_chosen_is_refused_in_a_sentence():
    model, w = mlp(), nn.Parameter(torch.ones(2, 2))
    refused(TypeError, "exclude must be 'last' or a list", WeightProjector, model, exclude=None)
    refused(ValueError, "is not in the model", WeightProjector, model, exclude=[3])
    refused(ValueError, "is not in the model", WeightProjector, model, exclude=[nn.Linear(2, 2)])
    refused(TypeError, "joint takes a list of normalisations", WeightProjector, model, joint=[3])
    refused(TypeError, "joint takes a list of normalisations", WeightProjector, model, joint=3)
    both = [("w", w), ("w", nn.Parameter(torch.ones(2, 2)))]
    refused(ValueError, "two parameters are named 'w'", WeightProjector, both)
    assert [one.name for one in WeightProjector([("w", w), ("again", w)])._kept] == ["w"]
    refused(TypeError, "a list with an object of type tuple", WeightProjector, [("w", w, 1)])
    for dtype in (torch.int8, torch.complex64):
        odd = nn.Parameter(torch.ones(2, 2, dtype=dtype), requires_grad=False)
        refused(TypeError, "not real numbers", WeightProjector, [odd])


@pytest.mark.parametrize(("value", "why"), [(0.0, "is zero"), (math.nan, "is not finite"), (math.inf, "is not finite")])
def test_a_weight_without_a_norm_is_refused_and_nothing_changed(value, why):
    model = mlp()
    with torch.no_grad():
        hidden(model)[1].fill_(value)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = copy.deepcopy(model.state_dict())
    for scope in ("tensor", "row"):
        refused(ValueError, f"'2.weight' {why}", WeightProjector, model, optimizer, scope=scope)
    assert not optimizer._optimizer_step_post_hooks
    assert all(a.equal(b) or b.isnan().any() for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_optimizers_that_keep_another_point_are_refused():
    model = mlp()
    for make, text in (
        (untuned.SGDScheduleFree, "ScheduleFree keeps z"),
        (untuned.MechanicSGD, "Mechanic keeps delta"),
        (untuned.MDA, "FromStart keeps x0"),
    ):
        said = refused(TypeError, text, WeightProjector, model, make(model.parameters()))
        assert ("around=[untuned.around.Project()]" in said) == (make is not untuned.MDA)

    class Foreign(torch.optim.SGD):
        def eval(self):
            pass

    refused(TypeError, "Foreign keeps another point", WeightProjector, model, Foreign(model.parameters(), 0.1))


def test_states_that_do_not_fit_are_refused_and_nothing_changed():
    model = mlp()
    projector = WeightProjector(model)
    good = copy.deepcopy(projector.state_dict())
    bad_norm = {"0.weight": torch.tensor(math.nan), "2.weight": torch.tensor(1.0)}
    for state, text in (
        ({}, "it is no state_dict()"),
        (3, "it is no state_dict()"),
        (good | {"scope": "row"}, "its scope is 'row'"),
        (good | {"kept_norms": {"0.weight": torch.tensor(1.0)}}, "'2.weight' is only in one"),
        (good | {"kept_norms": bad_norm}, "the norms of '0.weight' do not fit"),
        (good | {"kept_norms": bad_norm | {"0.weight": torch.ones(3)}}, "the norms of '0.weight' do not fit"),
    ):
        refused(ValueError, text, projector.load_state_dict, state)
    assert projector.state_dict() == good


@pytest.mark.parametrize("change", [{"steps": -1}, {"steps": 1.5}, {"steps": "2"}, {"kept_norms": {"0.weight": "a"}}])
def test_a_spoiled_state_is_refused_and_nothing_changed(change):
    projector = WeightProjector(mlp())
    good = projector.state_dict()
    refused(ValueError, "no state_dict() of a WeightProjector", projector.load_state_dict, good | change)
    assert projector.state_dict() == good


def test_the_hook_can_be_taken_off():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    projector = WeightProjector(model, optimizer)
    projector.remove()
    rho = norms(hidden(model))
    run(model, optimizer, 1)
    assert norms(hidden(model)) != pytest.approx(rho, rel=1e-6)
