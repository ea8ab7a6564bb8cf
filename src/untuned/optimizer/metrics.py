"""What people see: numbers worth logging, and warnings."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import warnings
from typing import Any

import torch

from untuned.memory.buckets import Bucket, States, local, number_from
from untuned.memory.now import Now
from untuned.recipe.recipe import Group
from untuned.run.eager import ElementFrame


class Watch:
    """Keeps what warnings need of the last hundred losses, and which warnings were given."""

    def __init__(self) -> None:
        self.advised: set[Any] = set()
        self.losses: list[torch.Tensor] = []
        self.course: dict[str, torch.Tensor] = {}

    def look_back(self, device: torch.device) -> None:
        """Keep what parts want to know of the last hundred losses."""
        if self.losses:
            ascending = torch.stack([value.to(device) for value in self.losses]).sort().values
            low, last = ascending[len(ascending) // 10], ascending[len(ascending) // 2]
            course = {"loss_first": self.losses[0], "loss_least": last} | self.course
            least = torch.minimum(course["loss_least"].to(last), last)
            self.losses, self.course = [], course | {"loss_low": low, "loss_last": last, "loss_least": least}

    def read(self, now: Now, states: States, drifted: Any) -> dict[str, float]:
        """The metrics of an optimizer, with warnings for what they show; `now`: the last step."""
        groups, found = now.groups, dict[str, Any]()
        for i, group in enumerate(groups):
            found["lr_effective" if i == 0 else f"lr_effective_{i}"] = _lr_effective(now, states, group)
        for part in now.recipe.all_parts:
            for n in part.numbers().values():
                held = [held[n.key].to(now.device) for held in states.values() if n.key in held]
                if part.per_tensor(n) and held:
                    found[n.key] = torch.cat([local(value).reshape(-1) for value in held]).mean()
                elif not part.per_tensor(n):
                    mine = [group[n.key] for group in groups if part in now.recipe.of(group).values()]
                    found |= {n.key: mine[0]} if mine and mine[0].dim() == 0 else {}
        first = groups[0]
        found |= {"steps": first["steps"], "skipped": first["skipped"], "drifted": drifted}
        if now.grad_norm is not None:
            found["grad_norm"] = now.grad_norm
        everything = found | self.course
        read = torch.stack([number_from(v, now.device).reshape(()) for v in everything.values()])
        values = dict(zip(everything, read.tolist(), strict=True))
        texts = {part: part.advice(first | values) for part in now.recipe.all_parts if hasattr(part, "advice")}
        if found.pop("drifted") and values["drifted"]:
            texts["ranks"] = (
                f"{now.recipe.title}: numbers differ between ranks; parameters of one alone need shard_group."
            )
        for by, text in texts.items():
            if text and by not in self.advised:
                self.advised.add(by)
                warnings.warn(text, stacklevel=4)  # the caller of metrics(), behind its decorator
        return {key: values[key] for key in found}


def _lr_effective(now: Now, states: States, group: Group) -> Any:
    """What the method made of the lr of a group in its last step; a schedule may have moved on since."""
    trained = [p for p in group["params"] if states.get(p)]
    if not trained:
        return 0.0
    parts = now.recipe.of(group)
    held, keys = [states[p] for p in trained], ("step", "rho" if now.recipe.corrects(parts) else "step")
    t, rho = (torch.stack([one[key].to(now.device) for one in held]).double().max() for key in keys)
    numbers, t = {"rho": torch.where(t > 0, rho, 1.0).reshape(1)}, t.clamp(min=1.0).reshape(1)
    used = group | {"lr": now.before.get(id(group["params"]), group)["lr"]}
    frame = ElementFrame(now, Bucket(used, trained, held, now.device, (), parts, numbers=numbers, t=t), 0)
    value = frame.read(parts["iterate"], "rate")
    for role in ("step_size", "iterate"):
        if hasattr(parts[role], "effective"):
            value = parts[role].effective(frame.place(role), value)
    return value
