"""Naive float64 NumPy transcriptions of the papers' algorithm boxes, to check the optimizers against.

Every oracle is one loop that reads from top to bottom and shares nothing with the library. All are called alike:

    groups = [{"indices": [0], "lr": 0.1}]
    iterates, scalars = momo(x0, problem, steps, lr=1.0, groups=groups, schedule=linear_decay(steps))

- ``x0``: the parameter tensors, a list of arrays of any shapes.
- ``problem(x, k) -> (loss, grads)``: called at the parameters before step k = 1, 2, ...; ``grads`` is shaped as ``x``.
- ``schedule``: the multiplier of lr at each step; None means 1 throughout.
- ``groups``: for the tensors of these indices, other values of ``lr``, ``weight_decay`` and ``schedule``.
- ``iterates[k - 1]``: the parameters a torch module holds after step k (in training mode).
- ``scalars``: per step, the numbers the method chose for itself.

A tensor whose lr is 0 at a step takes no part in that step: its parameters, moments and counters stay, and no sum over
the model includes it. A step in which no tensor takes part advances nothing.
``ordered_momentum`` is called with the index of each gradient in place of ``steps``; it says itself what lr 0 means.
``extrapolated`` takes a list of problems, one for each worker, and calls each at its worker's own point.
Sums over the model and over time are kept per tensor, so that a pausing tensor leaves them with its past.

The methods that estimate a distance measure a group whose lr is the fraction f of the largest now in other units, as if
all had the largest lr: y = x / f where coordinates are normalised (Adam, AdaGrad, Lion, Adan), else y = x / sqrt(f), so
that ||g||^2 counts f times and ||x - x_0||^2 1/f times.
"""

from untuned.testing.oracles.averaging import (
    gpa,
    momo_schedule_free,
    prodigy_schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    sps_schedule_free,
)
from untuned.testing.oracles.classic import adam, adamw, sgd
from untuned.testing.oracles.dadapt import (
    dadapt_adagrad,
    dadapt_adam,
    dadapt_adan,
    dadapt_lion,
    dadapt_sgd,
)
from untuned.testing.oracles.dadapt_convex import dadapt_da, dadapt_gd
from untuned.testing.oracles.decay import adamw_decay
from untuned.testing.oracles.dog import dog, dowg, ldog
from untuned.testing.oracles.dual import gradagrad, gradagrad_diagonal, madgrad, mda, mirror_madgrad, sngm
from untuned.testing.oracles.extrapolation import extrapolated
from untuned.testing.oracles.gradients import adarem, sgdf
from untuned.testing.oracles.heavy_ball import ahb_adam, ahb_sgd, am_msgd, sgd_spa
from untuned.testing.oracles.matrix import muon, muon_momo
from untuned.testing.oracles.mechanic import mechanic, mechanize
from untuned.testing.oracles.momo import momo, momo_adam
from untuned.testing.oracles.multiplicative import multiplicative
from untuned.testing.oracles.ormo import ordered_momentum, ordered_momentum_closed_form
from untuned.testing.oracles.polyak import alig, dec_sps, motaps, ngn, prox_sps, sp, sps, taps
from untuned.testing.oracles.prodigy import prodigy, prodigy_da, prodigy_gd, resetting, resetting_gd
from untuned.testing.oracles.projection import normalize_and_project
from untuned.testing.oracles.protocol import linear_decay
from untuned.testing.oracles.relative import relative, relative_muon
from untuned.testing.oracles.scaling import random_point, random_scaled, random_scaled_schedule_free
from untuned.testing.oracles.tam import adatam, adatamw, tam

__all__ = [
    "adam",
    "adamw",
    "adamw_decay",
    "adarem",
    "adatam",
    "adatamw",
    "ahb_adam",
    "ahb_sgd",
    "alig",
    "am_msgd",
    "dadapt_adagrad",
    "dadapt_adam",
    "dadapt_adan",
    "dadapt_da",
    "dadapt_gd",
    "dadapt_lion",
    "dadapt_sgd",
    "dec_sps",
    "dog",
    "dowg",
    "extrapolated",
    "gpa",
    "gradagrad",
    "gradagrad_diagonal",
    "ldog",
    "linear_decay",
    "madgrad",
    "mda",
    "mechanic",
    "mechanize",
    "mirror_madgrad",
    "momo",
    "momo_adam",
    "momo_schedule_free",
    "motaps",
    "multiplicative",
    "muon",
    "muon_momo",
    "ngn",
    "normalize_and_project",
    "ordered_momentum",
    "ordered_momentum_closed_form",
    "prodigy",
    "prodigy_da",
    "prodigy_gd",
    "prodigy_schedule_free",
    "prox_sps",
    "random_point",
    "random_scaled",
    "random_scaled_schedule_free",
    "relative",
    "relative_muon",
    "resetting",
    "resetting_gd",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "sgd_spa",
    "sgdf",
    "sngm",
    "sp",
    "sps",
    "sps_schedule_free",
    "tam",
    "taps",
]
