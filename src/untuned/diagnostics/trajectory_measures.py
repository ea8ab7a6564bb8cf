"""Numbers that say how the points theta_0, theta_1, ... of a training run lie to each other: arXiv 2403.07379.

The definitions of mean directional similarity and of the angles are recalled, not read in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
By = Callable[[str], str | None] | str | None
CENTERS = ("origin", "init")
ALL = "all"  # the group of all parameters


@dataclass(frozen=True)
class Series:
    """What was measured at each recorded point of one group of parameters; all arrays have shape [points].

    An update is the difference of two recorded points, so of `every` steps of the optimizer. All angles are in degrees,
    in [0, 180], and NaN where one of the two directions is not there: at the first points, or where nothing moved.
    """

    steps: NDArray[np.int64]  # of the optimizer, before the point
    norm: Floats  # |theta_t|
    distance: Floats  # |theta_t - theta_0|
    update: Floats  # |theta_t - theta_{t-1}|; NaN at the first point
    product: Floats  # <theta_t - theta_{t-1}, theta_{t-1} - theta_{t-2}>; NaN at the first two

    @property
    def path(self) -> Floats:
        """Length of the path up to each point, [points]: the sum of the norms of the updates."""
        return np.cumsum(np.nan_to_num(self.update))

    @property
    def update_cosine(self) -> Floats:
        """Cosine of each update and the one before, [points], in [-1, 1]; NaN at the first two points."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(self.product / (self.update * _before(self.update)), -1, 1)

    @property
    def update_angle(self) -> Floats:
        """Angle between each update and the one before."""
        return np.degrees(np.arccos(self.update_cosine))

    @property
    def start_angle(self) -> Floats:
        """Angle at theta_0 between the directions to theta_{t-1} and to theta_t."""
        return angle(_before(self.distance), self.distance, self.update)

    @property
    def origin_angle(self) -> Floats:
        """Angle at the origin between theta_{t-1} and theta_t."""
        return angle(_before(self.norm), self.norm, self.update)


@dataclass(frozen=True)
class Measures:
    """One trajectory of one group of parameters in numbers. NaN is what is not defined, as an angle without updates."""

    points: int  # how many points have a direction from the centre: the mean is over these
    mds: float  # mean directional similarity: mean of all cosines of two points, each point with itself included
    mds_off_diagonal: float  # the same without each point with itself, (points mds - 1) / (points - 1)
    update_angle: float  # mean over the run of the angles of `Series`, in degrees
    start_angle: float
    origin_angle: float
    norm_start: float  # |theta_0|
    norm_end: float  # |theta_T|
    distance: float  # |theta_T - theta_0|
    path: float  # sum of the norms of the updates
    straightness: float  # distance / path, in [0, 1]
    relative_movement: float  # distance / |theta_0|
    effective_rank: float = math.nan  # of the matrix of cosines, in [1, points]; needs that matrix


def measures(series: Series, points: int, mds: float, effective_rank: float = math.nan) -> Measures:
    """The numbers of a series, whose mean directional similarity over so many points is known."""
    path, distance, start = float(series.path[-1]), float(series.distance[-1]), float(series.norm[0])
    return Measures(
        points=points,
        mds=mds,
        mds_off_diagonal=(points * mds - 1) / (points - 1) if points > 1 else math.nan,
        update_angle=_mean(series.update_angle),
        start_angle=_mean(series.start_angle),
        origin_angle=_mean(series.origin_angle),
        norm_start=start,
        norm_end=float(series.norm[-1]),
        distance=distance,
        path=path,
        straightness=distance / path if path > 0 else math.nan,
        relative_movement=distance / start if start > 0 else math.nan,
        effective_rank=effective_rank,
    )


def angle(a: Floats, b: Floats, c: Floats) -> Floats:
    """The angle between the sides `a` and `b` of triangles whose third sides are `c`, in degrees; NaN if a or b is 0.

    By Kahan's formula, which also keeps the digits of the angle of a needle: of two points far out and close together
    the cosine is 1 to rounding.

    >>> angle(np.array([3.0]), np.array([4.0]), np.array([5.0]))
    array([90.])
    """
    far, near = np.maximum(a, b), np.minimum(a, b)
    least = np.minimum(near, c)
    inner = np.where(near >= c, c - (far - near), near - (far - c))  # near + c - far without cancellation
    with np.errstate(invalid="ignore", divide="ignore"):
        above = np.maximum((far - near) + c, 0) * np.maximum(inner, 0)
        below = (far + (near + c)) * np.maximum((far - c) + near, 0)
        found = np.degrees(2 * np.arctan2(np.sqrt(above), np.sqrt(below)))
    return np.where((near > 0) & ~np.isnan(least), found, np.nan)


def cosines(gram: Floats) -> Floats:
    """The cosines of the points whose inner products are `gram` [n, n]; NaN in the row and column of a zero."""
    norms = np.sqrt(np.diag(gram))
    norms = np.where(norms > 0, norms, np.nan)
    found = np.clip(gram / np.outer(norms, norms), -1, 1)
    np.fill_diagonal(found, np.where(np.isnan(norms), np.nan, 1.0))
    return found


def defined(matrix: Floats) -> Floats:
    """The rows and columns of a matrix of cosines that are not NaN."""
    there = ~np.isnan(np.diag(matrix))
    return matrix[np.ix_(there, there)]


def effective_rank(matrix: Floats) -> float:
    """exp of the entropy of the eigenvalues of a matrix of cosines [n, n], divided by n: in [1, n]; NaN without points.

    After Roy and Vetterli, The effective rank, EUSIPCO 2007. 1: all points on one ray; n: all orthogonal.

    >>> round(effective_rank(np.eye(4)), 6), round(effective_rank(np.ones((4, 4))), 6)
    (4.0, 1.0)
    """
    matrix = defined(matrix)
    if not len(matrix):
        return math.nan
    shares = np.linalg.eigvalsh(matrix).clip(0)
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def random_walk_similarity(points: int) -> float:
    """The mean directional similarity of the first `points` points of a random walk in very many dimensions.

    Points i and j have the cosine sqrt(min(i, j) / max(i, j)); the mean falls to 2/3 with the number of points.

    >>> round(random_walk_similarity(1000), 4)
    0.6673
    """
    if points < 1:
        raise ValueError(f"random_walk_similarity: points must be a whole number from 1, not {points!r}.")
    roots = np.sqrt(np.arange(1, points + 1, dtype=np.float64))
    return float((2 * (np.cumsum(roots) / roots).sum() - points) / points**2)


def grouping(by: By, title: str) -> Callable[[str], str | None]:
    """The group of a parameter by its name. `by`: None (all in one), "layer" (the module), "tensor", or a function.

    A function returns the name of a group, or None to leave the parameter out.
    """
    if by is None:
        return lambda name: ALL
    if by == "layer":
        return lambda name: name.rpartition(".")[0] or name
    if by == "tensor":
        return lambda name: name
    if callable(by):
        return by
    raise ValueError(f"{title}: groups are None, 'layer', 'tensor' or a function of a parameter's name, not {by!r}.")


def check_center(center: str, title: str) -> None:
    if center not in CENTERS:
        raise ValueError(f"{title}: center must be 'origin' or 'init', not {center!r}.")


def _before(values: Floats) -> Floats:
    """The value at the point before, NaN at the first."""
    return np.concatenate([[np.nan], values[:-1]])


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
