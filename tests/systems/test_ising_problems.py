"""What an Ising machine solves: signs and conventions, files and what is wrong with them, generators, exact answers."""

import itertools
from pathlib import Path

import pytest
import torch

from untuned.systems.ising import (
    BoxQP,
    Ising,
    active_sets,
    brute_force,
    conditioned,
    erdos_renyi,
    max_cut,
    multi_start,
    prove,
    read_best,
    read_boxqp,
    read_gset,
    sherrington_kirkpatrick,
    sparse_boxqp,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written(folder: Path, text: str, name: str = "file.in") -> Path:
    (folder / name).write_text(text)
    return folder / name


# ---------------------------------------------------------------- BoxQP


def test_a_boxqp_file_is_maximised_with_a_half(tmp_path: Path) -> None:
    # maximise 1/2 (2 a^2 - 8 a b + 6 b^2) + 3 a - 1 b: at (1, 0) it is 4, at (0, 1) 2, at (1, 1) 2
    path = written(tmp_path, "2\n3 -1\n2 -4\n-4 6\n")
    problem = read_boxqp(path, best=4)
    corners = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    assert problem.value(corners).tolist() == [-4, -2, -2, 0]
    assert problem.optimum == -4 == active_sets(problem)[0]
    assert active_sets(problem)[1].tolist() == [1, 0]
    assert problem.Q.tolist() == [[-1, 2], [2, -3]] and problem.V.tolist() == [-3, 1]
    assert problem.name == "file" and problem.box() is problem


def test_numbers_of_a_boxqp_file_may_be_broken_over_lines_and_q_is_made_symmetric(tmp_path: Path) -> None:
    problem = read_boxqp(written(tmp_path, "2 3\n-1 2 -8 0\n 6.0"))
    assert problem.Q.tolist() == [[-1, 2], [2, -3]] and problem.optimum is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file.in is empty; a BoxQP file begins with the number of variables."),
        ("2\n3 -1\n2 -4\n-4\n", "file.in: expected 1 + n + n^2 = 7 numbers for n = 2, found 6."),
        ("2\n3 -1\n2 -4\n-4 6 1\n", "file.in: expected 1 + n + n^2 = 7 numbers for n = 2, found 8."),
        ("2\n3 x\n2 -4\n-4 6\n", "file.in, line 2: 'x' is not a number."),
        ("2\n3 nan\n2 -4\n-4 6\n", "file.in, line 2: 'nan' is not finite."),
        ("2.5\n3", "file.in: the number of variables must be a whole number from 1 on, not '2.5'."),
        ("0\n", "file.in: the number of variables must be a whole number from 1 on, not '0'."),
    ],
)
def test_a_broken_boxqp_file_is_told_exactly(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="file") as caught:
        read_boxqp(written(tmp_path, text))
    assert str(caught.value) == message


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_boxqp(tmp_path / "none.in")


def test_the_table_of_best_values_is_read(tmp_path: Path) -> None:
    text = "Optimal values are as follows:\n\n<basic>\nspar020-100-1  7.06500000e+02\nspar125-075-1  1.23300000e+04\n"
    assert read_best(written(tmp_path, text)) == {"spar020-100-1": 706.5, "spar125-075-1": 12330.0}


@pytest.mark.parametrize(
    ("Q", "V", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2), "BoxQP: Q must be a square matrix, not of shape (2, 3)."),
        (torch.zeros(2, 2), torch.zeros(3), "BoxQP: V must have 2 entries as Q has rows, not the shape (3,)."),
        (torch.full((2, 2), torch.inf), torch.zeros(2), "BoxQP: Q has entries that are not finite."),
    ],
)
def test_a_boxqp_that_is_none_is_refused(Q: torch.Tensor, V: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match="BoxQP") as caught:
        BoxQP(Q, V)
    assert str(caught.value) == message


