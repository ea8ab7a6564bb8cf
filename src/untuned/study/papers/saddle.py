"""The study of saddles: how fast momentum leaves them, and when it is too much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from untuned.study.papers.frame import Claim, Job, PaperStudy, Row, Rows, Table, all_told, told
from untuned.study.papers.saddle_figures import panels
from untuned.study.papers.saddle_runs import (
    BETAS,
    ENOUGH,
    SETTINGS,
    Outcome,
    Point,
    flagged,
    outcomes_of,
    predicted,
    ratios,
    run,
    scaled_means,
)
from untuned.study.stats import interval

SHOWN = 6  # seeds of which paths are drawn


def escape(*, problem: str, beta: float, seeds: int) -> list[Row]:
    """What `run` measures, a row a seed."""
    return [_row(outcome, ("problem", "beta")) for outcome in run(problem, beta, range(seeds))[0]]


def paths(*, problem: str, beta: float, seeds: int) -> list[Row]:
    """Where the same runs were, a row a point."""
    return [_row(point, ("problem", "beta")) for point in run(problem, beta, range(seeds))[1]]


def _row(found: Outcome | Point, without: Sequence[str]) -> Row:
    return {name: value for name, value in asdict(found).items() if name not in without}


def jobs(seeds: int, _: Rows) -> list[Job]:
    """The runs of one beta go side by side, so that they are one job; paths are drawn of six seeds at most."""
    settings = [{"problem": problem, "beta": beta} for problem in SETTINGS for beta in BETAS]
    return [Job(escape, {**one, "seeds": seeds}) for one in settings] + [
        Job(paths, {**one, "seeds": min(seeds, SHOWN)}) for one in settings
    ]


def claims(rows: Rows) -> list[Claim]:
    """That a factor is 1 - beta: within 10 % of it. That a beta is flagged: APAG in fewer than 95 % of measurements."""
    outcomes, found = outcomes_of(rows), list[Claim]()
    for name, setting in SETTINGS.items():
        mine = [o for o in outcomes if o.problem == name]
        too_large = flagged(mine) if name == "phase" else []
        kept = [beta for beta in BETAS if beta > 0 and beta not in too_large]
        near = {beta: interval(ratios(mine, beta)) for beta in kept}
        said = ", ".join(
            f"{beta:g}: {ratios(mine, beta).mean():.3f} ({bounds[0]:.3f} to {bounds[1]:.3f})"
            for beta, bounds in near.items()
            if bounds
        )
        n = len({o.seed for o in mine})
        where = " for the betas that APAG does not flag" if name == "phase" else ""
        found.append(
            Claim(
                f"{setting.title.capitalize()}: escape takes 1 - beta times the steps{where}",
                "steps / (1 - beta) do not depend on beta (its theorem)",
                f"ratio to beta 0, by beta: {said}; n = {n} seeds",
                all_told([told(bounds, 0.9, 1.1) for bounds in near.values()]),
            )
        )
    phase = [o for o in outcomes if o.problem == "phase"]
    bad = flagged(phase)
    shares = {beta: np.array([o.apag_within for o in phase if o.beta == beta]) for beta in BETAS}
    largest = shares[max(BETAS)]
    found.append(
        Claim(
            "Phase retrieval: beta cannot be arbitrarily close to 1; where momentum no longer agrees with the "
            "gradient (APAG), it is too large",
            "needed by the theorem; the paper shows beta 0.9 as its fastest run, batch size not stated",
            f"single samples: APAG in {100 * largest.mean():.1f} % of measurements at beta {max(BETAS):g}, in at least "
            f"{100 * min(shares[beta].mean() for beta in BETAS[:-1]):.1f} % below; "
            f"{sum(o.diverged for o in phase if o.beta == max(BETAS))} of {len(largest)} runs diverged there, "
            f"{sum(o.diverged for o in phase if o.beta < max(BETAS))} below",
            "holds here" if bad == [max(BETAS)] else "does not hold here",
        )
    )
    return found


def tables(rows: Rows) -> list[Table]:
    """All betas on both problems."""
    outcomes, found = outcomes_of(rows), list[Table]()
    for name, setting in SETTINGS.items():
        mine = [o for o in outcomes if o.problem == name]
        means = scaled_means(mine)
        found.append(
            Table(
                f"{setting.title.capitalize()}: eta {setting.eta:g}, tau {setting.tau}",
                _COLUMNS,
                [_cells(mine, beta, means) for beta in means],
                _finding(name, mine, means),
            )
        )
    return found


_COLUMNS = ("beta", "arrived", "diverged", "steps", "steps / (1 - beta)", "off their mean", "to beta 0", "interval")
_COLUMNS += ("APAG share", "APAG mean", "CNC", "APCG", "GrACE")


def _cells(outcomes: Sequence[Outcome], beta: float, means: Mapping[float, float]) -> list[str]:
    here, ratio = [o for o in outcomes if o.beta == beta], ratios(outcomes, beta)
    mean, bounds = np.nanmean(list(means.values())), interval(ratio)
    return [
        f"{beta:g}",
        f"{sum(not math.isnan(o.steps) for o in here)} of {len(here)}",
        f"{sum(o.diverged for o in here)}",
        f"{(1 - beta) * means[beta]:.0f}",
        f"{means[beta]:.0f}",
        f"{100 * (means[beta] / mean - 1):+.1f} %",
        f"{ratio.mean():.3f}",
        "none" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}",
        f"{100 * np.nanmean([o.apag_within for o in here]):.1f} %",
        *(
            f"{np.nanmedian([getattr(o, key) for o in here]):.3g}"
            for key in ("apag_mean", "cnc_mean", "apcg_mean", "grace_mean")
        ),
    ]


def _finding(name: str, outcomes: Sequence[Outcome], means: Mapping[float, float]) -> str:
    if name == "phase":
        bad = flagged(outcomes)
        good = [beta for beta in means if not any(beta >= b for b in bad)]
        advice = f"largest beta to use: {max(good):g}" if good else "none is small enough"
        listed = ", ".join(f"{b:g}" for b in bad) or "none"
        return f"Too large, with APAG in fewer than {100 * ENOUGH:g} % of measurements: {listed}; {advice}."
    if any(map(math.isnan, means.values())):
        return "Not every beta has runs that arrived."
    largest = max(means)
    ratio = predicted(largest, means[0.0]) / means[0.0] - 1
    return (
        f"At beta {largest:g} the growth per step, the larger root of the recursion, and the steps in which momentum "
        f"builds up predict {100 * ratio:.1f} % more than at beta 0. With exact gradients that is what it takes; with "
        "single samples their noise moves runs off the saddle too. The gradient at the saddle is small beside the "
        "noise of a sample, so that single APAG ratios scatter around the limit for every beta > 0, and their share "
        f"says little. The lowest mean of a run is {min(o.apag_mean for o in outcomes):.2g}."
    )


STUDY = PaperStudy(
    name="saddle",
    title="Momentum and saddles",
    source=(
        "Wang, Lin, Abernethy: Escaping Saddle Points Faster with Stochastic Momentum, ICLR 2020, arXiv 2106.02985; "
        "main text read, appendices not"
    ),
    about="""
Heavy ball in torch's form with `untuned.SGD`, one sample a step, on the paper's two problems. The saddle's eta is a
hundred times the paper's, so that a run takes thousands of steps and not hundreds of thousands.

Steps and the ratio to beta 0 are means over the seeds that arrived, the ratio seed by seed, with a 95 % bootstrap
interval. APAG: <grad f, m - g> / |grad f|^2 is at least -0.5; share of measurements, a mean over seeds, and the ratio
of the means of both sides. CNC: mean <m, v>^2 where the curvature is negative. APCG, GrACE: means of
<grad f, M m> / (eta sigma(M) |grad f|^2) and of [eta <grad f, g - m> + eta^2/2 m'Hm] / eta^2. Both, and CNC, are
medians over seeds.

Rules. A factor is 1 - beta if the interval of the ratio lies within 0.9 to 1.1 for every beta; a beta is flagged as too
large where fewer than 95 % of the measurements are within APAG. At the saddle in the plane the gradient is small
beside the noise of a sample, so that single ratios say little and no beta is flagged by them. The first six seeds were
looked at before these rules were written.
""",
    jobs=jobs,
    claims=claims,
    tables=tables,
    panels=panels,
    seeds=24,
)
