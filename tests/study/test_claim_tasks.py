"""Tasks and optimizers of the claims in docs/claims: they change where they say, count what they say, and learn."""

import importlib
import math
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import untuned
from untuned.study.config import Run
from untuned.study.request import Request
from untuned.study.runner import Result, train
from untuned.study.tasks import Task

CLAIMS = Path(__file__).parents[2] / "docs" / "claims"


@pytest.fixture(scope="module")
def own() -> Iterator[Any]:
    """The module docs/claims/tasks.py, as a study of that folder imports it."""
    before = sys.modules.pop("tasks", None)
    sys.path.insert(0, str(CLAIMS))
    yield importlib.import_module("tasks")
    sys.path.remove(str(CLAIMS))
    del sys.modules["tasks"]
    if before is not None:
        sys.modules["tasks"] = before


def run(task: Task, method: str, lr: float, epochs: float, seed: int = 0, **options: Any) -> Result:
    asked = Run(
        task=task.name, method=method, lr=lr, options=options, seed=seed, epochs=epochs, batch_size=task.batch_size,
        version="0",
    )  # fmt: skip
    result, _ = train(task, asked)
    assert result.status == "done", result.error
    return result


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def test_every_task_is_deterministic_in_its_seeds_and_differs_between_them(own: Any) -> None:
    for cls in own.TASKS:
        one, other = cls(), cls()
        assert torch.equal(flat(one.model(3)), flat(other.model(3)))
        state = torch.get_rng_state()
        first, again, next_seed = (next(iter(t.batches(seed, 1))) for t, seed in ((one, 3), (other, 3), (one, 4)))
        assert torch.equal(state, torch.get_rng_state())
        assert same(first, again)
        assert not same(first, next_seed), cls.__name__
        assert math.isclose(one.chance, other.chance)


@pytest.mark.parametrize("name", ["SmallBatch", "LargeBatch", "Interpolation", "NoisyVowel", "WholeIris"])
def test_a_model_learns(own: Any, name: str) -> None:
    task = getattr(own, name)()
    rate, epochs = {"NoisyVowel": (0.1, 4), "WholeIris": (0.1, 40)}.get(name, (1e-2, 4))
    final = run(task, "adam", rate, epochs).final
    assert final is not None
    gain = (final[task.metric] - task.chance) * (1 if task.maximize else -1)
    assert gain > 0.2 * abs(task.chance)


def test_noise_is_in_a_fifth_of_the_labels_less_the_lucky_ones(own: Any) -> None:
    clean, noisy = own.WholeVehicle(), own.NoisyVehicle()
    changed = (clean.y != noisy.y).float().mean().item()
    assert torch.equal(clean.x, noisy.x)
    assert abs(changed - 0.2 * 3 / 4) < 0.04
    assert torch.equal(noisy.y, own.NoisyVehicle().y)
    assert sum(1 for _ in clean.batches(0, 0)) == 1


