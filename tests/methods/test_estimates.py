"""What the estimates promise to users: scopes, freezing, bfloat16 weights, slices, and a word when they are stuck."""

import warnings

import pytest
import torch
from torch import nn

import untuned
from untuned import directions, iterates, step_sizes
from untuned.weight_decay import Coupled

SCOPED = {
    "prodigy": lambda p, scope: untuned.Prodigy(p, d0=1e-2, scope=scope),
    "dadapt_adam": lambda p, scope: untuned.DAdaptAdam(p, d0=1e-2, scope=scope),
    "dadapt_sgd": lambda p, scope: untuned.DAdaptSGD(p, d0=1e-2, momentum=0.5, scope=scope),
    "dadapt_lion": lambda p, scope: untuned.DAdaptLion(p, d0=1e-2, scope=scope),
    "dadapt_adan": lambda p, scope: untuned.DAdaptAdan(p, d0=1e-2, growth_rate=2.0, scope=scope),
    "gradagrad": lambda p, scope: untuned.GradaGrad(p, lr=0.05, scope=scope),
    "sngm": lambda p, scope: untuned.SNGM(p, lr=0.05, scope=scope),
    "tam": lambda p, scope: untuned.TAM(p, lr=0.05, scope=scope),
    "dog": lambda p, scope: untuned.compose(
        p, directions.Gradient(), step_sizes.DoG(1.0, 1e-2, scope=scope), decay=Coupled()
    ),
    "dowg": lambda p, scope: untuned.compose(
        p, directions.Gradient(), step_sizes.DoWG(1.0, 1e-2, scope=scope), decay=Coupled()
    ),
    "mechanic": lambda p, scope: untuned.compose(
        p, directions.Adam(), step_sizes.Fixed(0.1), iterates.Mechanic(s_init=0.1, scope=scope)
    ),
    "mechanize": lambda p, scope: untuned.compose(
        p, directions.Adam(), step_sizes.Fixed(0.1), iterates.Mechanize(s_init=0.1, scope=scope)
    ),
}


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in [(3, 2), (4,), ()]
    ]


def gradients(params, k):
    """A convex loss whose tensors do not see each other, with a little noise."""
    generator = torch.Generator().manual_seed(k)
    for i, p in enumerate(params):
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = ((i + 1.0) * (p.detach() - 2.0) + 0.1 * noise).to(p.dtype)


def follow(params, optimizers, steps=20):
    for k in range(steps):
        gradients(params, k)
        for optimizer in optimizers:
            optimizer.step(loss=1.0)
    return torch.cat([p.detach().flatten() for p in params])


@pytest.mark.parametrize("execution", ["reference", "auto"])
@pytest.mark.parametrize("scope", ["group", "tensor"])
@pytest.mark.parametrize("name", SCOPED)
def test_a_scope_is_as_many_optimizers(name, scope, execution):
    one, other = tensors(), tensors()
    parts = [one[:2], one[2:]] if scope == "group" else [[p] for p in one]
    together = SCOPED[name]([{"params": part} for part in parts] if scope == "group" else one, scope)
    together._launch.execution = execution
    together._prepare()
    apart = [
        SCOPED[name](part, "model") for part in ([other[:2], other[2:]] if scope == "group" else [[p] for p in other])
    ]
    ours, theirs = follow(one, [together]), follow(other, apart)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    whole = tensors()
    assert (follow(whole, [SCOPED[name](whole, "model")]) - ours).abs().max() > 1e-4  # the scope matters


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam", "dadapt_sgd", "dadapt_lion"])
def test_d_stays_after_freeze_after_steps(name):
    params = tensors()
    optimizer = untuned.create(params, name, d0=1e-3, freeze_after=8)
    seen = []
    for k in range(16):
        gradients(params, k)
        optimizer.step()
        seen.append(optimizer.metrics()["d"])
    assert seen[7] > seen[0]
    assert set(seen[8:]) == {seen[7]}


STALLING = {
    "prodigy": {"d0": 1e-6},
    "prodigy_gd": {"d0": 1e-6},
    "dadapt_gd": {"d0": 1e-6},
    "dog": {"reps_rel": 1e-7},
}


@pytest.mark.parametrize("execution", ["reference", "native"])
@pytest.mark.parametrize("name", STALLING)
def test_estimates_do_not_stall_in_bfloat16(name, execution):
    """Weights near 1 round steps of 1e-6 away: what is lost is kept, so that the estimate follows float32's."""
    key = "rbar" if name == "dog" else "d"

    def estimate(dtype, **options):
        w = nn.Parameter(torch.linspace(0.9, 1.1, 64, dtype=torch.float64).to(torch.bfloat16).to(dtype))
        optimizer = untuned.create([w], name, execution=execution, **STALLING[name], **options)
        for _ in range(60):
            w.grad = (w.detach().double() - 3.0).to(dtype)
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optimizer.metrics()[key]

    exact, ours, plain = estimate(torch.float32), estimate(torch.bfloat16), estimate(torch.bfloat16, kahan_sum=False)
    assert exact > 1e-4
    assert 0.8 < ours / exact < 1.25
    assert plain < 1e-2 * exact  # without it the estimate is stuck: the defect of plain bfloat16