def test_gradients_are_those_of_the_value() -> None:
    problem = sparse_boxqp(7, 0.6, seeded())
    x = torch.rand(3, 7, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    value = ((x @ problem.Q) * x).sum(-1) + x @ problem.V
    torch.testing.assert_close(problem.value(x), value)
    torch.testing.assert_close(problem.gradient(x), torch.autograd.grad(value.sum(), x)[0])


def test_what_is_not_finite_has_an_infinite_value() -> None:
    problem = sparse_boxqp(3, 1.0, seeded())
    assert problem.value(torch.tensor([[0.5, torch.nan, 0.0]])).tolist() == [torch.inf]


def test_scaling_scales_every_value() -> None:
    problem = BoxQP(torch.eye(2), torch.tensor([1.0, -3.0]), optimum=-2, constant=0.5)
    x = torch.tensor([[0.25, 1.0]])
    assert problem.scaled(3).value(x).item() == 3 * problem.value(x).item() and problem.scaled(3).optimum == -6
    with pytest.raises(ValueError, match="positive"):
        problem.scaled(0)


def test_active_sets_agree_with_a_fine_grid_and_many_starts() -> None:
    interior = BoxQP(torch.tensor([[1.0, 0.25], [0.25, 0.5]]), torch.tensor([-0.75, -0.5]))
    assert active_sets(interior)[1].tolist() == pytest.approx([2 / 7, 5 / 14])  # where 2 Q x = -V
    for seed in range(3):
        problem = sparse_boxqp(6, 0.7, seeded(seed))
        least, x = active_sets(problem)
        assert problem.value(x).item() == least
        grid = torch.tensor(list(itertools.product([0, 0.25, 0.5, 0.75, 1], repeat=6)), dtype=torch.float64)
        assert problem.value(grid).min().item() >= least - 1e-9
        found = multi_start(problem, 64, 500, seeded(), dtype=torch.float64)
        assert found.best.min().item() == pytest.approx(least, rel=1e-6)
    with pytest.raises(ValueError, match="at most 12, not 13"):
        active_sets(sparse_boxqp(13, 0.5, seeded()))


def test_branch_and_bound_proves_what_the_faces_say() -> None:
    for problem in (sparse_boxqp(8, 0.8, seeded(1)), BoxQP(torch.eye(3), torch.tensor([-1.0, 0.5, -9]), constant=4.0)):
        least, x, proven = prove(problem)
        assert proven and least == pytest.approx(active_sets(problem)[0], rel=1e-9) == problem.value(x).item()
    assert not prove(sparse_boxqp(30, 1.0, seeded()), nodes=1)[2]


# ---------------------------------------------------------------- Ising and Max-Cut


@pytest.mark.parametrize(
    ("J", "message"),
    [
        (torch.zeros(2, 3), "Ising: J must be a square matrix, not of shape (2, 3)."),
        (torch.tensor([[0.0, 1], [2, 0]]), "Ising: J must be symmetric, but J[0, 1] and J[1, 0] differ."),
        (torch.tensor([[0.0, 1], [1, 3]]), "Ising: J must have a zero diagonal, but J[1, 1] = 3."),
        (torch.tensor([[0.0, torch.nan], [torch.nan, 0]]), "Ising: J has entries that are not finite."),
    ],
)
def test_a_matrix_that_is_no_ising_problem_is_refused(J: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match="Ising") as caught:
        Ising(J)
    assert str(caught.value) == message


def test_the_box_has_the_energies_of_the_spins() -> None:
    problem = sherrington_kirkpatrick(6, seeded())
    s = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)))
    torch.testing.assert_close(problem.box().value((s + 1) / 2), problem.energy(s))
    inside = torch.rand(500, 6, generator=seeded(1), dtype=torch.float64)
    assert problem.box().value(inside).min() >= problem.energy(s).min()
    assert problem.spins(torch.tensor([[0.2, 0.5, 0.9, 0.0, 1.0, 0.49]])).tolist() == [[-1, 1, 1, -1, 1, -1]]
    assert problem.answer(torch.tensor([0.7, torch.nan])).isnan().tolist() == [False, True]


def test_brute_force_finds_every_ground_state() -> None:
    problem = sherrington_kirkpatrick(9, seeded(3))
    s = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=9)))
    energy, states = brute_force(problem)
    assert energy == problem.energy(s).min().item()
    assert 2 * len(states) == int((problem.energy(s) == energy).sum()) and (states[:, -1] == 1).all()
    assert (problem.energy(states) == energy).all()
    with pytest.raises(ValueError, match="at most 20, not 21"):
        brute_force(sherrington_kirkpatrick(21, seeded()))


