"""The trajectory map as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray


def draw_map(
    ax: Axes,
    matrix: NDArray[np.float64],
    steps: Sequence[int] | NDArray[np.int64],
    *,
    lowest: float | None = None,
    label: str = "cosine of two points",
    unit: str = "step",
) -> AxesImage:
    """Draw cosines [points, points] of a `TrajectoryMap` with a colour bar; both axes are the points' steps.

    The colours (viridis, perceptually uniform, lighter is larger in grey too) run from `lowest`, the smallest cosine if
    it is not given, to 1. Points without a direction, whose cosines are NaN, are left out.
    """
    there = ~np.isnan(np.diag(matrix))
    shown, at = matrix[np.ix_(there, there)], np.asarray(steps)[there]
    if not len(at):
        raise ValueError("draw_map: no point of the map has a direction.")
    lowest = float(shown.min()) if lowest is None else lowest
    low = lowest if lowest < 1 else 0.0  # all points on one ray: the bar needs a range
    image = ax.imshow(shown, cmap="viridis", vmin=low, vmax=1, interpolation="nearest", aspect="equal")
    ticks = [int(k) for k in MaxNLocator(5, integer=True).tick_values(0, len(at) - 1) if 0 <= k < len(at)]
    ax.set_xticks(ticks, [str(at[k]) for k in ticks])
    ax.set_yticks(ticks, [str(at[k]) for k in ticks])
    ax.set(xlabel=unit, ylabel=unit)
    ax.grid(visible=False)
    figure = ax.figure
    bar = figure.colorbar(image, ax=ax, label=label)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return image
