"""The study of momentum as smoothing: what the published noise scale says, and what noise there is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from untuned.study.papers import smoothing_runs as runs
from untuned.study.papers.frame import OURS, Claim, PaperStudy, Rows, all_told, told
from untuned.study.papers.momentum_runs import TASK
from untuned.study.papers.smoothing_figures import panels
from untuned.study.papers.smoothing_tables import pair, tables
from untuned.study.stats import Floats, interval

_At = tuple[str, float, int]  # kind, beta, batch size


def claims(rows: Rows) -> list[Claim]:
    """The rules are those of `about`."""
    settings = [(kind, beta, batch) for kind in runs.KINDS for beta in runs.BETAS[1:] for batch in runs.BATCHES]
    share = {one: np.sqrt(runs.measured(rows, *one)["total"] / runs.measured(rows, *one)["bound"]) for one in settings}
    spans = {one: interval(values) for one, values in share.items()}
    low, high = min(share, key=lambda one: share[one].mean()), max(share, key=lambda one: share[one].mean())
    n = len(share[settings[0]])
    told_by = f"n = {n} seeds each"
    ranges = f"{_of(share, spans, low)} to {_of(share, spans, high)}; {len(settings)} settings, {told_by}"
    found = [
        Claim(
            "The noise scale delta is at most the published bound",
            "a theorem, with C2 and K of the whole run",
            f"measured delta / bound: {ranges}",
            all_told([told(bounds, 0.0, 1.0) for bounds in spans.values()]),
        ),
        Claim(
            "The bound tells delta within a factor of 2",
            "used as its value: delta is set by it in schedules and set beside accuracy in its figures",
            f"measured delta / bound: {ranges}",
            all_told([told(bounds, 0.5, 1.0) for bounds in spans.values()]),
        ),
    ]
    heavy = {b: runs.measured(rows, "shb", 0.9, b) for b in runs.BATCHES}
    shares = {b: interval(one["bound_share"]) for b, one in heavy.items()}
    said = ", ".join(
        f"{b}: {100 * heavy[b]['bound_share'].mean():.0f} % ({pair(shares[b], 100)})" for b in runs.BATCHES
    )
    found.append(
        Claim(
            "At beta 0.9 the bound of heavy ball is mostly due to the norm of the gradient, not to noise",
            "94 % of delta^2 with the constants of its code (ResNet18, CIFAR-100, batches of 128, not 8)",
            f"share of the part with K^2, by batch: {said}; {told_by}",
            all_told([told(bounds, 0.5) for bounds in shares.values()]),
        )
    )
    ratio = {b: np.sqrt(heavy[b]["total"] / runs.measured(rows, "nshb", 0.9, b)["total"]) for b in runs.BATCHES}
    ratio = {b: values * heavy[b]["lr"] / runs.ETA for b, values in ratio.items()}
    spans_by_form = {b: interval(values) for b, values in ratio.items()}
    said = ", ".join(f"{b}: {ratio[b].mean():.2f} ({pair(spans_by_form[b])})" for b in runs.BATCHES)
    found.append(
        Claim(
            "Delta is alike for one path in two forms: heavy ball and averaged momentum at the coupled learning rate",
            f"{OURS}: delta is defined for each form, and is to explain what the run finds",
            f"delta of heavy ball / delta of averaged, beta 0.9, by batch: {said}; {told_by}",
            all_told([told(bounds, 0.9, 1.1) for bounds in spans_by_form.values()]),
        )
    )
    return [*found, _critical_claim(rows), *_schedule_claims(rows)]


def _critical_claim(rows: Rows) -> Claim:
    found = runs.sweeps(rows)
    ratios = np.array([math.log10(one.C2 / C2) for one, C2 in found])
    bounds = interval(ratios)
    n = len({row["seed"] for row in rows["steps_to_goal"]})
    batches = ", ".join(str(one.batch) for one, _ in found)
    return Claim(
        "The critical batch size gives the variance of the gradient, to an order of magnitude",
        "used to estimate C2; C2 itself is not measured",
        f"estimate / measured C2: {10 ** ratios.mean():.2f} ({pair(bounds and (10 ** bounds[0], 10 ** bounds[1]))}); "
        f"critical batch sizes {batches}; {len(found)} of n = {n} seeds reached the goal, most of them at the "
        "earliest step at which it is looked for, so that they are the smallest batch that arrives",
        told(bounds, -1.0, 1.0),
    )


def _schedule_claims(rows: Rows) -> list[Claim]:
    finals = {method: runs.finals_of(rows, method, runs.best_eta(rows, method)) for method in runs.METHODS}
    found = list[Claim]()
    for method in ("lr", "batch", "beta"):
        for other, word in (("constant", "no schedule"), ("linear", "linear decay of the learning rate")):
            gain = finals[method] - finals[other]
            bounds = interval(gain)
            found.append(
                Claim(
                    f"The graduated schedule of the {_WORDS[method]} is more accurate than {word}",
                    "its follow-up reports gains over constant values; its numbers could not be read"
                    if other == "constant"
                    else OURS,
                    f"{gain.mean():+.2f} points ({pair(bounds, form='+.2f')}; eta {runs.best_eta(rows, method):g} "
                    f"against {runs.best_eta(rows, other):g}, n = {len(gain)} fresh seeds)",
                    told(bounds, 0.0),
                )
            )
    return found


_WORDS = {"lr": "learning rate", "batch": "batch size", "beta": "momentum factor"}


def _of(share: Mapping[_At, Floats], spans: Mapping[_At, tuple[float, float] | None],
        one: _At) -> str:  # fmt: skip
    kind, beta, batch = one
    return f"{share[one].mean():.2f} ({pair(spans[one])}; {runs.KINDS[kind]}, beta {beta:g}, batch {batch})"


STUDY = PaperStudy(
    name="smoothing",
    title="Momentum as smoothing",
    source=(
        "Sato, Iiduka: Role of Momentum in Smoothing Objective Function and Generalizability of Deep Neural Networks, "
        "arXiv 2402.02325; formulas from the code iiduka-researches/igo-aaai25 of its follow-up, the text was not read"
    ),
    about=f"""
