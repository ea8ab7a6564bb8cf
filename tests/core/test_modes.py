"""train() and eval(): which point the parameters hold."""

import copy
import io

import pytest
import torch
from problems import AVERAGING, EVERY, different, everything, loss_of, net, train, vector
from torch import nn

import untuned

OTHERS = [name for name in EVERY if name not in AVERAGING]


def trained(name: str, dtype: torch.dtype = torch.float64, steps: int = 4) -> tuple[nn.Module, untuned.Optimizer]:
    model = net(dtype)
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, range(steps))
    return model, optimizer


def test_eval_holds_the_average_of_the_base_points() -> None:
    """On a constant gradient of 1 with lr 1, no momentum in z: z = -1, -2, -3 and x their mean."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = untuned.SGDScheduleFree([w], lr=1.0, momentum=0.75, execution="reference")
    for k in range(1, 5):
        w.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        z, x = -float(k), -(k + 1) / 2
        assert w.item() == pytest.approx(0.25 * z + 0.75 * x, rel=1e-14)
        optimizer.eval()
        assert w.item() == pytest.approx(x, rel=1e-14)
        optimizer.train()
        assert w.item() == pytest.approx(0.25 * z + 0.75 * x, rel=1e-14)


@pytest.mark.parametrize("name", AVERAGING)
def test_eval_holds_the_point_between_z_and_the_parameters(name: str) -> None:
    model, optimizer = trained(name)
    at = vector(model)
    z = torch.cat([held["z"].flatten() for held in optimizer.state.values()])
    optimizer.eval()
    group = optimizer.param_groups[0]
    beta = group["beta"] if "beta" in group else group["train"]
    torch.testing.assert_close((1 - beta) * z + beta * vector(model), at, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(vector(model), at, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 0.01)]
)
@pytest.mark.parametrize("name", AVERAGING)
def test_eval_and_train_are_inverse_and_idempotent(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, optimizer = trained(name, dtype)
    at = vector(model)
    optimizer.train()
    assert torch.equal(vector(model), at)
    optimizer.eval()
    averaged = vector(model)
    optimizer.eval()
    assert torch.equal(vector(model), averaged)
    assert not torch.equal(averaged, at)
    optimizer.train(False)
    assert torch.equal(vector(model), averaged)
    optimizer.train()
    assert (vector(model) - at).abs().max() <= tolerance
    optimizer.train(True)
    assert (vector(model) - at).abs().max() <= tolerance


@pytest.mark.parametrize("name", AVERAGING)
def test_a_step_in_evaluation_mode_is_refused(name: str) -> None:
    model, optimizer = trained(name)
    optimizer.eval()
    loss = loss_of(model, 9)
    optimizer.zero_grad()
    loss.backward()
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) needs training mode, .*: call optimizer\.train\(\) before it"):
        optimizer.step(loss=loss)
    assert different(before, everything(optimizer)) == []
    optimizer.train()
    optimizer.step(loss=loss)
    assert optimizer.metrics()["steps"] == 5


@pytest.mark.parametrize("name", AVERAGING)
def test_averaged_parameters_come_back_also_on_an_error(name: str) -> None:
    model, optimizer = trained(name)
    twin, twins = copy.deepcopy((model, optimizer))
    twins.eval()
    at = vector(model)
    try:
        with optimizer.averaged_parameters():
            assert torch.equal(vector(model), vector(twin))
            raise KeyError
    except KeyError:
        assert optimizer.param_groups[0]["training"] is True
    torch.testing.assert_close(vector(model), at, rtol=1e-14, atol=1e-15)
    optimizer.eval()
    with optimizer.averaged_parameters():  # in evaluation mode it stays there
        pass
    assert optimizer.param_groups[0]["training"] is False
    assert torch.allclose(vector(model), vector(twin), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", AVERAGING)
def test_the_mode_is_in_the_state_dict(name: str) -> None:
    """Weights and optimizer saved in evaluation mode: loaded, train() leads back to the point to train from."""
    model, optimizer = trained(name)
    straight, ahead = copy.deepcopy((model, optimizer))
    optimizer.eval()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = net()
    other.load_state_dict(weights)
    resumed = EVERY[name](other.parameters())
    resumed.load_state_dict(state)
    with pytest.raises(RuntimeError, match="needs training mode"):
        train(other, resumed, range(1))
    resumed.train()
    torch.testing.assert_close(vector(other), vector(straight), rtol=1e-14, atol=1e-15)
    train(other, resumed, range(4, 7))
    train(straight, ahead, range(4, 7))
    torch.testing.assert_close(vector(other), vector(straight), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", AVERAGING)
def test_a_copy_in_evaluation_mode_is_in_evaluation_mode(name: str) -> None:
    model, optimizer = trained(name)
    at = vector(model)
    optimizer.eval()
    other, copied = copy.deepcopy((model, optimizer))
    copied.train()
    torch.testing.assert_close(vector(other), at, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", AVERAGING)
def test_modes_before_the_first_step_and_of_tensors_that_rest(name: str) -> None:
    model = net()
    spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = EVERY[name]([*model.parameters(), spare])
    at = vector(model)
    optimizer.eval()
    optimizer.train()
    assert torch.equal(vector(model), at)
    train(model, optimizer, range(3))
    optimizer.eval()
    assert spare.tolist() == [1.0, 1.0]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1, dtype=torch.float64))]})
    assert optimizer.param_groups[1]["training"] is False
    optimizer.train()
    assert spare.tolist() == [1.0, 1.0]
    assert optimizer.param_groups[1]["params"][0].item() == 0.0
    assert [group["training"] for group in optimizer.param_groups] == [True, True]


@pytest.mark.parametrize("name", OTHERS)
def test_modes_do_nothing_to_other_methods(name: str) -> None:
    model, optimizer = trained(name, steps=2)
    before = everything(optimizer)
    optimizer.eval()
    with optimizer.averaged_parameters():
        pass
    assert different(before, everything(optimizer)) == []
    train(model, optimizer, range(2, 3))  # a step needs no train() before it
    optimizer.train()
    straight, ahead = trained(name, steps=3)
    assert torch.equal(vector(model), vector(straight))
    assert different(everything(optimizer), everything(ahead)) == []
