"""A small classifier under Accelerate with MoMo-Adam; stop it at any time and start it again, it goes on.

Run it:

    pip install "untuned[accelerate]"
    accelerate launch examples/accelerate_training.py
"""

import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

import untuned
from untuned.integrations.accelerate import backward

EPOCHS = 12
FOLDER = Path("accelerate-run")


def spirals(count: int) -> torch.utils.data.TensorDataset:
    """Points of three arms of a spiral and the number of the arm."""
    generator = torch.Generator().manual_seed(0)
    arm = torch.arange(count) % 3
    radius = torch.rand(count, generator=generator)
    angle = 4 * radius + 2 * math.pi / 3 * arm + 0.1 * torch.randn(count, generator=generator)
    return torch.utils.data.TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), arm)


def main() -> None:
    accelerator = Accelerator(
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # the order follows from the epoch
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU())
    model.append(torch.nn.Linear(64, 3))
    optimizer = untuned.MoMoAdam(model.parameters(), lr=1.0)  # the network fits these points: the loss comes near 0
    data = torch.utils.data.DataLoader(spirals(3000), batch_size=32, shuffle=True)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)

    done = 0
    if FOLDER.exists():
        newest = max(FOLDER.glob("epoch_*"), key=lambda folder: int(folder.name.split("_")[1]))
        accelerator.load_state(str(newest))
        done = int(newest.name.split("_")[1])
    for epoch in range(done, EPOCHS):
        data.set_epoch(epoch)
        right = torch.zeros((), device=accelerator.device)
        for inputs, labels in data:
            with accelerator.accumulate(model):
                outputs = model(inputs)
                loss = torch.nn.functional.cross_entropy(outputs, labels)
                backward(accelerator, optimizer, loss)  # accelerator.backward(loss), and the optimizer hears the loss
                optimizer.step()
                optimizer.zero_grad()
            right += (outputs.argmax(1) == labels).float().mean() / len(data)
        accuracy = accelerator.reduce(right, "mean").item()
        chosen = optimizer.optimizer.metrics()["lr_effective"]
        accelerator.print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}, effective learning rate {chosen:.3g}")
        accelerator.save_state(str(FOLDER / f"epoch_{epoch + 1}"))
    accelerator.end_training()


if __name__ == "__main__":
    main()
