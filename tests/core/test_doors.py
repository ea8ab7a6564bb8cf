"""What people meet at the doors of the engine: partitions, lists of transforms, labels, inference mode."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import untuned
from untuned.around import Project, RandomScaling
from untuned.directions import Adam, Gradient, Muon
from untuned.gradients import AdaRem
from untuned.parts import GradientTransform, Place, hyper, norm1, number, signal
from untuned.step_sizes import Fixed


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def labelled(model: nn.Module, matrices: Any = "matrices", rest: Any = "rest") -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.dim() == 2], "label": matrices},
        {"params": [p for p in params if p.dim() < 2], "label": rest},
    ]


def train(optimizer: Any, model: nn.Module, steps: range) -> None:
    for k in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(k))
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("execution", ["reference", "native"])
@pytest.mark.parametrize("call", ["metrics", "reset"])
def test_what_is_created_in_inference_mode_can_be_trained_after_it(call: str, execution: str) -> None:
    model = net()
    optimizer = untuned.compose(labelled(model), {"matrices": Muon(), "rest": Adam()}, execution=execution)
    with torch.inference_mode():
        getattr(optimizer, call)()
    train(optimizer, model, range(2))
    assert optimizer.metrics()["steps"] == 2


@pytest.mark.parametrize("role", ["gradient", "around"])
@pytest.mark.parametrize("divided", [False, True])
def test_a_transform_that_is_in_no_list(role: str, divided: bool) -> None:
    part = {"gradient": AdaRem(), "around": Project()}[role]
    kind = {"gradient": "GradientTransform", "around": "StepTransform"}[role]
    for wrong in (part, (one for one in [part]), None) if divided else (part, (one for one in [part])):
        given: Any = {role: {"matrices": wrong, "rest": []} if divided else wrong}
        with pytest.raises(TypeError, match=f"^{role} must be a list of {kind} parts, not "):
            untuned.compose(labelled(net()), Gradient(), **given)


def test_one_part_twice_in_a_list() -> None:
    scaling = RandomScaling()
    with pytest.raises(TypeError, match="around 2 is the RandomScaling that is around 1 already"):
        untuned.compose(net().parameters(), around=[scaling, scaling])
    untuned.compose(labelled(net()), around={"matrices": [Project(), scaling], "rest": [scaling]})


@pytest.mark.parametrize("role", ["direction", "decay", "gradient", "around"])
def test_a_partition_without_labels(role: str) -> None:
    with pytest.raises(TypeError, match=f"{role} cannot be divided by labels like this: .*; this one has none."):
        untuned.compose(net().parameters(), **{role: {}})


def test_none_is_no_label() -> None:
    with pytest.raises(TypeError, match="none of them None"):
        untuned.compose(labelled(net(), rest=None), {"matrices": Muon(), None: Adam()})
    with pytest.raises(ValueError, match=r"the 'label' of a group must be one of 'matrices', 'rest', not \['rest'\]"):
        untuned.compose(labelled(net(), rest=["rest"]), {"matrices": Muon(), "rest": Adam()})


@pytest.mark.parametrize("labels", [("matrices", "rest"), (1, 0)])
@pytest.mark.parametrize("execution", ["reference", "native"])
def test_checkpoints_of_one_partition_written_in_another_order(labels: Any, execution: str) -> None:
    model, (matrices, rest) = net(), labels
    parts: dict[Any, Any] = {matrices: (Muon(), [Project(scope="row")]), rest: (Adam(), [RandomScaling(), Project()])}

    def build(model: nn.Module, *order: Any) -> untuned.Optimizer:
        direction, around = ({label: parts[label][i] for label in order} for i in (0, 1))
        groups = labelled(model, *labels)
        return untuned.compose(groups, direction, Fixed(0.01), around=around, execution=execution)

    optimizer = build(model, matrices, rest)
    train(optimizer, model, range(2))
    twin = copy.deepcopy(model)
    other = build(twin, rest, matrices)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    train(optimizer, model, range(2, 4))
    train(other, twin, range(2, 4))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_groups_in_another_order_are_told_by_their_labels() -> None:
    model = net()
    optimizer = untuned.compose(labelled(model), {"matrices": Muon(), "rest": Adam()})
    train(optimizer, model, range(1))
    other = untuned.compose(labelled(model)[::-1], {"matrices": Muon(), "rest": Adam()})
    with pytest.raises(ValueError, match="a group is labelled 'matrices' in this checkpoint, not 'rest'"):
        other.load_state_dict(optimizer.state_dict())


def test_a_scope_that_does_not_exist() -> None:
    class OfRows(GradientTransform):
        scope = "rows"
        sum = number(0.0, key="row_sum")

        def look(self, x: Place) -> Any:
            return norm1(x.g)

        def decide(self, c: Place, of_row: Any) -> None:
            c.sum = of_row

        def gradient(self, x: Place, g: Any) -> Any:
            return g / x.sum

    with pytest.raises(TypeError, match="OfRows: scope must be one of 'model', 'group', 'tensor', 'row', not 'rows'"):
        untuned.compose(net().parameters(), gradient=[OfRows()])


@pytest.mark.parametrize("key", ["loss", "sample_ids", "closure"])
def test_a_signal_with_the_name_of_what_a_step_takes_anyway(key: str) -> None:
    class Scaled(GradientTransform):
        factor = signal(key)

        def gradient(self, x: Place, g: Any) -> Any:
            return x.factor * g

    with pytest.raises(TypeError, match=rf"Scaled: step\(\) has a '{key}' already"):
        untuned.compose(net().parameters(), gradient=[Scaled()])


def test_a_label_that_was_changed_to_one_that_no_recipe_has() -> None:
    model = net()
    optimizer = untuned.compose(labelled(model), {"matrices": Muon(), "rest": Adam()})
    train(optimizer, model, range(1))
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[1]["label"] = "typo"
    with pytest.raises(ValueError, match="the 'label' of a group must be one of 'matrices', 'rest', not 'typo'"):
        train(optimizer, model, range(1, 2))
    optimizer.param_groups[1]["label"] = "rest"
    assert optimizer.state_dict()["state"][1]["step"] == before["state"][1]["step"] == 1


def test_a_vector_of_each_row() -> None:
    class Vectors(GradientTransform):
        scope = "row"
        betas: tuple[float, ...] = hyper(default=(0.9, 0.99), within="[0, 1)")
        f = number(1.0, size="betas")

        def look(self, x: Place) -> Any:
            return norm1(x.g)

        def decide(self, c: Place, size: Any) -> None:
            c.f = size

        def gradient(self, x: Place, g: Any) -> Any:
            return g

    with pytest.raises(TypeError, match="Vectors: a number of each row, 'f', cannot be a vector"):
        untuned.compose(net().parameters(), Gradient(), Fixed(), gradient=[Vectors()])
