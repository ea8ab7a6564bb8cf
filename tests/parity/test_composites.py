"""Prodigy with Schedule-Free, GPA and cautious weight decay beside published packages, in float64.

No package that can be installed has the authors' GPA or their submission of Prodigy with Schedule-Free, nor random
scaling, SODA, NGN and AM-MSGD: what differs from that code is said in our docstrings.
"""

import numpy as np
import pytest
import torch
from test_new_packages import gap, ours, published, theirs
from test_packages import WAVE, loss_of, parameters, vector

import untuned
from untuned import directions, step_sizes
from untuned.weight_decay import Cautious

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def _float64():
    """The packages keep their averages in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------- Prodigy with Schedule-Free


@pytest.mark.parametrize("options", [{}, {"r": 0.5}, {"betas": (0.8, 0.95)}])
def test_prodigy_that_keeps_its_estimate_is_schedule_free(options):
    """With d_coef=0 d stays d0, here 1, and the bias correction is a factor of the step, which eps does not see."""
    options = {"lr": 0.05, "eps": 1e-14, "weight_lr_power": 0.0} | options
    there = theirs("schedulefree.AdamWScheduleFree", **options)
    assert gap(ours("prodigy_schedule_free", d0=1.0, d_coef=0.0, **options), there, 80, schedule=WAVE) < 1e-10
    assert gap(ours("prodigy_schedule_free", d0=1.01, d_coef=0.0, **options), there, 80, schedule=WAVE) > 1e-3


def plus(params, **options):
    """prodigy-plus-schedule-free without what it adds. It looks at every eleventh element and works in float32."""
    plain = {"d_limiter": False, "factored": False, "use_stableadamw": False, "split_groups": False}
    return published("prodigyplus.ProdigyPlusScheduleFree", params, **plain, **options)


def sliced(params, **options):
    return untuned.ProdigyScheduleFree(params, use_bias_correction=False, slice_p=11, **options)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_prodigy_schedule_free_is_that_of_prodigy_plus(decay):
    """On one batch and at a constant lr. d grows from 0.01 to 0.47, and the run amplifies the rounding of float32."""
    options = {"betas": (0.9, 0.99), "d0": 1e-2, "weight_decay": decay}
    points = []
    for make in (sliced, plus):
        params = parameters()
        optimizer = make(params, **options)
        points.append([])
        for _ in range(15):
            optimizer.zero_grad()
            loss_of(params, 0).backward()
            optimizer.step()
            points[-1].append(vector(params))
        assert optimizer.param_groups[0]["d"] > 0.1
    mine, reference = np.array(points)
    assert np.abs(mine - reference).max() < 1e-4 * np.abs(reference - vector(parameters())).max()


def test_prodigy_counts_steps_against_the_way_come():
    """prodigy-plus leaves them out of the numerator while d is d0; then its d rises sooner.

    arXiv 2306.06101, Algorithm 4: r <- beta3 r + d^2 lr <g, x0 - x>, whatever its sign, as in prodigyopt.
    """

    def numerator(make):
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = make([p], betas=(0.9, 0.81), d0=1e-2)
        for slope in (1.0, -1.0, 0.0):
            p.grad = torch.tensor([slope])
            optimizer.step()
        return float(optimizer.state[p].get("d_numerator", optimizer.param_groups[0].get("d_numerator")))

    z = 1e-2 / np.sqrt(0.19)  # how far the first step goes
    assert numerator(plus) == 0
    assert numerator(sliced) == pytest.approx(-0.9 * 1e-2 * z, rel=1e-5)


# ---------------------------------------------------------------- GPA


@pytest.mark.parametrize("train", [0.9, 0.5])
def test_gpa_that_keeps_all_but_one_in_t_is_schedule_free(train):
    """arXiv 2512.17131: mu_x = (t - 1) / t at step t weighs all points of z alike, and betas[0] = 0 leaves no momentum.

    Nothing decays: in schedulefree the decay is that of y, in GPA that of z.
    """

    def mine(params):
        optimizer = untuned.GPAAdamW(params, lr=0.05, betas=(0.0, 0.99), train=train)
        optimizer.param_groups[0]["steps_taken"] = 0

        def weigh(optimizer, args, kwargs):
            group = optimizer.param_groups[0]
            group["keep"] = group["steps_taken"] / (group["steps_taken"] + 1)
            group["steps_taken"] += 1

        optimizer.register_step_pre_hook(weigh)
        return optimizer

    there = theirs("schedulefree.AdamWScheduleFree", lr=0.05, betas=(train, 0.99), weight_lr_power=0.0)
    assert gap(mine, there, schedule=WAVE) < 1e-12


# ---------------------------------------------------------------- cautious weight decay


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_cautious_decay_is_that_of_adv_optm(options):
    """arXiv 2510.12402: only where the step shrinks the weight too. Decay of all weights leads elsewhere."""

    def mine(params):
        return untuned.compose(params, directions.Adam(**options), step_sizes.Fixed(0.02), decay=Cautious(0.5))

    def there(params):
        return published("adv_optm.AdamW_adv", params, lr=0.02, weight_decay=0.5, cautious_wd=True, **options)

    assert gap(mine, there, schedule=WAVE) < 1e-12
    assert gap(theirs("torch.optim.AdamW", lr=0.02, weight_decay=0.5, **options), there, schedule=WAVE) > 0.1
