"""Policy gradient on a cart that balances a pole."""

from collections.abc import Iterator

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from .task import Task, evaluating, seeded

LONGEST = 500  # steps of a validation episode, and so the largest return of CartPole-v1


class CartPolePolicy(Task):
    """REINFORCE on gymnasium's CartPole-v1: a network gives the logits of the two pushes, left and right.

    A batch is the seed of `batch_size` episodes of at most STEPS steps. `loss` plays them with the model as it is and
    returns -mean(A log p(action) + ENTROPY * entropy) over their steps, whose gradient is the policy gradient: A is the
    discounted reward to go less its mean over the episodes of the batch at the same step (0 for those that have ended),
    divided by its root mean square. **The value of this loss means little**: it lies near 0 however good the policy is,
    often below, so that methods that use the value of the loss (MoMo, Polyak steps) meet a number that does not fall.

    With probability SLIP a push goes left or right at random instead. Without it the return is soon the largest
    possible, and from then on no method is better than another.

    `val_return` is the mean return (steps until the pole falls, at most 500) of VALIDATION fixed episodes, in which
    actions and slips are drawn with fixed random numbers; `val_loss` is 1 - val_return / 500. It is noisy, as policy
    gradients are: a run passes through better and worse policies.
    """

    name = "cartpole-policy"
    title = "Policy gradient, MLP 4-64-64-2, on gymnasium's CartPole-v1 with random pushes"
    metric = "val_return"
    maximize = True
    chance = 22.0  # of random pushes
    batch_size = 32
    epochs = 5

    BATCHES = 50
    STEPS = 200
    DISCOUNT = 0.98
    SLIP = 0.3
    ENTROPY = 0.01
    VALIDATION = 128

    def __init__(self) -> None:
        self.train, self.val = (
            gymnasium.make_vec("CartPole-v1", count, "vector_entry_point", max_episode_steps=LONGEST)
            for count in (self.batch_size, self.VALIDATION)
        )

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def batches(self, seed: int, epoch: int) -> Iterator[int]:
        yield from np.random.default_rng([seed, epoch]).integers(2**31, size=self.BATCHES).tolist()

    def loss(self, model: nn.Module, batch: int) -> Tensor:
        states, actions, alive = play(self.train, model, batch, self.STEPS, self.SLIP)
        advantage = (to_go := rewards_to_go(alive, self.DISCOUNT)) - to_go.mean(1, keepdim=True)
        advantage = advantage[alive] / advantage[alive].square().mean().sqrt().clamp(min=1e-8)
        log_p = model(states[alive]).log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        return -(advantage * log_p.gather(1, actions[alive][:, None])[:, 0] + self.ENTROPY * entropy).mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            _, _, alive = play(self.val, model, 0, LONGEST, self.SLIP)
        mean = alive.sum().item() / self.VALIDATION
        return {"val_loss": 1 - mean / LONGEST, "val_return": mean}


@torch.no_grad()
def play(
    environment: gymnasium.vector.VectorEnv, model: nn.Module, seed: int, steps: int, slip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One episode in each of n environments, until all have ended but for `steps` steps at most; T is what it took.

    Returns states float32 (T, n, 4), the model's actions int64 (T, n) and which episodes were still going, bool (T, n).
    Every step of these has reward 1. The seed gives the initial states and the random numbers that draw the actions and
    the random pushes which, with probability `slip`, take their place.
    """
    random = np.random.default_rng(seed)
    draws, slips, pushes = random.random((3, steps, environment.num_envs), np.float32)
    state, _ = environment.reset(seed=seed)
    going = np.ones(environment.num_envs, bool)
    states, actions, alive = [], [], []
    for draw, slipped, push in zip(draws, slips < slip, pushes < 0.5, strict=True):
        right = softmax(model(torch.from_numpy(state)), 1)[:, 1].numpy()
        action = (draw < right).astype(np.int64)
        states.append(state)
        actions.append(action)
        alive.append(going)
        state, _, terminated, truncated, _ = environment.step(np.where(slipped, push, action))
        going = going & ~(terminated | truncated)
        if not going.any():
            break
    return torch.from_numpy(np.stack(states)), torch.from_numpy(np.stack(actions)), torch.from_numpy(np.stack(alive))


def rewards_to_go(rewards: Tensor, discount: float) -> Tensor:
    """The sum over s >= t of discount^(s - t) rewards[s], for every t: (T, n) like `rewards`."""
    total = torch.zeros(rewards.shape[1])
    found = []
    for reward in rewards.float().flip(0):
        total = reward + discount * total
        found.append(total)
    return torch.stack(found).flip(0)
