"""Methods by name."""

import inspect
import re
from typing import Any

import pytest
import torch
from problems import net
from torch import nn

import untuned


def test_the_methods() -> None:
    assert untuned.list() == [
        "adam",
        "adamw",
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
        "gpa_adamw",
        "gradagrad",
        "gradagrad_diagonal",
        "ldog",
        "madgrad",
        "mda",
        "mechanic_adamw",
        "mechanic_sgd",
        "mirror_madgrad",
        "momo",
        "momo_adam",
        "motaps",
        "multiplicative_adam",
        "multiplicative_sgd",
        "ngn",
        "ormo",
        "prodigy",
        "prodigy_da",
        "prodigy_gd",
        "prodigy_schedule_free",
        "prox_sps",
        "random_scaling_adamw",
        "random_scaling_sgd",
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
        "tam",
        "taps",
    ]


def test_every_public_class_is_registered_once() -> None:
    public = {
        value
        for value in (getattr(untuned, name) for name in untuned.__all__)
        if isinstance(value, type) and value is not untuned.Optimizer
    }
    registered = [untuned.get(name).optimizer for name in untuned.list()]
    assert len(registered) == len(set(registered))
    assert set(registered) == public


@pytest.mark.parametrize("name", untuned.list())
def test_a_record(name: str) -> None:
    method = untuned.get(name)
    assert method.name == name
    assert method.lr == inspect.signature(method.optimizer).parameters["lr"].default > 0
    assert 10 < len(method.summary) < 60
    assert "\n" not in method.summary
    document = method.optimizer.__doc__ or ""
    if found := re.search(r"\d{4}\.\d{5}|\d{4}\.\d{4}", method.paper):
        assert found.group() in document
    else:
        assert re.fullmatch(r"[A-Z]\w+ \d{4}", method.paper)
    created = untuned.create(net(), name, **{"samples": 3} if name in ("taps", "motaps") else {})
    assert type(created) is method.optimizer
    assert created.param_groups[0]["lr"] == method.lr


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("adamw2", "adamw"),
        ("AdamW", "adamw"),
        ("momo-adam", "momo_adam"),
        ("prodgy", "prodigy"),
        ("Schedule-Free-SGD", "schedule_free_sgd"),
    ],
)
def test_unknown_methods_name_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"^no method is called '{wrong}'; did you mean {near}.*\? `untuned list`"):
        untuned.get(wrong)
    with pytest.raises(ValueError, match=rf"did you mean {near}"):
        untuned.create(net(), wrong)


@pytest.mark.parametrize("wrong", [None, 3, "", "xyz"])
def test_names_without_a_near_one_show_all(wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"no method is called {wrong!r}; did you mean adam, adamw, .*, taps\?"):
        untuned.get(wrong)


@pytest.mark.parametrize(
    ("name", "option", "near"),
    [
        ("adamw", "weight_decy", "weight_decay"),
        ("momo", "learning_rate", "lb"),
        ("prodigy", "d_0", "d0"),
        ("sgd", "engine", None),
        ("sgd", "params", None),
        ("sgd", "betas", None),
        ("adam", "slot_dtyp", "slot_dtype"),
        ("adam", "exec", "execution"),
    ],
)
def test_unknown_options_name_the_nearest(name: str, option: str, near: str | None) -> None:
    with pytest.raises(TypeError, match=rf"^{name} has no option '{option}'; did you mean .*\?$") as caught:
        untuned.create(net(), name, **{option: 1})
    assert near is None or f"did you mean {near}" in str(caught.value) or f", {near}" in str(caught.value)


def test_options_of_the_engine_pass() -> None:
    optimizer = untuned.create(
        net(),
        "adam",
        maximize=True,
        skip_nonfinite=False,
        slot_dtype=torch.float32,
        loss_group=None,
        execution="reference",
    )
    assert (optimizer.recipe.maximize, optimizer.recipe.skip_nonfinite, optimizer.recipe.slot_dtype) == (
        True,
        False,
        torch.float32,
    )
    assert (optimizer.loss_group, optimizer.execution) == (None, "reference")


def masks(optimizer: untuned.Optimizer) -> list[tuple[int, float]]:
    return [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]


def model() -> nn.Module:
    layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    layers[2].bias.requires_grad_(False)
    return layers


def test_norms_and_biases_are_not_decayed() -> None:
    """Two matrices; a bias and two norm weights; the last bias needs no gradient and is left out."""
    optimizer = untuned.create(model(), "prodigy", weight_decay=0.5)
    assert masks(optimizer) == [(2, 0.5), (3, 0.0)]
    assert optimizer.param_groups[1]["param_names"] == ["0.bias", "1.weight", "1.bias"]
    assert masks(untuned.create(model(), "prodigy")) == [(5, 0.0)]
    assert masks(untuned.create(model(), "prodigy", weight_decay=0)) == [(5, 0)]


def test_a_weight_decay_by_default_is_masked_as_one_that_is_given() -> None:
    assert masks(untuned.create(model(), "adamw")) == masks(untuned.create(model(), "adamw", weight_decay=0.01))
    assert masks(untuned.create(model(), "adamw")) == [(2, 0.01), (3, 0.0)]


def test_a_method_that_divides_groups_decays_all_as_its_class_does() -> None:
    created, built = untuned.create(model(), "relative_muon"), untuned.RelativeMuon(model().parameters())
    assert masks(created) == [(2, 0.1), (3, 0.1)]
    assert [decay for _, decay in masks(built)] == [0.1, 0.1]


def test_a_model_of_one_kind_of_parameter_has_one_group() -> None:
    assert masks(untuned.create(nn.Linear(2, 2, bias=False), "sgd", weight_decay=0.1)) == [(1, 0.1)]
    assert masks(untuned.create(nn.LayerNorm(2), "sgd", weight_decay=0.1)) == [(2, 0.0)]


def test_parameters_and_groups_are_used_as_they_are() -> None:
    params = list(model().parameters())
    assert masks(untuned.create(params, "adamw")) == [(6, 0.01)]
    groups = [{"params": params[:1], "weight_decay": 0.5}, {"params": params[1:]}]
    assert masks(untuned.create(groups, "adamw", weight_decay=0.25)) == [(1, 0.5), (5, 0.25)]


def test_shared_parameters_are_given_once() -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    assert masks(untuned.create(tied, "adamw")) == [(1, 0.01)]


def test_a_model_without_trainable_parameters() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        untuned.create(model().requires_grad_(False), "momo")


def test_wrong_options_of_the_class_are_refused_there() -> None:
    with pytest.raises(TypeError, match=r"Decoupled: weight_decay must be a number in \[0, inf\), not '0.1'"):
        untuned.create(model(), "adamw", weight_decay="0.1")
