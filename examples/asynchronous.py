"""A convolutional network trained by three processes that do not wait for each other, one of them slowed down.

python examples/asynchronous.py
python examples/asynchronous.py --engine rpc --methods OrMo SSGDm --seconds 20

Prints the validation loss against the clock on the wall for each method, how many gradients each worker has sent, and
whether the replay of what arrived in one process ends with the same weights to the bit. The engine on_ray needs the
extra ray. Numbers differ from run to run, since they depend on how fast the processes are.
"""

from __future__ import annotations

import argparse
import functools
import math
import time

import torch
from torch import Tensor, nn

import untuned
from untuned.study.tasks.images import FashionCNN
from untuned.systems.asynchronous import Compute, ModelGradient, Server, flat, gloo, on_ray, replay, rpc

ENGINES = {"gloo": gloo, "rpc": rpc, "on_ray": on_ray}
WORKERS, BATCH, MOMENTUM = 3, 32, 0.9
METHODS = ("ASGD", "naive", "OrMo", "OrMo-DA", "SSGDm")


def optimizer(method: str, params: list[nn.Parameter], lr: float) -> tuple[torch.optim.Optimizer, bool]:
    """What the server steps with, and whether workers wait for each other; `lr` is what a gradient moves in the end."""
    if method == "ASGD":
        return untuned.SGD(params, lr), False
    if method == "naive":
        return untuned.SGD(params, lr * (1 - MOMENTUM), MOMENTUM), False
    if method == "SSGDm":  # a step on the mean of all workers' gradients
        return untuned.SGD(params, WORKERS * lr * (1 - MOMENTUM), MOMENTUM), True
    cap = 2.0 if method == "OrMo-DA" else math.inf
    return untuned.OrMo(params, lr * (1 - MOMENTUM), MOMENTUM, num_workers=WORKERS, delay_cap=cap), False


def warm_up(method: str) -> None:
    """A step of another model, since the first step of a method takes about a second more, which is not its own."""
    params = list(FashionCNN().model(seed=0).parameters())
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer(method, params, lr=0.1)[0].step()


def batch_gradient() -> ModelGradient:
    """The gradient of the loss on a batch that follows from the number of the draw."""
    task = FashionCNN()

    def loss(model: nn.Module, draw: int) -> Tensor:
        chosen = torch.randint(len(task.y), (BATCH,), generator=torch.Generator().manual_seed(draw))
        return task.loss(model, (task.x[chosen], task.y[chosen]))

    return ModelGradient(task.model(seed=0), loss)


def work(worker: int, pace: float, slower: float) -> Compute:
    """Called in each worker's process: a gradient takes `pace` seconds there, `slower` times as long in the first's."""
    compute = batch_gradient()
    compute(flat(compute.model.parameters()), 0)  # the first one takes longer, before the clock runs
    return functools.partial(slowly, compute, pace * (slower if worker == 0 else 1.0))


def slowly(compute: Compute, seconds: float, weights: Tensor, draw: int) -> Tensor:
    end = time.perf_counter() + seconds
    gradient = compute(weights, draw)
    time.sleep(max(0.0, end - time.perf_counter()))
    return gradient


def train(method: str, args: argparse.Namespace) -> tuple[Server, list[tuple[float, Tensor]]]:
    """-> the server, and the weights each second."""
    warm_up(method)
    model = FashionCNN().model(seed=0)
    stepper, synchronous = optimizer(method, list(model.parameters()), args.lr)
    server = Server(stepper, WORKERS, synchronous=synchronous, steps=10**9)
    kept = [(0.0, server.weights())]

    def watch(server: Server, now: float) -> None:
        """Called whenever gradients were applied, with the seconds since the start."""
        if now >= len(kept):
            kept.append((now, server.weights()))
        if now >= args.seconds:
            server.steps = server.index

    jobs = functools.partial(work, pace=args.pace, slower=args.slower)
    run = ENGINES[args.engine].train(server, jobs, timeout=120.0, watch=watch)
    for worker, why in run.lost.items():
        print(f"worker {worker} {why}")
    return server, kept


def replayed(method: str, server: Server, lr: float) -> bool:
    """Whether one process that repeats what arrived ends with the same weights."""
    model = FashionCNN().model(seed=0)
    stepper, synchronous = optimizer(method, list(model.parameters()), lr)
    again = Server(stepper, WORKERS, synchronous=synchronous)
    replay(server.trace, batch_gradient(), again)
    return torch.equal(server.weights(), again.weights())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="gloo", choices=list(ENGINES))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seconds", type=float, default=6.0, help="of training, for each method")
    parser.add_argument("--lr", type=float, default=0.05, help="how far a gradient moves the weights in the end")
    parser.add_argument("--pace", type=float, default=0.04, help="seconds that a gradient takes")
    parser.add_argument("--slower", type=float, default=5.0, help="how much longer it takes worker 0")
    args = parser.parse_args()
    torch.set_num_threads(1)

    task, evaluated = FashionCNN(), batch_gradient().model
    for method in args.methods:
        server, kept = train(method, args)
        shares = [sum(sender == worker for sender, *_ in server.trace) for worker in range(WORKERS)]
        print(f"{method}: {shares} gradients, replayed to the bit: {replayed(method, server, args.lr)}")
        for seconds, weights in kept:
            nn.utils.vector_to_parameters(weights, evaluated.parameters())
            found = task.evaluate(evaluated)
            print(f"  {seconds:5.1f} s  loss {found['val_loss']:.4f}  accuracy {found['val_accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    main()
