"""Trajectories whose measures are known without a program: rays, orthogonal points, random walks, filtered noise."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from untuned.diagnostics import TrajectoryMap, TrajectoryRecorder, random_walk_similarity, trajectory_map
from untuned.diagnostics.trajectory_measures import Series, angle, effective_rank


def recorded(rows: Tensor, **options: object) -> TrajectoryRecorder:
    """A recorder that has seen these points [points, p]."""
    p = nn.Parameter(rows[0].clone())
    recorder = TrajectoryRecorder([("p", p)], every=1, **options)  # pyright: ignore[reportArgumentType]
    for row in rows[1:]:
        p.data.copy_(row)
        recorder.step()
    return recorder


def mapped(points: Tensor, center: str = "origin") -> TrajectoryMap:
    return trajectory_map([{"p": row.clone()} for row in points], center)


def walk(points: int, p: int, seed: int = 0) -> Tensor:
    """A Gaussian random walk; its first point is one step from the origin."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(points, p, generator=generator).cumsum(0)


def test_a_ray_from_the_origin_has_similarity_one() -> None:
    direction = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = torch.tensor([0.5, 1.0, 3.0, 7.0], dtype=torch.float64)[:, None] * direction
    for found in (recorded(points).summary()["all"], mapped(points).measures["all"]):
        assert found.mds == pytest.approx(1, abs=1e-14) and found.mds_off_diagonal == pytest.approx(1, abs=1e-14)
        assert found.straightness == pytest.approx(1, abs=1e-14)
        assert found.update_angle == pytest.approx(0, abs=1e-5) and found.origin_angle == pytest.approx(0, abs=1e-5)
        assert found.relative_movement == pytest.approx(13, abs=1e-12)
    assert mapped(points).measures["all"].effective_rank == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_orthogonal_points_have_similarity_one_over_their_number(count: int) -> None:
    points = torch.eye(count) * torch.arange(1, count + 1)[:, None]
    for found in (recorded(points).summary()["all"], mapped(points).measures["all"]):
        assert found.mds == pytest.approx(1 / count, abs=1e-7)
        assert found.mds_off_diagonal == pytest.approx(0, abs=1e-7)
        assert found.origin_angle == pytest.approx(90)
    assert mapped(points).measures["all"].effective_rank == pytest.approx(count)


def test_a_random_walk_has_similarity_two_thirds() -> None:
    """Of 300 points the theory of finitely many says 0.6687; the specification's own run measured 0.6651."""
    theory = random_walk_similarity(300)
    assert theory == pytest.approx(0.6687, abs=5e-5)
    assert abs(random_walk_similarity(100_000) - 2 / 3) < 2e-5
    points = walk(300, 20_000)
    found = recorded(points).summary()["all"]
    exact = mapped(points)
    assert found.mds == pytest.approx(theory, abs=0.01)
    assert found.update_angle == pytest.approx(90, abs=0.1)
    i = np.arange(1, 301)
    expected = np.sqrt(np.minimum.outer(i, i) / np.maximum.outer(i, i))
    assert np.abs(exact.matrix - expected).max() < 0.05
    assert found.mds == pytest.approx(exact.measures["all"].mds, abs=1e-6)


def test_one_vector_gives_the_mean_of_all_cosines() -> None:
    """MDS = |s / n|^2 with s the sum of the unit vectors: to rounding what the whole matrix says."""
    points = walk(60, 3_000, seed=1).double()
    for center in ("origin", "init"):
        stream, exact = recorded(points, center=center).summary()["all"], mapped(points, center)
        rows = points if center == "origin" else (points - points[0])[1:]
        unit = rows / rows.norm(dim=1, keepdim=True)
        assert stream.points == len(unit) == exact.measures["all"].points
        assert stream.mds == pytest.approx(float(unit.mean(0).square().sum()), abs=1e-14)
        assert stream.mds == pytest.approx(float((unit @ unit.T).mean()), abs=1e-14)
        assert stream.mds == pytest.approx(exact.measures["all"].mds, abs=1e-14)
        n = stream.points
        off = float(((unit @ unit.T).sum() - n) / (n * (n - 1)))
        assert stream.mds_off_diagonal == pytest.approx(off, abs=1e-14)


