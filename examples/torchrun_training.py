"""Data-parallel training with torchrun; started again after a crash, it goes on from its last checkpoint.

torchrun --standalone --nproc-per-node 2 examples/torchrun_training.py --out run
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import untuned


def curve(count: int, seed: int) -> TensorDataset:
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return TensorDataset(x, torch.sin(3 * x[:, :1]) * x[:, 1:])


def random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def save(path: Path, **content: Any) -> None:
    """Every rank calls it, since every rank has its own random state; rank 0 writes."""
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, random_state())
    if dist.get_rank() == 0:
        torch.save(content | {"random": states}, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)  # a crash leaves the old file or the new one, never half of one


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--optimizer", default="momo_adam", choices=untuned.list())
    parser.add_argument("--lr", type=float, default=1.0)  # the loss of this problem comes near 0
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=20, help="steps")
    parser.add_argument("--execution", default="auto")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1)).to(device)
    model = DistributedDataParallel(network)
    optimizer = untuned.create(network, args.optimizer, lr=args.lr, execution=args.execution)
    torch.manual_seed(1 + rank)  # from here on the ranks drop out different units

    train = curve(2000, seed=0)
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=32, sampler=sampler, generator=torch.Generator())
    test_x, test_y = (t.to(device) for t in curve(500, seed=1).tensors)
    step = 0

    last = args.out / "last.pt"
    if last.exists():
        saved = torch.load(last, map_location="cpu", weights_only=True)
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        cpu_state, cuda_state = saved["random"][rank]
        torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)
        step = saved["step"]
        if rank == 0:
            print(f"resumed at step {step}", flush=True)

    def test_loss() -> Tensor:
        network.eval()
        with torch.no_grad(), optimizer.averaged_parameters():  # of methods without averaging: the parameters
            loss = mse_loss(network(test_x), test_y)
        network.train()
        return loss

    for epoch in range(step // len(loader), args.epochs):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            if epoch * len(loader) + i < step:
                continue  # seen before the crash
            optimizer.zero_grad()
            loss = mse_loss(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step(loss=loss)  # each rank gives its own, the optimizer averages them
            step += 1
            if step % len(loader) == 0:
                tested = test_loss()  # on all ranks, for the way to the averaged point and back rounds
                if rank == 0:
                    chosen = optimizer.metrics()["lr_effective"]
                    print(f"epoch {epoch + 1}: test loss {tested:.5f}, lr_effective {chosen:.3g}", flush=True)
            if step % args.save_every == 0:
                save(last, model=network.state_dict(), optimizer=optimizer.state_dict(), step=step)
    save(args.out / "end.pt", model=network.state_dict(), optimizer=optimizer.state_dict(), step=step)
    del model
    dist.barrier()  # without these two lines gloo now and then aborts a process at its end
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
