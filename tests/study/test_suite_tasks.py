"""Numbers of single tasks: units, sizes, the Helmholtz solution, the policy gradient, what training reaches."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from untuned.study import data, tasks
from untuned.study.tasks import cifar, helmholtz, reinforcement, units

pytestmark = pytest.mark.usefixtures("fetched")


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def losses(task, optimizer, steps, **options):
    """Training losses of the first steps, and the last evaluation."""
    model = task.model(0)
    stepper = optimizer(model.parameters(), **options)
    found = []
    for _, batch in zip(range(steps), task.batches(0, 0), strict=False):
        stepper.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        stepper.step()
        found.append(loss.item())
    return [*found, *task.evaluate(model).values()]


# --- Other units.


def test_units_are_told():
    task, scaled = tasks.load("fashion-mlp"), tasks.load("fashion-mlp/0.5")
    assert scaled.name == "fashion-mlp/0.5"
    assert scaled.title == f"{task.title}, parameters in units of 1/0.5"
    for attribute in ("metric", "maximize", "chance", "batch_size", "epochs", "samples"):
        assert getattr(scaled, attribute) == getattr(task, attribute)
    assert all(torch.equal(a, b) for a, b in zip(task.ids(1, 2), scaled.ids(1, 2), strict=True))
    assert not [name for name in tasks.names() if "/" in name]


@pytest.mark.parametrize("name", ["irys/30", "fashion-mlp/", "fashion-mlp/0", "fashion-mlp/-3", "fashion-mlp/inf",
                                  "fashion-mlp/nan", "fashion-mlp/x", "fashion-mlp/30/30", "/30"])  # fmt: skip
def test_no_such_units(name):
    with pytest.raises(ValueError, match=f"no task '{name}'; there are"):
        tasks.load(name)


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_is_the_same_in_other_units(name):
    task, scaled = tasks.load(name), tasks.load(f"{name}/1000")
    model, model_scaled = task.model(2), scaled.model(2)
    for p, q in zip(model.parameters(), model_scaled.parameters(), strict=True):
        torch.testing.assert_close(q, 1000 * p if p.requires_grad else p, rtol=1e-6, atol=0)
    for buffer, same in zip(model.buffers(), model_scaled.buffers(), strict=True):
        assert torch.equal(buffer, same)
    batch = next(iter(task.batches(0, 0)))
    loss, loss_scaled = task.loss(model, batch), scaled.loss(model_scaled, next(iter(scaled.batches(0, 0))))
    assert loss_scaled.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    loss.backward()
    loss_scaled.backward()
    for p, q in zip(model.parameters(), model_scaled.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(1000 * q.grad, p.grad, rtol=1e-2, atol=1e-3 * p.grad.abs().max().item() + 1e-9)
    assert scaled.evaluate(model_scaled) == pytest.approx(task.evaluate(model), rel=1e-3)


@pytest.mark.parametrize("name", ["fashion-mlp", "cifar-resnet20", "helmholtz-pinn"])
@pytest.mark.parametrize(
    ("optimizer", "lr", "power"), [(torch.optim.SGD, 1e-2, 2), (torch.optim.Adam, 1e-3, 1)]
)  # fmt: skip
def test_a_method_needs_another_learning_rate_in_other_units(name, optimizer, lr, power):
    options = {"eps": 1e-30} if optimizer is torch.optim.Adam else {}
    expected = losses(tasks.load(name), optimizer, 4, lr=lr, **options)
    found = losses(tasks.load(f"{name}/30"), optimizer, 4, lr=lr * 30**power, **options)
    unadjusted = losses(tasks.load(f"{name}/30"), optimizer, 4, lr=lr, **options)
    assert found == pytest.approx(expected, rel=5e-4)
    assert unadjusted != pytest.approx(expected, rel=5e-4)


def test_units_leave_alone_what_is_not_trained_and_tie_what_is_tied():
    inner = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3, affine=False))
    inner[1].weight = inner[0].weight
    inner.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    x = torch.randn(8, 3)
    expected = inner(x).detach()
    mean = inner[2].running_mean.clone()
    scaled = units.ScaledModule(inner, 30.0)
    assert scaled.scaled == ["0.weight"]
    torch.testing.assert_close(scaled(x), expected)
    assert torch.equal(inner.frozen, torch.ones(2))
    assert not torch.equal(inner[2].running_mean, mean)  # a step of training updates the statistics
    assert inner[1].weight is inner[0].weight


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_units_of_recurrent_networks(recurrent):
    inner, x = recurrent(3, 4), torch.randn(5, 2, 3)
    expected = inner(x)[0].detach()
    scaled = units.ScaledModule(inner, 30.0)
    found = scaled(x)[0]
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in scaled.parameters())


# --- Images.


def test_sizes_are_as_the_titles_say():
    block = 2 * 2 * 64 + 64 * 192 + 192 + 64 * 64 + 64 + 2 * 64 * 256 + 256 + 64
    vit = parameters(tasks.load("fashion-vit").model(0))
    assert vit == 49 * 64 + 64 + 16 * 64 + 2 * block + 2 * 64 + 64 * 10 + 10  # 104,970
    half = 784 * 500 + 500 * 250 + 250 * 30
    assert parameters(tasks.load("fashion-autoencoder").model(0)) == 2 * half + 500 + 250 + 30 + 250 + 500 + 784
    resnet = parameters(tasks.load("cifar-resnet20").model(0))
    # ResNet-20 of full width has 270 thousand; about a quarter of it.
    convolutions = 9 * (3 * 8 + 6 * 8 * 8 + 8 * 16 + 5 * 16 * 16 + 16 * 32 + 5 * 32 * 32)
    assert resnet == convolutions + 2 * (7 * 8 + 6 * 16 + 6 * 32) + 32 * 10 + 10  # 68,050
    for name in ("fashion-vit", "fashion-autoencoder", "fashion-diffusion", "cifar-resnet20"):
        task = tasks.load(name)
        stated = int(task.title.split(" parameters")[0].split()[-1].replace(",", ""))
        assert parameters(task.model(0)) == pytest.approx(stated, rel=0.01), name


def test_vision_transformer_reads_every_pixel_and_knows_where_it_is():
    task = tasks.load("fashion-vit")
    model = task.model(0)
    image = task.x[:1].clone().requires_grad_()
    model(image).square().sum().backward()
    assert image.grad.ne(0).all()
    moved = task.x[:1].roll(7, 2)  # the same patches at other places
    assert not torch.allclose(model(task.x[:1]), model(moved), atol=1e-3)


def test_cifar_is_standardised_by_channel_after_averaging():
    task = tasks.load("cifar-resnet20")
    assert task.x.shape == (300, 3, 16, 16)
    for channel, value in enumerate((1, 0, 0.2)):
        expected = (value - cifar.MEAN[channel]) / cifar.STD[channel]
        torch.testing.assert_close(task.x[0, channel], torch.full((16, 16), expected))
    red = data.load("cifar-10")["x_train"][1, 2:4, 4:6, 0].mean() / 255
    assert task.x[1, 0, 1, 2].item() == pytest.approx((red - cifar.MEAN[0]) / cifar.STD[0], rel=1e-4)


def test_residual_network_has_twenty_layers_and_three_resolutions():
    model = cifar.resnet20()
    shapes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 3, 16, 16))
    assert shapes == [(8, 16, 16)] * 7 + [(16, 8, 8)] * 6 + [(32, 4, 4)] * 6  # and the linear layer


# --- Autoencoder and diffusion.


def test_grey_pixels_keep_the_autoencoder_above_zero():
    task = tasks.load("fashion-autoencoder")
    v = task.val.double()
    entropy = -(torch.special.xlogy(v, v) + torch.special.xlogy(1 - v, 1 - v)).mean().item()
    perfect = task.loss(lambda x: torch.logit(x.double(), 1e-9), v).item()
    assert perfect == pytest.approx(entropy, abs=1e-6)
    assert 0.2 < entropy < 0.3


def test_diffusion_mixes_image_and_noise_by_the_level():
    task = tasks.load("fashion-diffusion")
    images = data.load("fashion-slice")["x_train"].reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 127.5 - 1
    index = next(task.ids(3, 1))
    noisy, level, noise = next(task.batches(3, 1))
    angle = level.double().numpy()[:, None, None] * np.pi / 2
    expected = np.cos(angle) * images[index.numpy()] + np.sin(angle) * noise[:, 0].double().numpy()
    np.testing.assert_allclose(noisy[:, 0].numpy(), expected, atol=1e-5)
    gaps = level.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 32))
    assert 0 <= level.min() and level.max() <= 1
    everything = torch.cat([noise for _, _, noise in task.batches(3, 1)])
    assert everything.mean().abs() < 0.01 and abs(everything.std() - 1) < 0.01
    # Whoever knows the image finds the noise.
    exact = torch.from_numpy((noisy[:, 0].numpy() - np.cos(angle) * images[index.numpy()]) / np.sin(angle))[:, None]
    assert task.loss(lambda noisy, level: exact.float(), (noisy, level, noise)).item() < 1e-4


# --- Helmholtz.


class Exact(nn.Module):
    def forward(self, points):
        return helmholtz.solution(points)[:, None]


def test_the_solution_satisfies_equation_and_boundary():
    task = tasks.load("helmholtz-pinn")
    found = task.evaluate(Exact())
    assert found["val_loss"] < 1e-9
    assert found["val_relative_error"] == 0
    for batch in task.batches(0, 0):
        assert task.loss(Exact(), batch).item() < 1e-9


def test_residual_is_that_of_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    points = torch.rand(20, 2, dtype=torch.float64) * 2 - 1
    h = 1e-4
    with torch.no_grad():
        u = model(points)[:, 0]
        shifts = [torch.tensor(shift, dtype=torch.float64) for shift in ([h, 0], [-h, 0], [0, h], [0, -h])]
        laplacian = (sum(model(points + shift)[:, 0] for shift in shifts) - 4 * u) / h**2
    x, y = points.T
    f = (1 - math.pi**2 - 4 * math.pi**2) * (math.pi * x).sin() * (2 * math.pi * y).sin()
    torch.testing.assert_close(helmholtz.residual(model, points), laplacian + u - f, rtol=1e-5, atol=1e-5)


def test_points_lie_inside_and_on_all_four_sides():
    task = tasks.load("helmholtz-pinn")
    inside, boundary = next(task.batches(0, 0))
    assert inside.abs().max() < 1 and inside.std(0).sub(3**-0.5).abs().max() < 0.03
    assert torch.equal(boundary.abs().amax(1), torch.ones(len(boundary)))
    sides = [(boundary[:, axis] == end).sum().item() for axis in (0, 1) for end in (-1, 1)]
    assert min(sides) > 15 and sum(sides) == len(boundary)
    inside, boundary = task.val
    assert len(inside) == 21**2 and len(boundary) == 4 * 22


# --- Policy gradient.


def test_policy_gradient_is_that_of_the_definition():
    task = tasks.load("cartpole-policy")
    model, seed = task.model(0), next(task.batches(0, 0))
    task.loss(model, seed).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    states, actions, alive = reinforcement.play(task.train, model, seed, task.STEPS, task.SLIP)
    lengths = alive.sum(0).tolist()
    steps = [(t, i) for i, length in enumerate(lengths) for t in range(length)]
    to_go = {(t, i): sum(0.98**k for k in range(lengths[i] - t)) for t, i in steps}
    mean = [sum(to_go.get((t, i), 0) for i in range(32)) / 32 for t in range(max(lengths))]
    advantage = {(t, i): to_go[t, i] - mean[t] for t, i in steps}
    size = math.sqrt(sum(value**2 for value in advantage.values()) / len(steps))
    total = torch.zeros(())
    for t, i in steps:
        p = model(states[t, i]).softmax(0)
        entropy = -(p * p.log()).sum()
        total = total + (advantage[t, i] / size) * p[actions[t, i]].log() + 0.01 * entropy
    model.zero_grad()
    (-total / len(steps)).backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_episodes_are_those_of_the_single_environment():
    task = tasks.load("cartpole-policy")
    states, actions, alive = reinforcement.play(task.train, task.model(0), 7, task.STEPS, slip=0)
    single = gymnasium.make("CartPole-v1").unwrapped
    for i in range(4):
        single.reset(seed=0)
        single.state = states[0, i].double().numpy()
        for t in range(int(alive[:, i].sum())):
            np.testing.assert_allclose(states[t, i].numpy(), single.state, atol=1e-4)
            _, _, ended, _, _ = single.step(int(actions[t, i]))
        assert ended
    assert not alive[-1].all() and (alive.int().diff(dim=0) <= 0).all()


def test_random_pushes_last_as_long_as_chance_says():
    task = tasks.load("cartpole-policy")
    uniform = nn.Linear(4, 2)
    nn.init.zeros_(uniform.weight)
    nn.init.zeros_(uniform.bias)
    lengths = [reinforcement.play(task.val, uniform, seed, 500, 0.0)[2].sum().item() / 128 for seed in range(10)]
    assert sum(lengths) / 10 == pytest.approx(task.chance, abs=0.7)
    assert task.evaluate(task.model(0))["val_return"] == pytest.approx(task.chance, abs=6)


def test_slipping_replaces_the_models_actions():
    task = tasks.load("cartpole-policy")
    right = nn.Linear(4, 2)
    nn.init.zeros_(right.weight)
    with torch.no_grad():
        right.bias.copy_(torch.tensor([-50.0, 50.0]))
    pushed = reinforcement.play(task.val, right, 0, 500, 0.0)
    assert pushed[1].all() and pushed[2].sum() / 128 < 11  # always to the right: the pole falls at once
    slipped = reinforcement.play(task.val, right, 0, 500, 1.0)
    assert slipped[1].all() and slipped[2].sum() / 128 > 18


def test_rewards_to_go():
    rewards = torch.tensor([[1.0, 1], [1, 1], [1, 0]])
    torch.testing.assert_close(reinforcement.rewards_to_go(rewards, 0.5), torch.tensor([[1.75, 1.5], [1.5, 1], [1, 0]]))


# --- What Adam reaches in a part of the task's passes; an untrained model is at 2.3, 0.69, 1, 0.27 and 0.96.


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "reached"),
    [
        ("fashion-vit", 3e-3, 3, 1.1),
        ("fashion-autoencoder", 3e-3, 3, 0.42),
        ("fashion-diffusion", 3e-3, 1, 0.35),
        ("helmholtz-pinn", 1e-2, 4, 0.03),
        ("cartpole-policy", 1e-2, 1, 0.85),
    ],
)
def test_a_few_epochs_reach(name, lr, epochs, reached):
    task = tasks.load(name)
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        for batch in task.batches(0, epoch):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    assert task.evaluate(model)["val_loss"] < reached