@pytest.mark.parametrize(("beta", "measured"), [(0.5, 60.02), (0.9, 25.89), (0.99, 8.08)])
def test_momentum_fed_with_noise_turns_by_the_arc_cosine_of_beta(beta: float, measured: float) -> None:
    """The cosine of two updates in succession is beta, once momentum has forgotten that it began at zero."""
    p = nn.Parameter(torch.zeros(20_000))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=beta)
    generator = torch.Generator().manual_seed(0)

    def train(steps: int) -> None:
        for _ in range(steps):
            p.grad = torch.randn(20_000, generator=generator)
            optimizer.step()

    train(math.ceil(7 / (1 - beta)))
    recorder = TrajectoryRecorder([("p", p)], every=1)
    recorder.attach(optimizer)
    train(200)
    cosine = np.nanmean(recorder.series().update_cosine)
    assert cosine == pytest.approx(beta, abs=0.003)
    found = recorder.summary()["all"].update_angle
    assert found == pytest.approx(math.degrees(math.acos(beta)), abs=0.25)
    assert found == pytest.approx(measured, abs=0.3)  # the run of the specification, with other noise


def test_a_sketch_of_2048_numbers_is_as_good_as_the_specification_says() -> None:
    """300 points of 20,000 numbers: it names errors of 0.038 at most and 0.0017 of the MDS."""
    points = walk(300, 20_000, seed=2)
    recorder = recorded(points, sketch=2048, points=300)
    sketched, exact = recorder.map(), mapped(points)
    assert sketched.steps.tolist() == list(range(300))
    assert np.abs(sketched.matrix - exact.matrix).max() < 0.06
    assert sketched.measures["all"].mds == pytest.approx(exact.measures["all"].mds, abs=0.01)
    assert sketched.measures["all"].effective_rank == pytest.approx(exact.measures["all"].effective_rank, rel=0.05)
    centred = mapped(points, "init").matrix[1:, 1:]
    assert np.abs(recorder.map("init").matrix[1:, 1:] - centred).max() < 0.06


def test_the_error_of_a_sketch_falls_with_the_root_of_its_size() -> None:
    points = walk(40, 5_000, seed=3)
    exact, errors = mapped(points).matrix, []
    for size in (64, 1024):
        runs = [recorded(points, sketch=size, seed=seed).map().matrix - exact for seed in range(8)]
        errors.append(math.sqrt(np.mean(np.square(runs))))
    assert 2.5 < errors[0] / errors[1] < 6  # 4 if it is exactly so
    assert errors[1] < 1 / math.sqrt(1024)


def test_200_checkpoints_of_272_thousand_parameters() -> None:
    """The inner products of both kinds of map, layer by layer, are those of one large matrix."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (400, 500), "b": (70_000,), "c": (2_000,)}
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    steps = {name: torch.randn(8, *shape, generator=generator) for name, shape in shapes.items()}
    mix = torch.randn(200, 8, generator=generator)
    mix[0] = 0
    points = [{n: start[n] + 0.01 * torch.tensordot(row, steps[n], 1) for n in shapes} for row in mix]
    whole = torch.cat([torch.stack([point[n].reshape(-1) for point in points]) for n in shapes], 1).double()
    assert whole.shape == (200, 272_000)
    for center in ("origin", "init"):
        rows = whole if center == "origin" else whole - whole[0]
        unit = torch.nn.functional.normalize(rows, dim=1)
        expected, found = (unit @ unit.T).numpy(), trajectory_map(points, center).matrix
        kept = slice(0 if center == "origin" else 1, None)
        assert np.abs(found[kept, kept] - expected[kept, kept]).max() < 1e-12
        assert np.isnan(found[0, 0]) == (center == "init")


def test_angles_of_needles_keep_their_digits() -> None:
    ones = np.ones(3)
    found = angle(1e3 * ones, 1e3 * ones, np.array([1e-9, 1e-3, 2e3]))
    assert found == pytest.approx([math.degrees(1e-12), math.degrees(1e-6), 180.0], rel=1e-9)
    assert np.isnan(angle(np.array([0.0, 1.0]), np.array([1.0, np.nan]), np.array([1.0, 1.0]))).all()


def test_the_angles_of_a_square() -> None:
    corners = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    for series in (recorded(corners).series(),):
        assert isinstance(series, Series)
        assert series.update_angle[2:] == pytest.approx([90, 90])
        assert series.origin_angle[1:3] == pytest.approx([45, 45]) and np.isnan(series.origin_angle[3])
        assert series.start_angle[2:] == pytest.approx([45, 45])
        assert series.path == pytest.approx([0, 1, 2, 3]) and series.distance[-1] == pytest.approx(1)
    found = mapped(corners).measures["all"]
    assert (found.update_angle, found.origin_angle, found.start_angle) == pytest.approx((90, 45, 45))
    assert found.points == 3  # the last corner is the origin
    assert math.isnan(effective_rank(np.full((2, 2), np.nan)))