def test_labels_change_their_meaning_where_a_phase_begins(own: Any) -> None:
    task = own.LabelsPermuted()
    labels = [task.drawn(0, epoch // 3, epoch)[1] for epoch in range(12)]
    for epoch in range(1, 12):
        same_meaning = torch.equal(labels[epoch], labels[epoch - 1])
        assert same_meaning == (epoch % 3 != 0)
    assert torch.equal(labels[0], task.y)
    assert len({(int(a), int(b)) for a, b in zip(labels[0], labels[3], strict=True)}) == 10  # one to one
    assert [next(iter(task.batches(0, epoch)))[2] for epoch in (0, 2, 3, 11)] == [False, False, True, True]


def test_five_classes_are_nine_tenths_and_others_in_the_next_phase(own: Any) -> None:
    task = own.MixChanged()
    shares = [task.drawn(0, phase, epoch)[1].bincount(minlength=10) / 2000 for phase, epoch in ((0, 0), (0, 1), (1, 3))]
    often = [set(share.topk(5).indices.tolist()) for share in shares]
    assert often[0] == often[1] != often[2]
    for share in shares:
        assert abs(share.topk(5).values.sum().item() - 0.9) < 0.03
    assert task.chance == 0.18


def test_random_labels_are_drawn_anew_every_300_steps(own: Any) -> None:
    task = own.RandomLabels()
    assert sum(1 for _ in task.batches(0, 0)) * task.phase_epochs == 300
    first, second = task.drawn(0, 0, 0)[1], task.drawn(0, 1, 15)[1]
    assert abs((first == second).float().mean().item() - 0.1) < 0.06
    assert task.epochs == 225


def test_what_counts_is_the_answer_before_the_step_from_the_second_phase_on(own: Any) -> None:
    task = own.LabelsPermuted()
    model = task.model(0)
    assert task.evaluate(model) == {"val_loss": math.log(10), "online_accuracy": 0.1}
    task.loss(model, next(iter(task.batches(0, 0))))
    assert model.counts.tolist() == [0, 0, 0]
    x, y, counts = next(iter(task.batches(0, 3)))
    loss = task.loss(model, (x, y, counts))
    right = (model(x).argmax(1) == y).sum().item()
    assert model.counts.tolist() == [64, right, pytest.approx(64 * loss.item(), rel=1e-6)]
    assert task.evaluate(model)["online_accuracy"] == right / 64
    assert task.evaluate(task.model(0))["online_accuracy"] == 0.1  # another run begins at nothing


def test_a_change_of_labels_costs_accuracy_and_a_model_learns_again(own: Any) -> None:
    task = own.LabelsPermuted()
    final = run(task, "adam", 1e-3, epochs=12).final
    assert final is not None
    assert 0.3 < final["online_accuracy"] < 0.8  # without a change it is above 0.8 by then


def test_normalised_adam_turns_the_norms_on_and_holds_hidden_weights(own: Any) -> None:
    task = own.RandomLabels()
    batch = next(iter(task.batches(0, 0)))
    outputs = []
    for project in (None, False, True):
        model = task.model(0)
        norms = [p.norm().item() for p in (model.net.first.weight, model.net.second.weight)]
        params = model.parameters()
        kind: Any = torch.optim.Adam(params, lr=0.01) if project is None else None
        optimizer = kind or own.NormalizedAdam(params, lr=0.01, project=project)
        outputs.append(model(batch[0]).detach())
        for _ in range(5):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
        after = [p.norm().item() for p in (model.net.first.weight, model.net.second.weight)]
        held = [math.isclose(a, b, rel_tol=1e-5) for a, b in zip(norms, after, strict=True)]
        assert held == [project is True] * 2
        assert model.net.normalise.item() == (0.0 if project is None else 1.0)
    assert torch.equal(outputs[1], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1])


def test_extrapolated_takes_gradients_ahead_and_steps_from_behind(own: Any) -> None:
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = own.Extrapolated([w], lr=0.25, momentum=0.5, inner=1.0)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        (w**2).sum().backward()
        seen.append(w.item())
        optimizer.step()
    # Nesterov's first step: v = g = 2, w = 1 - 0.25 (2 + 0.5 * 2); then ahead by 0.25 * 2
    assert seen == [1.0, -0.25]
    plain = own.Extrapolated([torch.nn.Parameter(torch.tensor([1.0]))], lr=0.25, inner=0.0)
    assert plain.inner == 0.0


def test_lower_c_ends_at_its_final_c_with_the_learning_rate_it_had(own: Any) -> None:
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = own.LowerC([w], lr=0.1, steps=10, final_c=0.01)
    used = []
    for _ in range(10):
        used.append(1 - optimizer.param_groups[0]["momentum"])
        optimizer.zero_grad()
        (w**2).sum().backward()
        optimizer.step()
    assert used[0] == pytest.approx(0.1)
    assert used[-1] == pytest.approx(0.01)
    assert used == sorted(used, reverse=True)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_lars_moves_a_share_of_the_norm(own: Any) -> None:
    w, zero = torch.nn.Parameter(torch.tensor([3.0, 4.0])), torch.nn.Parameter(torch.zeros(2))
    optimizer = own.LARS([w, zero], lr=0.1, momentum=0.5)
    w.grad, zero.grad = torch.tensor([0.0, 7.0]), torch.ones(2)
    optimizer.step()
    assert w.tolist() == pytest.approx([3.0, 3.5])
    assert zero.tolist() == [0.0, 0.0]


def test_units_change_adam_and_neither_the_start_nor_adam_at_its_own_rate(own: Any) -> None:
    def trained(optimizer_of: Any) -> torch.Tensor:
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        optimizer = optimizer_of(model.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.eye(3)).square().sum().backward()
            optimizer.step()
        return flat(model)

    plain = trained(lambda params: untuned.Adam(params, lr=0.01))
    one = trained(lambda params: own.InUnits(params, lr=0.01, method="adam", unit=1.0))
    coarse = trained(lambda params: own.InUnits(params, lr=0.01, method="adam", unit=30.0))
    scaled = trained(lambda params: own.InUnits(params, lr=0.3, method="adam", unit=30.0))
    assert torch.allclose(plain, one, atol=1e-6)
    assert torch.allclose(plain, scaled, atol=1e-4)
    assert (plain - coarse).abs().max() > 0.01


def test_every_study_that_names_them_resolves(own: Any) -> None:
    """Whatever else its file says of the claim."""
    named = [path for path in sorted(CLAIMS.glob("*.toml")) if "tasks:" in path.read_text()]
    assert len(named) > 20
    for path in named:
        asked = tomllib.loads(path.read_text())
        rules = [rule for rule in asked["rules"] if rule.get("statistic") != "width"]
        kept = {key: asked[key] for key in ("tasks", "methods", "lr", "seeds", "budget", "schedule") if key in asked}
        study = Request.model_validate({**kept, "rules": rules}).resolve()
        assert len(study.rules) == len(rules)
