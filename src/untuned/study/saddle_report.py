"""The study of saddles as a page in Markdown and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from untuned.study import charts
from untuned.study.looks import INK, Style, styles
from untuned.study.saddle import ENOUGH, LIMIT, SETTINGS, Outcome, Point, flagged
from untuned.study.saddle_problems import Saddle, growth
from untuned.study.stats import interval

_INTRO = """\
# Momentum and saddles

Replayed after arXiv 2106.02985 with `untuned.SGD`, one sample a step, {seeds} seeds, heavy ball in torch's form.
The paper: escape is faster by the factor 1 - beta, as long as momentum and gradient agree (APAG).

![paths, escape times, errors, shares](saddle.png)

Means over the seeds that arrived. Of steps / (1 - beta) the paper predicts that they are the same for every beta; to
beta 0: their ratio, seed by seed, with the 95 % bootstrap interval of its mean. APAG: <grad f, m - g> / |grad f|^2 is
at least {limit}; share of measurements, and the ratio of the means of both sides. CNC: mean <m, v>^2 where the
curvature is negative. APCG, GrACE: means of <grad f, M m> / (eta sigma(M) |grad f|^2) and of
[eta <grad f, g - m> + eta^2/2 m'Hm] / eta^2. All are medians over seeds, but the share, which is a mean.
"""
_COLUMNS = ("beta", "arrived", "diverged", "steps", "steps / (1 - beta)", "off their mean", "to beta 0", "interval")
_COLUMNS += ("APAG share", "APAG mean", "CNC", "APCG", "GrACE")


def write(folder: Path, outcomes: Sequence[Outcome], points: Sequence[Point]) -> Path:
    """Write `saddle.md` and `saddle.png` and return the path of the first."""
    _picture(folder / "saddle.png", outcomes, points)
    lines = [_INTRO.format(seeds=len({o.seed for o in outcomes}), limit=LIMIT)]
    for name in dict.fromkeys(o.problem for o in outcomes):
        mine = [o for o in outcomes if o.problem == name]
        setting, means = SETTINGS[name], scaled_means(mine)
        start = {o.seed: o.scaled for o in mine if o.beta == 0}
        lines += [f"## {setting.title.capitalize()}\n", f"eta {setting.eta:g}, tau {setting.tau}.\n"]
        rows = [_row(beta, [o for o in mine if o.beta == beta], means, start) for beta in means]
        lines += [f"| {' | '.join(row)} |" for row in (_COLUMNS, ["--:"] * len(_COLUMNS), *rows)]
        lines += ["", *_findings(name, mine, means), ""]
    page = folder / "saddle.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


def scaled_means(outcomes: Sequence[Outcome]) -> dict[float, float]:
    """Mean steps over 1 - beta of the runs that arrived, by beta; NaN where none did."""
    found = {
        beta: [o.scaled for o in outcomes if o.beta == beta and not math.isnan(o.steps)] for beta in _betas(outcomes)
    }
    return {beta: float(np.mean(scaled)) if scaled else math.nan for beta, scaled in found.items()}


def predicted(beta: float, at_zero: float) -> float:
    """Steps over 1 - beta that the growth per step, log(1 + `growth`), and the first beta / (1 - beta) steps, in which
    momentum builds up, make of `at_zero` steps without momentum."""
    eta, curvature = SETTINGS["saddle"].eta, 0.1
    steps = at_zero * math.log1p(growth(0.0, eta, curvature)) / math.log1p(growth(beta, eta, curvature))
    return (steps + beta / (1 - beta)) / (1 - beta)


def _betas(outcomes: Sequence[Outcome]) -> list[float]:
    return sorted({o.beta for o in outcomes})


def _row(beta: float, outcomes: Sequence[Outcome], means: dict[float, float], start: dict[int, float]) -> list[str]:
    steps, mean = np.array([o.steps for o in outcomes]), np.nanmean(list(means.values()))
    ratio = np.array([o.scaled / start[o.seed] for o in outcomes])
    within = interval(ratio[~np.isnan(ratio)])
    return [
        f"{beta:g}",
        f"{np.sum(~np.isnan(steps))} of {len(steps)}",
        f"{sum(o.diverged for o in outcomes)}",
        f"{(1 - beta) * means[beta]:.0f}",
        f"{means[beta]:.0f}",
        f"{100 * (means[beta] / mean - 1):+.1f} %",
        f"{np.nanmean(ratio):.3f}",
        "" if within is None else f"{within[0]:.3f} to {within[1]:.3f}",
        f"{100 * np.nanmean([o.apag_within for o in outcomes]):.1f} %",
        *(
            f"{np.nanmedian([getattr(o, key) for o in outcomes]):.3g}"
            for key in ("apag_mean", "cnc_mean", "apcg_mean", "grace_mean")
        ),
    ]


def _findings(name: str, outcomes: Sequence[Outcome], means: dict[float, float]) -> list[str]:
    if name == "saddle":
        if any(map(math.isnan, means.values())):
            return ["Not every beta has runs that arrived."]
        lowest = min(o.apag_mean for o in outcomes)
        off = max(abs(m / np.mean(list(means.values())) - 1) for m in means.values())
        largest = max(means)
        ratio = predicted(largest, means[0.0]) / means[0.0] - 1
        return [
            f"Steps / (1 - beta) differ from their mean by at most {100 * off:.1f} %.",
            f"At beta {largest:g} the growth per step, the larger root of the recursion, and the steps in which "
            f"momentum builds up predict {100 * ratio:.1f} % more than at beta 0. With exact gradients that is what it "
            "takes; with single samples their noise moves runs off the saddle too. The interval says what is known.",
            "The gradient at the saddle is small beside the noise of a sample, so that single APAG ratios scatter "
            f"around the limit for every beta > 0, and their share says little. Their lowest mean is {lowest:.2g}.",
        ]
    bad = flagged(outcomes)
    good = [beta for beta in means if not any(beta >= b for b in bad)]
    advice = f"largest beta to use: {max(good):g}" if good else "none is small enough"
    listed = ", ".join(f"{b:g}" for b in bad) or "none"
    return [f"Too large, with APAG in fewer than {100 * ENOUGH:g} % of measurements: {listed}; {advice}."]


# The picture


def _picture(path: Path, outcomes: Sequence[Outcome], points: Sequence[Point]) -> None:
    by_beta = styles({f"{beta:g}": f"beta {beta:g}" for beta in _betas(outcomes)})
    looks = {float(beta): style for beta, style in by_beta.items()}
    panels: list[Callable[..., None]] = [_paths, _times, _errors, _shares]
    with mpl.rc_context(charts._RC):
        figure = Figure((10.6, 8.6), facecolor="white", layout="constrained")
        for ax, panel in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
            panel(ax, outcomes, points, looks)
        lines = [Line2D([], [], color=s.color, marker=s.marker, ls=s.dash, label=s.label) for s in looks.values()]
        note = f"n = {len({o.seed for o in outcomes})} seeds; bars: 95 % bootstrap intervals of the mean"
        place = {"loc": "outside lower center", "ncols": len(lines), "frameon": False}
        figure.legend(handles=lines, title=note, title_fontsize=9, **place)
        figure.savefig(path, format="png", dpi=130)


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize=10.5, loc="left", weight="bold")


def _paths(ax: Axes, outcomes: Sequence[Outcome], points: Sequence[Point], looks: dict[float, Style]) -> None:
    """The paths of the seed that arrives first, on the level lines of its f; its runs go on while others are away."""
    mine = [o for o in outcomes if o.problem == "saddle"]
    seed = min(mine, key=lambda o: math.inf if math.isnan(o.steps) else o.scaled).seed
    _title(ax, f"Saddle in the plane: paths of seed {seed}")
    problem = Saddle([seed])
    lines = np.linspace(-0.4, 0.4, 81), np.linspace(-0.75, 0.75, 121)
    grid = torch.tensor(np.stack(np.meshgrid(*lines), -1).reshape(-1, 1, 2))
    f = np.array([problem.losses(w).item() for w in grid]).reshape(121, 81)
    ax.contour(*lines, f, levels=np.linspace(-0.03, 0.06, 19), colors="#B0B0B0", linewidths=0.7)
    for beta, style in looks.items():
        xy = np.array([(p.x, p.y) for p in points if p.problem == "saddle" and p.beta == beta and p.seed == seed])
        ax.plot(*xy.T, color=style.color, ls=style.dash, lw=1.1)
        ax.plot(*xy[-1], style.marker, color=style.color, ms=7, mec="white", zorder=3)
    ax.plot(0, 0, "+", color=INK, ms=10, mew=1.5)
    ax.annotate("start", (0, 0), (5, 5), textcoords="offset points", fontsize=8.5)
    ax.set(xlabel="w1", ylabel="w2")


def _times(ax: Axes, outcomes: Sequence[Outcome], _: Sequence[Point], looks: dict[float, Style]) -> None:
    """Escape times in the paper's unit: a line per seed, the mean with its interval, and what growth predicts."""
    _title(ax, "Saddle in the plane: escape")
    mine = [o for o in outcomes if o.problem == "saddle"]
    means = scaled_means(mine)
    for seed in sorted({o.seed for o in mine}):
        one = sorted((o.beta, o.scaled) for o in mine if o.seed == seed)
        ax.plot(*np.array(one).T, color="#8C8C8C", lw=0.7, alpha=0.6)
    for beta, style in looks.items():
        scaled = np.array([o.scaled for o in mine if o.beta == beta])
        ax.plot(np.full(len(scaled), beta), scaled, ".", color=style.color, alpha=0.35, ms=5)
        low, high = interval(scaled[~np.isnan(scaled)]) or (means[beta], means[beta])
        ax.plot([beta, beta], [low, high], color=style.color)
        ax.plot(beta, means[beta], style.marker, color=style.color, ms=8, zorder=3)
    curve = np.linspace(0, max(looks), 60)
    ax.plot(curve, [predicted(b, means[0.0]) for b in curve], color=INK, lw=1, ls=(0, (4, 3)))
    ax.annotate(
        "from the growth per step", (curve[4], predicted(curve[4], means[0.0])), (0, 6), textcoords="offset points",
        fontsize=8.5,
    )  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.set(xlabel="beta", ylabel="steps to half of the descent, times 1/(1 - beta)")


def _errors(ax: Axes, _: Sequence[Outcome], points: Sequence[Point], looks: dict[float, Style]) -> None:
    """Medians over the seeds that still run; a line per seed in the background."""
    _title(ax, "Phase retrieval: distance to the solution")
    for beta, style in looks.items():
        mine = [p for p in points if p.problem == "phase" and p.beta == beta]
        by_step: dict[int, list[float]] = {}
        for p in mine:
            by_step.setdefault(p.step, []).append(p.x)
        ax.plot(list(by_step), [np.median(v) for v in by_step.values()], color=style.color, ls=style.dash)
        for seed in sorted({p.seed for p in mine}):
            xy = np.array([(p.step, p.x) for p in mine if p.seed == seed])
            ax.plot(*xy.T, color=style.color, lw=0.6, alpha=0.35)
    ax.axhline(0.1, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.set_yscale("log")
    ax.set_ylim(0.01, 10)
    ax.set(xlabel="steps", ylabel="error (share of |w*|), median and seeds")


def _shares(ax: Axes, outcomes: Sequence[Outcome], _: Sequence[Point], looks: dict[float, Style]) -> None:
    """Share of measurements within APAG, by beta, for both problems."""
    _title(ax, f"Measurements with an APAG ratio of at least {LIMIT:g}")
    for i, (name, setting) in enumerate(SETTINGS.items()):
        for x, (beta, style) in enumerate(looks.items()):
            shares = 100 * np.array([o.apag_within for o in outcomes if o.problem == name and o.beta == beta])
            place, filled = x + 0.24 * (i - 0.5), name == "phase"
            mean = float(np.nanmean(shares))
            low, high = interval(shares[~np.isnan(shares)]) or (mean, mean)
            ax.plot([place, place], [low, high], color=style.color)
            face = style.color if filled else "white"
            ax.plot(place, mean, style.marker, color=style.color, mfc=face, ms=8)
        ax.plot([], [], "o", color="#8C8C8C", mfc="#8C8C8C" if name == "phase" else "white", label=setting.title)
    ax.axhline(100 * ENOUGH, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.annotate("flagged below", (0.02, 100 * ENOUGH), (0, -3), va="top", fontsize=8.5,
                xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    ax.set_xticks(range(len(looks)), [f"{beta:g}" for beta in looks])
    ax.set_ylim(0, 104)
    ax.legend(loc="lower left", frameon=False, fontsize=8.5)
    ax.set(xlabel="beta", ylabel="share of measurements (%)")