def test_a_cut_is_the_weight_between_the_sides() -> None:
    graph = erdos_renyi(8, 0.5, seeded())
    s = 2.0 * torch.randint(0, 2, (5, 8), generator=seeded(1)) - 1
    apart = (s[:, :, None] != s[:, None]).double()
    torch.testing.assert_close(graph.cut(s), -(graph.J * apart).sum((1, 2)) / 2)
    energy, states = brute_force(graph)
    assert max_cut(-graph.J, optimum_cut=graph.cut(states[:1]).item()).optimum == energy


def test_a_gset_file_is_a_graph(tmp_path: Path) -> None:
    graph = read_gset(written(tmp_path, "3 3\n1 2 1\n2 3 -1\n1 3\n"), optimum_cut=2)
    assert graph.J.tolist() == [[0, -1, -1], [-1, 0, 1], [-1, 1, 0]]
    assert graph.optimum == brute_force(graph)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n1 2 1\n", "file.in: the first line must be the numbers of nodes and of edges."),
        ("", "file.in: the first line must be the numbers of nodes and of edges."),
        ("3 2\n1 2 1\n", "file.in: the first line says 2 edges, found 1."),
        ("3 1\n1 4 1\n", "file.in, line 2: an edge joins two nodes from 1 to 3, not 1 4."),
        ("3 1\n2 2 1\n", "file.in, line 2: an edge joins two nodes from 1 to 3, not 2 2."),
        ("3 2\n1 2 1\n2 1 1\n", "file.in, line 3: the edge 2 1 is there twice."),
        ("3 1\n1 2 1 1\n", "file.in, line 2: an edge is two nodes and a weight, not 4 numbers."),
        ("3 1\n1 b\n", "file.in, line 2: 'b' is not a number."),
    ],
)
def test_a_broken_gset_file_is_told_exactly(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="file") as caught:
        read_gset(written(tmp_path, text))
    assert str(caught.value) == message


# ---------------------------------------------------------------- generators


def test_generators_depend_on_their_seed_alone() -> None:
    assert torch.equal(sparse_boxqp(9, 0.4, seeded(5)).Q, sparse_boxqp(9, 0.4, seeded(5)).Q)
    assert not torch.equal(sparse_boxqp(9, 0.4, seeded(5)).Q, sparse_boxqp(9, 0.4, seeded(6)).Q)


def test_the_recipe_of_the_sparse_instances() -> None:
    problem = sparse_boxqp(60, 0.3, seeded())
    Q, c = -2 * problem.Q, -problem.V
    assert torch.equal(Q, Q.round()) and torch.equal(c, c.round())
    assert Q.abs().max() == 50 and 40 < c.abs().max() <= 50
    assert (Q != 0).double().mean().item() == pytest.approx(0.3 * 100 / 101, abs=0.03)
    assert Q.diagonal().any()
    with pytest.raises(ValueError, match="density"):
        sparse_boxqp(3, 1.5, seeded())


def test_spin_glasses_and_graphs() -> None:
    upper = sherrington_kirkpatrick(40, seeded()).J[torch.triu(torch.ones(40, 40), 1) > 0]
    assert upper.abs().eq(1).all() and abs(upper.mean().item()) < 0.1
    graph = erdos_renyi(60, 0.2, seeded())
    assert sorted(set(graph.J.flatten().tolist())) == [-1, 0]
    assert -graph.J.sum().item() / (60 * 59) == pytest.approx(0.2, abs=0.03)
    with pytest.raises(ValueError, match="probability"):
        erdos_renyi(3, -0.1, seeded())


def test_the_conditioning_family() -> None:
    plain, bent = conditioned(20, 1, seeded()), conditioned(20, 1000, seeded())
    eigenvalues = torch.linalg.eigvalsh(plain.Q)
    torch.testing.assert_close(eigenvalues, torch.tensor([-1.0] * 10 + [1.0] * 10, dtype=torch.float64))
    D = torch.linspace(1, 1000, 20, dtype=torch.float64)
    torch.testing.assert_close(bent.Q, D[:, None] * plain.Q * D)
    assert not bent.V.any()
    with pytest.raises(ValueError, match="kappa"):
        conditioned(4, 0.5, seeded())