The step eta d of a search direction d differs from that of gradient descent by eta (d - grad f), which acts like
smoothing of the loss to the degree delta = eta sqrt(E |d - grad f|^2). The paper bounds delta by learning rate, batch
size, momentum, the variance C2 of gradients and their norm K. Here all of them are measured, on an MLP of
784-100-100-10 on 2,000 Fashion-MNIST images with batches drawn with replacement; the paper has ResNets on CIFAR-100.

Noise: at the coupled eta = {runs.ETA:g}, {runs.WINDOW} steps after {runs.SETTLE + runs.SKIP}. The bound takes the mean
C2 and the largest |grad f| of that stretch; the exact values are for a full gradient that does not change, of the
stretch's mean square. Bias and variance are told apart by a copy of the optimizer that gets full gradients at the
same points. Schedules: graduated ones let delta fall as ((M - t) / M)^{runs.POWER:g} over M = {runs.STAGES} stages of
equally many samples, C2 and K being measured at the initial weights; with the power 1 the schedule of the learning rate
would be linear decay. Each has its best of {len(runs.RATES)} etas by the sweep, and is judged on four times as many
fresh seeds.

Rules, fixed before the runs, by 95 % bootstrap intervals over seeds, in every setting that a claim names: measured
delta / bound within 0 to 1, and within 0.5 to 1; share of the part with K^2 above one half; two deltas alike within
10 %; estimated C2 within a factor of 10 of the measured; accuracy higher: the interval of paired differences is above
zero. Pilots with other seeds (1000 to 1002) chose the settings and showed what to expect of all parts. In a trial a
network whose units had died met the goal of the search for the critical batch size, since its gradient is zero; from
then on the training loss has to be below ln(10) / 2 too.
""",
    jobs=runs.jobs,
    claims=claims,
    tables=tables,
    panels=panels,
    seeds=4,
    data=(TASK,),
)