def test_kahan_summation_follows_float32_weights():
    """AdamW at a tiny lr: bfloat16 weights do not move without it."""
    runs = {}
    for kahan_sum, dtype in ((True, torch.bfloat16), (False, torch.bfloat16), (None, torch.float32)):
        w = nn.Parameter(torch.ones(8, dtype=dtype))
        optimizer = untuned.AdamW([w], lr=1e-5, weight_decay=0.0, kahan_sum=kahan_sum)
        for _ in range(300):
            w.grad = torch.ones(8, dtype=dtype)
            optimizer.step()
        held = optimizer.state[w].get("compensation", torch.zeros(8))
        runs[kahan_sum] = (w.detach().float() + held.float()).mean().item()
    assert runs[False] == 1.0
    assert runs[True] == pytest.approx(runs[None], abs=1e-5)
    assert runs[None] == pytest.approx(1 - 300e-5, abs=1e-5)


@pytest.mark.parametrize("slice_p", [3, 11])
def test_slices_save_memory_and_equal_entries_lose_nothing(slice_p):
    """For a tensor of identical entries every slice gives the same d."""
    d = {}
    for p in (1, slice_p):
        w = nn.Parameter(torch.full((7, 10), 0.5, dtype=torch.float64))
        optimizer = untuned.Prodigy([w], d0=1e-2, slice_p=p)
        for k in range(20):
            w.grad = torch.full_like(w, 0.5 - 0.01 * k)
            optimizer.step()
        d[p] = optimizer.metrics()["d"]
        assert optimizer.state[w]["s"].numel() == optimizer.state[w]["p0"].numel() == -(-70 // p)
        twin = untuned.Prodigy([nn.Parameter(w.detach().clone())], d0=1e-2, slice_p=p)
        twin.load_state_dict(optimizer.state_dict())
        assert torch.equal(*(o.state[q]["s"] for o in (optimizer, twin) for q in o.state))
    assert d[slice_p] == pytest.approx(d[1], rel=1e-12)
    assert d[1] > 2e-2
    with pytest.raises(ValueError, match=rf"Prodigy\(slice_p={slice_p}\)"):
        untuned.Prodigy([nn.Parameter(torch.zeros(7, 10, dtype=torch.float64))]).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("iterate", [iterates.Mechanic(), iterates.Mechanize(), iterates.ScheduleFree()])
def test_slices_run_under_every_iterate(iterate):
    params = tensors()
    rule = step_sizes.Prodigy(d0=1e-2, slice_p=2)
    optimizer = untuned.compose(params, directions.Adam(correct=False), rule, iterate)
    before = torch.cat([p.detach().flatten() for p in params])
    assert (follow(params, [optimizer]) - before).abs().max() > 1e-6


def test_a_stuck_estimate_says_so_once():
    w = nn.Parameter(torch.ones(3))
    optimizer = untuned.Prodigy([w], freeze_after=0)
    w.grad = torch.ones(3)
    for _ in range(99):
        optimizer.step()
    with pytest.warns(UserWarning, match=r"^Prodigy: d is still d0=1e-06 after 100 steps\. Raise d0 tenfold"):
        optimizer.step()
    for _ in range(100):
        optimizer.step()
    optimizer.metrics()  # an error if it warned again


def test_a_healthy_run_is_silent():
    """Far weights at a constant gradient, and a regression that converges, where d_hat falls to -100 d and below."""
    w = nn.Parameter(torch.ones(3))
    optimizer = untuned.Prodigy([w])
    for _ in range(200):
        w.grad = w.detach() - 2
        optimizer.step()
    assert optimizer.metrics()["d"] > 0.1
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    optimizer = untuned.Prodigy(model.parameters())
    for _ in range(200):
        x = torch.randn(32, 10)
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
    found = optimizer.metrics()
    assert found["d_hat"] < -100 * found["d"] and loss.item() < 1e-3


def test_a_tensor_that_joins_late_is_frozen_after_its_own_steps():
    w, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = untuned.Prodigy([w, late], d0=1e-3, freeze_after=10, scope="tensor")
    for k in range(40):
        late.requires_grad_(k >= 20)
        for p in (w, late):
            p.grad = p.detach() - 2 if p.requires_grad else None
        optimizer.step()
    assert optimizer.state[late]["d"] > 1.5e-3
    assert optimizer.state[late]["d"] == pytest.approx(optimizer.state[w]["d"].item(), rel=1e-6)


def test_the_checkpoint_of_another_scope_is_refused():
    one, other = (untuned.Prodigy(tensors(), scope=scope) for scope in ("group", "model"))
    with pytest.raises(ValueError, match=r"another method saved this checkpoint, Adam\(.*Prodigy\(scope='group'\)"):
        other.load_state_dict(one.state_dict())
    one, other = (untuned.TAPS([nn.Parameter(torch.ones(1))], samples=n) for n in (3, 6))
    with pytest.raises(ValueError, match=r"TAPS\(samples=3\) .*not Gradient x TAPS\(samples=6\)"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize("execution", ["reference", "native"])
def test_weights_that_are_set_from_outside_stay_so(execution):
    """What rounding took from the old weights is not added to the new ones."""
    w = nn.Parameter(torch.full((64,), 3.3, dtype=torch.bfloat16))
    optimizer = untuned.Prodigy([w], d0=1e-3, weight_decay=0.0, execution=execution)
    for _ in range(10):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert optimizer.state[w]["compensation"].abs().max() > 1e-4
    with torch.no_grad():
        w.fill_(1e-3)
    w.grad = torch.zeros_like(w)
    optimizer.state[w]["exp_avg"].zero_()
    optimizer.step()
    assert (w.detach() == torch.tensor(1e-3, dtype=torch.bfloat16)).all()


@pytest.mark.parametrize("beta2", [0.5, 0.99])
def test_dadapt_lion_keeps_the_sign_while_d_grows(beta2):
    """The package's second step for a constant gradient goes on downwards, however fast d rises."""
    w = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = untuned.DAdaptLion([w], lr=20.0, d0=1.0, betas=(0.4, beta2))
    seen = [w.item()]
    for _ in range(4):
        w.grad = torch.ones_like(w)
        optimizer.step()
        seen.append(w.item())
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 5


@pytest.mark.filterwarnings("ignore:.*hardly decays")  # which is what the last line shows
@pytest.mark.parametrize("iterate", [iterates.Resetting, iterates.ResettingGD])
def test_resetting_decays_and_moves_in_bfloat16(iterate):
    ends = []
    for decay in (untuned.weight_decay.Coupled(), untuned.weight_decay.Decoupled(0.5)):
        w = nn.Parameter(torch.full((4,), 3.0, dtype=torch.bfloat16))
        optimizer = untuned.compose([w], directions.Gradient(), step_sizes.Fixed(1.0), iterate(), decay)
        for _ in range(500 if decay.weight_decay == 0 else 2):
            w.grad = (w.detach().float() - 1.0).bfloat16()
            optimizer.step()
        ends.append(w.detach().float().mean().item())
    assert abs(ends[0] - 1.0) < 0.5
    assert ends[1] < 2.5  # decayed, but from x0 at every step


# ---------------------------------------------------------------- recorded losses


def test_targets_are_one_per_sample_and_travel_with_the_optimizer():
    w = nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    optimizer = untuned.MOTAPS([w], samples=4, target_lr=0.5)
    losses = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    w.grad = torch.tensor([0.5, -0.25], dtype=torch.float64)
    optimizer.step(loss=losses, sample_ids=torch.tensor([2, 0, 2]))  # one loss per sample
    # q = f / (|g|^2 + (2/3)^2 + (1/3)^2); sample 2 is in the batch twice
    q = 0.3 / (0.3125 + 5 / 9)
    expected = torch.tensor([q / 3, 0.0, 2 * q / 3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(optimizer.param_groups[0]["sample_targets"], expected, rtol=1e-14, atol=0)
    other = untuned.MOTAPS([nn.Parameter(w.detach().clone())], samples=4, target_lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.param_groups[0]["sample_targets"], optimizer.param_groups[0]["sample_targets"])


def test_micro_batches_are_one_batch():
    runs = []
    for micro in (False, True):
        w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = untuned.TAPS([w], samples=5)
        w.grad = torch.tensor([0.5], dtype=torch.float64)
        if micro:
            optimizer.record_loss(0.25, sample_ids=[0])
            optimizer.record_loss(0.75, sample_ids=[1, 2, 3])  # of three samples, so it counts three times
            optimizer.step()
        else:
            optimizer.step(loss=0.625, sample_ids=[0, 1, 2, 3])
        runs.append((w.item(), optimizer.param_groups[0]["sample_targets"].tolist()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        (None, ValueError, r"TAPS\.step\(\) needs to know the samples: call step\(loss=loss, sample_ids=ids\)"),
        ([0, 5], ValueError, r"sample_ids must lie between 0 and 4 \(samples=5\), not between 0 and 5\."),
        ([-1], ValueError, r"not between -1 and -1\."),
        ([0.5], TypeError, r"sample_ids must be a vector of whole numbers, not \[0\.5\]\."),
        ([], TypeError, r"sample_ids must be a vector"),
        ([[1]], TypeError, r"sample_ids must be a vector"),
    ],
)
def test_wrong_ids_are_refused_and_change_nothing(ids, error, match):
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = untuned.TAPS([w], samples=5)
    w.grad = torch.tensor([0.5])
    with pytest.raises(error, match=match):
        optimizer.step(loss=0.4, sample_ids=ids)
    assert w.item() == 1.0
    assert not optimizer.param_groups[0]["sample_targets"].any()
    assert optimizer.metrics()["steps"] == 0
