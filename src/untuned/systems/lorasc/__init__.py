"""LoRASC (arXiv 2407.01491): fine-tuning by a cascade of low-rank experts, each merged into the weights it is added to.

>>> import torch
>>> from untuned.systems.lorasc import CascadeLoRA, add_lora
>>> model = add_lora(torch.nn.Sequential(torch.nn.Linear(4, 1)), ["0"], rank=1)
>>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
>>> cascade = CascadeLoRA(model, optimizer, every=5)
>>> cascade.begin()
>>> for _ in range(20):
...     optimizer.zero_grad()
...     (model(torch.ones(4)) - 3).square().sum().backward()
...     optimizer.step()
...     at_boundary = cascade.step()
>>> cascade.finish()
>>> cascade.cascades
4
>>> bool(abs(model(torch.ones(4)).item() - 3) < 1)
True
"""

from untuned.systems.lorasc.cascade import CascadeLoRA
from untuned.systems.lorasc.linear import LoRALinear, add_lora, remove_lora

__all__ = ["CascadeLoRA", "LoRALinear", "add_lora", "remove_lora"]
